//! `cortex serve`: one replica.

use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use super::args::ServeArgs;
use super::output::{CommandError, finish};
use super::signals;
use crate::app;
use crate::config::Config;
use crate::telemetry::logging;

/// Runs a replica until SIGTERM or Ctrl-C.
pub async fn run(args: ServeArgs) -> ExitCode {
    finish(serve(args).await)
}

async fn serve(args: ServeArgs) -> Result<(), CommandError> {
    #[cfg(feature = "planted-defects")]
    let planted = crate::planted::check().map_err(CommandError::Usage)?;
    let config = Config::load(&args.config).map_err(|error| CommandError::Failed(error.to_string()))?;
    logging::init(config.log_level(), config.observability.log_format)
        .map_err(|error| CommandError::Usage(error.to_string()))?;
    #[cfg(feature = "planted-defects")]
    if let Some(planted) = planted {
        tracing::warn!(planted, "This replica has a defect that was planted on purpose.");
    }
    let shutdown = CancellationToken::new();
    signals::cancel_in_turn([shutdown.clone()])?;
    app::run(config, shutdown).await.map_err(|error| {
        tracing::error!(%error, "The replica ends.");
        CommandError::Failed(error.to_string())
    })
}
