//! Every write as a typed command with a typed answer.
//!
//! On the leader a command is carried out by [`super::leader::Leader`]; on a follower `forward` carries
//! it to the leader. Both implement [`Commands`], so the API never knows. Commands are built to be sent
//! again: ids are chosen where a request arrives, so a second copy finds what the first one did.

use std::time::Duration;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::error::ServiceError;
use crate::domain::execution::Usage;
use crate::domain::ids::{DeliveryId, JobId, LeaseId, WorkerId};
use crate::domain::job::{Job, NewJob};
use crate::domain::payload::Payload;
use crate::domain::transition::JobEvent;
use crate::domain::worker::{NewWorker, Worker, WorkerStatus};

/// A write, or a wait for one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Command {
    /// Stores jobs, all or none.
    SubmitJobs(Vec<NewJob>),
    /// Lets something happen to a job.
    ApplyEvent(JobId, JobEvent),
    /// Registers a worker; whatever it ran before is lost.
    RegisterWorker(NewWorker),
    /// Keeps a worker alive.
    Heartbeat(Heartbeat),
    /// Collects a job that is assigned to a worker, or waits for one.
    PollJob(PollJob),
}

/// The answer to the command of the same place.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// The jobs as accepted, in the order of submission.
    SubmitJobs(Vec<Job>),
    /// What came of the event.
    ApplyEvent(Applied),
    /// The worker as registered, and whether it was new.
    RegisterWorker(Box<Worker>, bool),
    /// What waits for the worker and what it no longer holds.
    Heartbeat(HeartbeatAnswer),
    /// The job, if one came in time.
    PollJob(Option<Box<Assignment>>),
}

/// What came of an event.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Applied {
    /// The same report had been accepted before; nothing changed now.
    pub repeated: bool,
    /// The job afterwards, for a manual retry and a PATCH.
    pub job: Option<Box<Job>>,
}

/// A sign of life.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Who.
    pub worker_id: WorkerId,
    /// What it says of itself.
    pub status: WorkerStatus,
    /// How many jobs it holds by its own count.
    pub current_job_count: u32,
    /// The jobs that it holds, when it lists them.
    pub current_jobs: Vec<JobId>,
    /// Its use of its machine.
    pub usage: Usage,
}

/// The answer to a sign of life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAnswer {
    /// Jobs that are assigned to the worker and not fetched.
    pub pending_jobs: Vec<JobId>,
    /// Jobs that the worker listed and does not hold.
    pub cancelled_jobs: Vec<JobId>,
}

/// A worker asks for a job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PollJob {
    /// Who.
    pub worker_id: WorkerId,
    /// Names this call, so that it can be sent again without fetching a second job.
    pub delivery: DeliveryId,
    /// How long to wait for a job.
    pub wait: Duration,
}

/// A job on its way to its worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the columns of the specification's tables")]
pub struct Assignment {
    pub lease: LeaseId,
    pub attempt_number: u32,
    pub worker_id: WorkerId,
    pub job_id: JobId,
    pub job_name: String,
    pub model_name: String,
    pub model_version: String,
    pub input_data: Payload,
    pub timeout_seconds: u32,
}

/// Carries out commands, here or elsewhere.
pub trait Commands: Send + Sync + 'static {
    /// Carries out one command. Dropping the future does not undo what was begun.
    fn execute(&self, command: Command) -> BoxFuture<'_, Result<Answer, ServiceError>>;
}

impl Command {
    /// Whether the command may be sent again when nobody knows what came of the first copy. What an
    /// explicit retry or a PATCH did cannot be told from what somebody else did in between.
    pub fn repeatable(&self) -> bool {
        match self {
            Self::ApplyEvent(_, JobEvent::Retry | JobEvent::Patch(_)) => false,
            Self::SubmitJobs(_)
            | Self::ApplyEvent(..)
            | Self::RegisterWorker(_)
            | Self::Heartbeat(_)
            | Self::PollJob(_) => true,
        }
    }

    /// A name for metrics and spans.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SubmitJobs(_) => "submit_jobs",
            Self::ApplyEvent(..) => "apply_event",
            Self::RegisterWorker(_) => "register_worker",
            Self::Heartbeat(_) => "heartbeat",
            Self::PollJob(_) => "poll_job",
        }
    }
}
