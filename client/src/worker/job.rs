//! One job, from its assignment to the report of its end.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use serde_json::Value;
use tokio::{sync::Semaphore, task::JoinError, time::Instant};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{AssignedJob, Handler, JobFailure, Settled, outbox::Outbox};
use crate::proto::JobCompletion;

/// What the protocol allows for an error code.
const LONGEST_CODE: usize = 50;

/// What the jobs of a worker share.
pub(super) struct Doing<H> {
    pub(super) handler: H,
    pub(super) outbox: Arc<Outbox>,
    pub(super) slots: Arc<Semaphore>,
    /// Cancel the handlers.
    pub(super) stopping: CancellationToken,
}

impl<H: Handler> Doing<H> {
    /// Tells the handler what became of ends that were reported.
    pub(super) fn tell(&self, ends: impl IntoIterator<Item = Settled>) {
        ends.into_iter().for_each(|end| self.handler.settled(end));
    }
}

/// Runs a job and reports its end. Credits see to it that there is a slot; if there is none all the same, the
/// job waits for one.
pub(super) async fn run_job<H: Handler>(
    doing: Arc<Doing<H>>,
    job: AssignedJob,
    lease: Arc<str>,
    lost: CancellationToken,
) {
    let slot = tokio::select! {
        biased;
        // The semaphore is never closed.
        slot = doing.slots.acquire() => slot.ok(),
        () = lost.cancelled() => None,
    };
    let (job_id, attempt, started) = (job.id.clone(), job.attempt, Instant::now());
    let result = if slot.is_some() {
        doing.outbox.started(&lease);
        execute(&doing, job, &lost).await
    } else {
        None
    };
    drop(slot);
    let completion = result.map(|result| completion_of(result, job_id, &lease, attempt, started.elapsed()));
    doing.outbox.finished(&lease, completion);
}

/// Runs the handler; `None` if the server took the job away.
async fn execute<H: Handler>(
    doing: &Arc<Doing<H>>,
    job: AssignedJob,
    lost: &CancellationToken,
) -> Option<Result<Value, JobFailure>> {
    let cancel = CancellationToken::new();
    let limit = job.timeout;
    let wind_up_time = doing.handler.wind_up_time();
    // A task of its own, so that a panic stays there and the handler starts
    // before anything is reported.
    let mut task = AbortOnDropHandle::new(tokio::spawn({
        let (doing, cancel) = (Arc::clone(doing), cancel.clone());
        async move { doing.handler.run(job, cancel).await }
    }));
    let ending = tokio::select! {
        biased;
        result = &mut task => return Some(result.unwrap_or_else(panicked)),
        () = lost.cancelled() => None,
        () = doing.stopping.cancelled() => Some(failure("worker_stopped", "the worker had to stop")),
        limit = expire(limit) => {
            Some(failure("timeout", format!("the job ran longer than {} s", limit.as_secs())))
        }
    };
    cancel.cancel();
    // Whatever the handler still answers, it was too late.
    let _ = tokio::time::timeout(wind_up_time, task).await;
    ending.map(Err)
}

fn completion_of(
    result: Result<Value, JobFailure>,
    job_id: String,
    lease: &str,
    attempt: i32,
    ran: Duration,
) -> JobCompletion {
    let result = result.and_then(encode);
    let mut completion = JobCompletion {
        job_id,
        success: result.is_ok(),
        duration_ms: i64::try_from(ran.as_millis()).unwrap_or(i64::MAX),
        execution_id: lease.to_owned(),
        attempt_number: attempt,
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
