//! `cortex worker`.

use std::process::ExitCode;
use std::time::Duration;

use cortex_client::{CancellationToken, ExecHandler, Handler, SleepHandler, Worker, WorkerError};

use super::args::WorkerArgs;
use super::output::{CommandError, finish};
use super::signals;
use super::traced::{self, Traced};
use crate::config::{LogFormat, LogLevel};
use crate::telemetry::{Tracer, logging};

/// How long spans that wait may take to be sent at the end.
const SPANS_WITHIN: Duration = Duration::from_secs(3);

/// Runs jobs until SIGTERM or Ctrl-C, then drains; a second signal ends the drain.
pub async fn run(args: WorkerArgs) -> ExitCode {
    finish(work(args).await)
}

async fn work(args: WorkerArgs) -> Result<(), CommandError> {
    logging::init(LogLevel::Info, LogFormat::Text).map_err(|error| CommandError::Usage(error.to_string()))?;
    let tracer = traced::tracer(args.otlp_endpoint.as_deref(), &args.name)
        .map_err(|error| CommandError::Usage(error.to_string()))?;
    let (shutdown, abort) = (CancellationToken::new(), CancellationToken::new());
    signals::cancel_in_turn([shutdown.clone(), abort.clone()])?;
    let mut builder = Worker::builder()
        .endpoints(args.endpoint)
        .name(args.name)
        .gpu(args.gpu)
        .slots(args.slots.into())
        .token(args.token)
        .abort(abort);
    if let Some(models) = args.models {
        builder = builder.models(models);
    }
    if let Some(memory_gb) = args.memory_gb {
        builder = builder.memory_gb(memory_gb);
    }
    let worker = builder.build().map_err(|error| CommandError::Usage(error.to_string()))?;
    let result = match (args.action.exec, args.action.sleep_ms) {
        (Some(command), _) => run_traced(worker, ExecHandler::new(command), &tracer, shutdown).await,
        (None, Some(ms)) => {
            let handler = SleepHandler { duration: Duration::from_millis(ms) };
            run_traced(worker, handler, &tracer, shutdown).await
        }
        (None, None) => return Err(CommandError::Usage("one of --exec and --sleep-ms is needed".to_owned())),
    };
    result.map_err(|error: WorkerError| CommandError::Failed(error.to_string()))
}

async fn run_traced<H: Handler>(
    worker: Worker,
    handler: H,
    tracer: &Tracer,
    shutdown: CancellationToken,
) -> Result<(), WorkerError> {
    let result = worker.run(Traced { handler, tracer: tracer.clone() }, shutdown).await;
    tracer.stop(SPANS_WITHIN).await;
    result
}
