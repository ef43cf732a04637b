//! `cortex migrate`: the database schema.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::args::MigrateArgs;
use super::output::{CommandError, finish, print_line};
use crate::app;
use crate::config::Config;
use crate::storage::{Database, DatabaseOptions};
use crate::telemetry;

/// Brings the schema up to date and says so.
pub async fn run(args: MigrateArgs) -> ExitCode {
    finish(migrate(args).await)
}

async fn migrate(args: MigrateArgs) -> Result<(), CommandError> {
    let database = database(args.database_url, args.config)?;
    database.check().await.map_err(|error| CommandError::Failed(telemetry::whole_story(&error)))?;
    database.migrate().await.map_err(|error| CommandError::Failed(error.to_string()))?;
    print_line("The database schema is up to date.")
}

/// The database at `url`, or the one that a configuration file names.
pub(super) fn database(url: Option<String>, config: Option<PathBuf>) -> Result<Database, CommandError> {
    let failed = |error: &dyn std::fmt::Display| CommandError::Failed(error.to_string());
    let options = match (url, config) {
        (Some(url), _) => DatabaseOptions {
            url,
            max_connections: 1,
            acquire_timeout: Duration::from_secs(30),
            max_lifetime: Duration::from_secs(3600),
            pooler: false,
        },
        (None, Some(file)) => {
            app::database_options(&Config::load(&file).map_err(|error| failed(&error))?.database)
        }
        (None, None) => {
            return Err(CommandError::Usage("one of --config and --database-url is needed".to_owned()));
        }
    };
    Database::connect_lazily(&options).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_that_cannot_be_used_is_named() {
        for (url, why) in [
            ("", "relative URL without a base"),
            ("postgres://a b/c", "invalid domain character"),
            ("postgres://u:secret@host:99999/db", "invalid port number"),
        ] {
            let Err(CommandError::Failed(said)) = database(Some(url.to_owned()), None) else {
                panic!("{url} was taken")
            };
            assert_eq!(said, format!("the URL of the database cannot be used: {why}"));
        }
    }
}
