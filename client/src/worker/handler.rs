//! What a user of the worker runtime implements.

use std::{fmt, future::Future, time::Duration};

use bytes::Bytes;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::Settled;
use crate::proto::PollJobResponse;

/// Runs jobs. One handler serves all slots of a worker at once.
pub trait Handler: Send + Sync + 'static {
    /// Runs one job and answers its output, a JSON object.
    ///
    /// `cancel` fires when the job was cancelled, has passed its timeout or the
    /// worker must stop at once. From then on nothing that the handler answers
    /// counts as success; it has [`wind_up_time`](Self::wind_up_time) to clean
    /// up, then its future is dropped. A panic fails the job with the error code
    /// `panic`.
    fn run(
        &self,
        job: AssignedJob,
        cancel: CancellationToken,
    ) -> impl Future<Output = Result<Value, JobFailure>> + Send;

    /// The models that are loaded at this moment, by default none. Jobs for them are given to this worker
    /// before jobs that would have to load theirs first. At most 100 are reported, with every heartbeat.
    fn loaded_models(&self) -> Vec<String> {
        Vec::new()
    }

    /// How long a job may go on after `cancel` fired, by default 10 s.
    fn wind_up_time(&self) -> Duration {
        Duration::from_secs(10)
    }

    /// Hears what became of a job's end, once for each that was reported; does nothing by default.
    ///
    /// Here, and not in [`run`](Self::run), is the place for what must happen outside at most once for a job: only
    /// one attempt's success is ever [acknowledged](Settled::is_completed). A worker that dies before it hears of
    /// it leaves that undone; the job's state says what is owed. Not reported is a job that the server took away
    /// while it ran.
    ///
    /// The session waits meanwhile: hand on what takes long. All is said before the worker's run returns, and
    /// nothing after it was dropped.
    fn settled(&self, end: Settled) {
        drop(end);
    }
}

/// A job that was handed to this worker.
#[derive(Debug, Clone)]
pub struct AssignedJob {
    /// The job's id.
    pub id: String,
    /// The job's name.
    pub name: String,
    /// What to run.
    pub model_name: String,
    /// Which version of it.
    pub model_version: String,
    /// A JSON object in UTF-8, as it came; see [`input`](Self::input).
    pub input_data: Bytes,
    /// How long the job may run; `None` without a limit.
    pub timeout: Option<Duration>,
    /// The lease token; empty if the server sends none.
    pub execution_id: String,
    /// From 1.
    pub attempt: i32,
    /// Where in which trace the attempt belongs, as the W3C header of that name; empty where the job is not traced.
    /// Spans of the handler belong under it.
    pub traceparent: String,
    /// The header of that name.
    pub tracestate: String,
}

impl AssignedJob {
    /// The input as a JSON value.
    ///
    /// # Errors
    /// A failure with the error code `bad_input`.
    pub fn input(&self) -> Result<Value, JobFailure> {
        serde_json::from_slice(&self.input_data)
            .map_err(|e| JobFailure::new(format!("the input is not JSON: {e}")).with_code("bad_input"))
    }

    /// The job of an answer, if it has one.
    pub(crate) fn from_answer(answer: PollJobResponse) -> Option<Self> {
        answer.has_job.then(|| Self {
            id: answer.job_id,
            name: answer.job_name,
            model_name: answer.model_name,
            model_version: answer.model_version,
            input_data: answer.input_data,
            timeout: u64::try_from(answer.timeout_seconds)
                .ok()
                .filter(|&seconds| seconds > 0)
                .map(Duration::from_secs),
            execution_id: answer.execution_id,
            attempt: answer.attempt_number,
            traceparent: answer.traceparent,
            tracestate: answer.tracestate,
        })
    }
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFailure {
    /// For people.
    pub message: String,
    /// For retry policies, at most 50 characters.
    pub code: Option<String>,
    /// Where it happened.
    pub stack: Option<String>,
}

impl JobFailure {
    /// A failure without a code.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: None, stack: None }
    }

    /// With an error code that retry policies may refer to.
    pub fn with_code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// With a stack trace.
    pub fn with_stack(mut self, stack: impl Into<String>) -> Self {
        self.stack = Some(stack.into());
        self
    }
}

impl fmt::Display for JobFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.code {
            Some(code) => write!(f, "{} [{code}]", self.message),
            None => f.write_str(&self.message),
        }
    }
}

impl std::error::Error for JobFailure {}
