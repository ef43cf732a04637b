//! `cortex bench`.

use std::io::IsTerminal;
use std::process::ExitCode;

use tokio_util::sync::CancellationToken;

use super::args::BenchArgs;
use super::output::{CommandError, finish, print_line};
use super::signals::cancel_in_turn;
use crate::bench::{self, BenchError, Line, Options};
use crate::domain::ambient::{Ambient, System};

/// Makes one run and prints its lines.
pub async fn run(args: BenchArgs) -> ExitCode {
    finish(measure(args).await)
}

async fn measure(args: BenchArgs) -> Result<(), CommandError> {
    let [stop, now] = [CancellationToken::new(), CancellationToken::new()];
    cancel_in_turn([stop.clone(), now.clone()])?;
    let list = |text: &str| text.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect();
    let options = Options {
        workload: args.workload,
        endpoints: list(&args.server.endpoint),
        worker_endpoints: list(args.worker_endpoint.as_deref().unwrap_or_default()),
        token: args.server.token,
        database_url: args.database_url,
        jobs: args.jobs,
        first: args.first,
        seconds: args.seconds,
        in_flight: args.in_flight.into(),
        batch: args.batch.into(),
        rate: args.rate.into(),
        workers: args.workers.into(),
        slots: args.slots.into(),
        payload_bytes: args.payload_bytes as usize,
        progress: std::io::stderr().is_terminal(),
        stop,
    };
    let mut printed = Ok(());
    let say = |line: &Line| {
        if let Ok(text) = serde_json::to_string(line)
            && let Err(error) = print_line(&text)
        {
            printed = Err(error);
        }
    };
    tokio::select! {
        measured = bench::run(options, System.uuid(), say) => measured?,
        () = now.cancelled() => return Err(CommandError::Failed("ended at once; jobs may be left".to_owned())),
    }
    printed
}

impl From<BenchError> for CommandError {
    fn from(error: BenchError) -> Self {
        match error {
            BenchError::Usage(text) => Self::Usage(text),
            error => Self::Failed(error.to_string()),
        }
    }
}
