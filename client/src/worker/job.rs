//! One job, from its handler's start to the report of its end.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::Value;
use tokio::{sync::OwnedSemaphorePermit, task::JoinError, time::Instant};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use tracing::{info, warn};

use super::{
    AssignedJob, Handler, JobFailure,
    core::Core,
    held::HeldJob,
    report::{Delivery, Lease},
};
use crate::proto::JobCompletion;

/// What the protocol allows for an error code.
const LONGEST_CODE: usize = 50;

/// A job that ends within this time costs no status call.
const RUNNING_DELAY: Duration = Duration::from_millis(2);

/// How a handler's run ended.
enum Ending {
    Finished(Result<Value, JobFailure>),
    /// The server took the job away.
    Lost,
    TimedOut(Duration),
    /// The worker could not wait any longer.
    Stopped,
}

impl Lease {
    pub(super) fn of(job: &AssignedJob) -> Self {
        Self { job_id: job.id.clone(), execution_id: job.execution_id.clone(), attempt: job.attempt }
    }
}

/// Runs a job and reports it. The slot is free as soon as the handler has
/// ended; the job is held until its end is acknowledged.
pub(super) async fn run_job<H: Handler>(
    core: Arc<Core>,
    handler: Arc<H>,
    job: AssignedJob,
    held: HeldJob,
    slot: OwnedSemaphorePermit,
) {
    let lease = Lease::of(&job);
    let started = Instant::now();
    let ended = CancellationToken::new();
    let lost = held.lost.clone();
    let report = report_running(&core, &lease, &lost, &ended);
    tokio::pin!(report);
    let mut reported = false;
    let ending = {
        let work = execute(&core, handler, job, &lost);
        tokio::pin!(work);
        tokio::select! {
            biased;
            ending = &mut work => ending,
            () = &mut report => {
                reported = true;
                work.await
            }
        }
    };
    drop(slot);
    ended.cancel();
    let completion = completion_of(&lease, ending, started.elapsed());
    // A status call under way is left to end: cancelling it for every short job
    // would look like a rapid-reset attack to the server.
    tokio::join!(core.complete(completion, held), async {
        if !reported {
            report.await;
        }
    });
}

/// Reports a job as running, unless it ends before that: its completion says as
/// much.
async fn report_running(core: &Core, lease: &Lease, lost: &CancellationToken, ended: &CancellationToken) {
    tokio::select! {
        () = tokio::time::sleep(RUNNING_DELAY) => {}
        () = ended.cancelled() => return,
    }
    match core.report_status(lease, "running", "", ended).await {
        Delivery::Acknowledged | Delivery::Obsolete => {}
        // A completion that overtakes this report makes it stale.
        Delivery::Refused(_) if ended.is_cancelled() => {}
        Delivery::Refused(reason) => {
            info!(job_id = %lease.job_id, %reason, "the lease is gone, the job is stopped");
            lost.cancel();
        }
        Delivery::Unacceptable(failure) => {
            warn!(job_id = %lease.job_id, %failure, "a job could not be reported as running");
        }
    }
}

async fn execute<H: Handler>(
    core: &Core,
    handler: Arc<H>,
    job: AssignedJob,
    lost: &CancellationToken,
) -> Ending {
    let cancel = CancellationToken::new();
    let limit = job.timeout;
    let wind_up_time = handler.wind_up_time();
    // A task of its own, so that a panic stays there and the handler starts
    // before anything is reported.
    let mut task = AbortOnDropHandle::new(tokio::spawn({
        let cancel = cancel.clone();
        async move { handler.run(job, cancel).await }
    }));
    let ending = tokio::select! {
        biased;
        result = &mut task => return Ending::Finished(result.unwrap_or_else(panicked)),
        () = lost.cancelled() => Ending::Lost,
        () = core.stopping.cancelled() => Ending::Stopped,
        limit = expire(limit) => Ending::TimedOut(limit),
    };
    cancel.cancel();
    // Whatever the handler still answers, it was too late.
    let _ = tokio::time::timeout(wind_up_time, task).await;
    ending
}

fn completion_of(lease: &Lease, ending: Ending, ran: Duration) -> JobCompletion {
    let result = match ending {
        Ending::Finished(result) => result.and_then(encode),
        Ending::Lost => Err(failure("cancelled", "the server took the job away")),
        Ending::TimedOut(limit) => {
            let message = format!("the job ran longer than {} s", limit.as_secs());
            Err(failure("timeout", message))
        }
        Ending::Stopped => Err(failure("worker_stopped", "the worker had to stop")),
    };
    let mut completion = JobCompletion {
        job_id: lease.job_id.clone(),
        success: result.is_ok(),
        duration_ms: i64::try_from(ran.as_millis()).unwrap_or(i64::MAX),
        execution_id: lease.execution_id.clone(),
        attempt_number: lease.attempt,
        ..JobCompletion::default()
    };
    match result {
        Ok(output) => completion.output_data = output,
        Err(failure) => {
            completion.error_message = failure.message;
            let code = failure.code.unwrap_or_default();
            completion.error_code = code.chars().take(LONGEST_CODE).collect();
            completion.error_stack = failure.stack.unwrap_or_default();
        }
    }
    completion
}

fn encode(output: Value) -> Result<Bytes, JobFailure> {
    if !output.is_object() {
        return Err(failure("bad_output", "the output is not a JSON object"));
    }
    match serde_json::to_vec(&output) {
        Ok(bytes) => Ok(bytes.into()),
        Err(e) => Err(failure("bad_output", e.to_string())),
    }
}

async fn expire(limit: Option<Duration>) -> Duration {
    match limit {
        Some(limit) => {
            tokio::time::sleep(limit).await;
            limit
        }
        None => std::future::pending().await,
    }
}

fn panicked(error: JoinError) -> Result<Value, JobFailure> {
    let message = match error.try_into_panic() {
        Ok(payload) => {
            let text = payload.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
            format!("the handler panicked: {}", text.unwrap_or("no message"))
        }
        Err(error) => format!("the handler's task ended: {error}"),
    };
    Err(failure("panic", message))
}

fn failure(code: &str, message: impl Into<String>) -> JobFailure {
    JobFailure::new(message).with_code(code)
}
