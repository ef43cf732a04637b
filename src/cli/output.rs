//! What the client commands share: the connection, tables, exit status.

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use comfy_table::{ContentArrangement, Table, presets};
use cortex_client::{ClientError, InvalidEndpoint, JobsClient};
use serde::Serialize;

use super::args::ClientArgs;

/// Why a command did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub(super) enum CommandError {
    /// The arguments make no sense: exit status 2.
    #[error("{0}")]
    Usage(String),
    /// The request was refused or failed: exit status 1.
    #[error("{0}")]
    Failed(String),
}

impl From<ClientError> for CommandError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Endpoint(error) => error.into(),
            error => Self::Failed(with_causes(&error)),
        }
    }
}

impl From<InvalidEndpoint> for CommandError {
    fn from(error: InvalidEndpoint) -> Self {
        Self::Usage(with_causes(&error))
    }
}

impl From<std::io::Error> for CommandError {
    fn from(error: std::io::Error) -> Self {
        Self::Failed(format!("cannot print: {error}"))
    }
}

/// Prints the error, if any, and answers the exit status.
pub(super) fn finish(result: Result<(), CommandError>) -> ExitCode {
    let Err(error) = result else { return ExitCode::SUCCESS };
    eprintln!("error: {error}");
    match error {
        CommandError::Usage(_) => ExitCode::from(2),
        CommandError::Failed(_) => ExitCode::from(1),
    }
}

/// How long a change of the cluster may take: a new member has to catch up.
const CHANGE_WITHIN: Duration = Duration::from_secs(20);

/// A client for changes of the cluster, which waits longer.
pub(super) fn patient(args: &ClientArgs) -> Result<JobsClient, CommandError> {
    let builder = JobsClient::builder(&args.server.endpoint).token(args.server.token.clone());
    Ok(builder.request_timeout(CHANGE_WITHIN).deadline(CHANGE_WITHIN).build()?)
}

/// A client of the replicas that the arguments name.
pub(super) fn client(args: &ClientArgs) -> Result<JobsClient, CommandError> {
    Ok(JobsClient::builder(&args.server.endpoint).token(args.server.token.clone()).build()?)
}

/// Prints one line, or several. Whoever has read enough changes nothing of what is done and how it ends.
pub(super) fn print_line(text: &str) -> Result<(), CommandError> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        printed => Ok(printed?),
    }
}

/// Prints a value as JSON, indented.
pub(super) fn print_json(value: &impl Serialize) -> Result<(), CommandError> {
    let text =
        serde_json::to_string_pretty(value).map_err(|error| CommandError::Failed(error.to_string()))?;
    print_line(&text)
}

/// Prints a value as JSON on one line.
pub(super) fn print_json_line(value: &impl Serialize) -> Result<(), CommandError> {
    let text = serde_json::to_string(value).map_err(|error| CommandError::Failed(error.to_string()))?;
    print_line(&text)
}

/// A table without lines, with these columns.
pub(super) fn table(columns: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    if !columns.is_empty() {
        table.set_header(columns.iter().map(|column| column.to_uppercase()));
    }
    table
}

/// Prints a table, two spaces between its columns and none at the ends of lines.
pub(super) fn print_table(mut table: Table) -> Result<(), CommandError> {
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    let text = table.to_string();
    text.lines().try_for_each(|line| print_line(line.trim_end()))
}

/// A cell for something that may be absent.
pub(super) fn optional(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// The error and what caused it, as far as the error does not say that itself.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
