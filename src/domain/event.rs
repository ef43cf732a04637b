//! What can happen to a job, and why nothing may come of it. What it does to the job is decided in
//! [`super::transition`].

use serde::{Deserialize, Serialize};

use super::execution::Usage;
use super::ids::{LeaseId, WorkerId};
use super::job::JobStatus;
use super::payload::Payload;

/// Why an attempt failed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// For people.
    pub message: String,
    /// For programmers.
    pub stack: Option<String>,
    /// For retry policies; at most 50 characters.
    pub code: Option<String>,
}

/// Who reports, and under which lease. Without a token the worker's current lease on the job is meant, if it is that of
/// this attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Reporter {
    pub worker_id: WorkerId,
    pub lease: Option<LeaseId>,
    #[serde(default)]
    pub attempt_number: Option<u32>,
}

/// A change that somebody outside asks for with PATCH.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of the specification's JobUpdate")]
pub struct JobPatch {
    pub status: Option<JobStatus>,
    pub output_data: Option<Payload>,
    pub error_message: Option<String>,
    pub error_stack: Option<String>,
    pub execution_duration_ms: Option<i64>,
    pub assigned_worker_id: Option<WorkerId>,
}

/// Something that happens to a job.
#[expect(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum JobEvent {
    /// The holder says that it runs the job.
    Started { by: Reporter, usage: Usage },
    /// The holder hands the job back.
    Rejected { by: Reporter, message: String },
    /// The holder reports success.
    Completed { by: Reporter, output: Option<Payload>, duration_ms: Option<i64>, usage: Usage },
    /// The holder reports failure.
    Failed { by: Reporter, failure: Failure, duration_ms: Option<i64>, usage: Usage },
    /// The deadline may have passed: of a lease, or of a job that is driven from outside.
    DeadlinePassed { lease: Option<LeaseId> },
    /// The holder went silent or registered again.
    WorkerLost { lease: LeaseId },
    /// An operator took the holder out of service.
    WorkerRemoved { lease: LeaseId },
    /// The holder did not fetch the job in time.
    NotFetched { lease: LeaseId },
    /// A client calls the job off.
    Cancel,
    /// A client empties the queue: the job is called off if it still waits there.
    Clear,
    /// A client wants it tried again now.
    Retry,
    /// A client drives the job itself.
    Patch(JobPatch),
    /// The retry time may have come.
    Due,
}

/// Why an event changed nothing.
#[expect(missing_docs, reason = "the names say it")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The reporter holds no current lease on the job.
    NotHolder,
    /// The reporter's lease has run out, though nobody has taken the job back yet.
    LeaseExpired,
    /// The state machine does not allow it; the text says what was tried.
    Illegal { from: JobStatus, action: &'static str },
    /// A worker holds the job, so it cannot be driven from outside.
    HeldByWorker(WorkerId),
}
