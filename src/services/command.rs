//! Every write as a typed command with a typed answer.
//!
//! On the leader a command is carried out by [`super::leader::Leader`]; on a follower `forward` carries
//! it to the leader. Both implement [`Commands`], so the API never knows. Commands are built to be sent
//! again: ids are chosen where a request arrives, so a second copy finds what the first one did.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::control::{Change, Changed};
use super::error::ServiceError;
use crate::domain::changes::{Cursor, JobChange};
use crate::domain::execution::Usage;
use crate::domain::explain::Outlook;
use crate::domain::idempotency::IdempotencyKey;
use crate::domain::ids::{DeliveryId, JobId, LeaseId, SessionId, WorkerId};
use crate::domain::job::{Job, NewJob};
use crate::domain::matching::Shape;
use crate::domain::payload::Payload;
use crate::domain::queue::Place;
use crate::domain::trace::TraceContext;
use crate::domain::transition::JobEvent;
use crate::domain::worker::{NewWorker, Worker, WorkerStatus};
use crate::security::Caller;

/// A write, or a wait for one.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Command {
    /// Stores jobs, all or none.
    SubmitJobs(Vec<NewJob>),
    /// Stores jobs, all or none, unless the same was submitted under the same key before.
    SubmitOnce(Box<SubmitOnce>),
    /// Lets something happen to a job.
    ApplyEvent(JobId, JobEvent),
    /// Asks who could take a job of this shape.
    Outlook(Shape),
    /// Asks for what was committed after a place, or waits for it.
    ReadChanges(ReadChanges),
    /// Registers a worker; whatever it ran before is lost.
    RegisterWorker(NewWorker),
    /// Keeps a worker alive.
    Heartbeat(Heartbeat),
    /// Collects a job that is assigned to a worker, or waits for one.
    PollJob(PollJob),
    /// Has the leader push assignments to a worker's session.
    Attach(Attach),
    /// Takes what a worker said on its session.
    Hear(Hear),
    /// The session's stream has ended, with these leases of which the worker may know; nothing more is pushed
    /// to it. Leases stay, unless the worker is leaving and cannot know of them.
    Detach(WorkerId, SessionId, Vec<LeaseId>),
    /// Has the group of replicas change what it agrees on.
    Control(Change),
    /// Calls off a page of the jobs that wait in the queue.
    ClearQueue(ClearPage),
    /// Gives a worker nothing new until it registers again.
    DrainWorker(WorkerId),
    /// Takes a worker out of service until it registers again.
    RemoveWorker(WorkerId),
}

/// The answer to the command of the same place.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// What was chosen for each job, in the order of submission.
    SubmitJobs(Vec<Accepted>),
    /// What was chosen, or the jobs that were stored before.
    SubmitOnce(Submitted),
    /// What came of the event.
    ApplyEvent(Applied),
    /// What holds such a job up.
    Outlook(Outlook),
    /// What was committed.
    Changes(Changes),
    /// The worker as registered, and whether it was new.
    RegisterWorker(Box<Worker>, bool),
    /// What waits for the worker and what it no longer holds.
    Heartbeat(HeartbeatAnswer),
    /// The job, if one came in time.
    PollJob(Option<Box<Assignment>>),
    /// Those of the leases that the worker holds which are not live.
    Attach(Vec<(JobId, LeaseId)>),
    /// What came of the message.
    Hear(Heard),
    /// Done, or already so.
    Detach,
    /// What came of the change.
    Control(Changed),
    /// How many were called off, and where to go on.
    ClearQueue(Cleared),
    /// The worker, which is draining.
    DrainWorker(Box<Worker>),
    /// Done, or already so.
    RemoveWorker,
}

/// What the leader chose for a job that it stored; the rest is as submitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accepted {
    /// When it was stored.
    pub submitted_at: DateTime<Utc>,
    /// The worker that took it at once.
    pub assigned_to: Option<WorkerId>,
}

/// A submission under an idempotency key.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SubmitOnce {
    /// The key.
    pub key: IdempotencyKey,
    /// See [`fingerprint`](crate::domain::idempotency::fingerprint).
    pub fingerprint: Vec<u8>,
    /// What to store.
    pub jobs: Vec<NewJob>,
}

/// What came of a submission under an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Submitted {
    /// It was stored now.
    Now(Vec<Accepted>),
    /// The same was submitted before, as these jobs.
    Before(Vec<JobId>),
}

/// What came of an event.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Applied {
    /// The same report had been accepted before; nothing changed now.
    pub repeated: bool,
    /// The job afterwards, for a manual retry and a PATCH.
    pub job: Option<Box<Job>>,
}

/// Asks for changes of jobs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ReadChanges {
    /// Those after this place; all that are kept, if it is not known or not given.
    pub after: Option<Cursor>,
    /// How long to wait for some.
    pub wait: Duration,
}

/// Changes of jobs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Changes {
    /// The place before the first of them: where the question wanted to go on, unless something is missing there.
    pub from: Cursor,
    /// One after the other.
    pub changes: Vec<JobChange>,
    /// The newest of all; more can be read if that is not among them.
    pub head: Cursor,
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
    /// The models that it has loaded.
    pub loaded_models: Vec<String>,
    /// What else it says of itself, if it does.
    #[serde(default)]
    pub metadata: Option<Payload>,
}

/// The answer to a sign of life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeartbeatAnswer {
    /// Jobs that are assigned to the worker and not fetched.
    pub pending_jobs: Vec<JobId>,
    /// Jobs that the worker listed and does not hold.
    pub cancelled_jobs: Vec<JobId>,
    /// The worker gets nothing new until it registers again.
    #[serde(default)]
    pub draining: bool,
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

/// Which jobs to call off: a page of those that wait in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClearPage {
    /// Of one priority, or of all.
    pub priority: Option<u8>,
    /// Only jobs that have waited since then; `None` on the first page, whose answer says it.
    pub until: Option<DateTime<Utc>>,
    /// Where the page before it ended.
    pub after: Option<Place>,
}

/// What came of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cleared {
    /// Jobs that were called off.
    pub cancelled: u64,
    /// When the clearing began.
    pub until: DateTime<Utc>,
    /// Where the next page goes on, if there is one.
    pub after: Option<Place>,
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
    /// Where in which trace the work belongs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<Box<TraceContext>>,
}

/// A session that wants assignments pushed. Sent anew to every new leader.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Attach {
    /// Whose session it is; registered before.
    pub worker_id: WorkerId,
    /// The stream. A newer one of the same worker replaces it.
    pub session: SessionId,
    /// Whether a leader has let this stream in before: then it is not newer than any other.
    #[serde(default)]
    pub renewal: bool,
    /// Leases that the worker holds, or that are on their way to it on this stream. Live leases that it
    /// does not name are pushed again.
    pub held: Vec<(JobId, LeaseId)>,
    /// How the stream's credits stand.
    pub credits: Credits,
    /// Where deliveries go. Filled in where the command reaches the leader.
    #[serde(skip)]
    pub outlet: Outlet,
}

/// Credits of one stream, both counted from its beginning, so that news may arrive twice or out of order.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credits {
    /// Granted by the worker.
    pub granted: u64,
    /// Used up by assignments.
    pub used: u64,
}

/// What a worker said on its session, in one message.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hear {
    /// Who.
    pub worker_id: WorkerId,
    /// On which stream.
    pub session: SessionId,
    /// All credits that it has granted on this stream.
    pub granted: u64,
    /// Its reports, each under its lease.
    pub events: Vec<(JobId, JobEvent)>,
    /// What it says of itself, if it did.
    pub pulse: Option<Pulse>,
}

/// What came of a message on a session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Heard {
    /// What came of each event.
    pub outcomes: Vec<Result<Applied, ServiceError>>,
    /// Whether jobs are pushed to the worker. If not, its session has to be attached anew.
    pub is_attached: bool,
}

/// What a worker says of itself on its session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pulse {
    /// Idle or busy, unhealthy, or offline when it is leaving.
    pub status: WorkerStatus,
    /// Its use of its machine.
    pub usage: Usage,
    /// The models that it has loaded.
    pub loaded_models: Vec<String>,
}

/// What the leader tells a worker's session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// Whose session.
    pub worker_id: WorkerId,
    /// Which stream.
    pub session: SessionId,
    /// What.
    pub news: News,
}

/// The news itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum News {
    /// The worker is to run this; it uses one credit up.
    Assigned(Box<Assignment>),
    /// The lease has ended without the worker.
    Ended(JobId, LeaseId),
    /// A newer stream of the same worker has taken this one's place.
    Replaced,
    /// The worker gets nothing new until it registers again.
    Draining,
    /// The worker was taken out of service.
    Removed,
}

/// Takes deliveries to the sessions of one replica. The number of deliveries that wait is bounded by the
/// credits of its workers.
pub trait Deliver: Send + Sync + 'static {
    /// Passes a delivery on, in order. Must not block, and must not call back. `false` says that nobody takes
    /// it: the way to the replica, or the session, is gone.
    fn deliver(&self, delivery: Delivery) -> bool;
}

/// Where the deliveries of an attached session go.
#[derive(Clone, Default)]
pub enum Outlet {
    /// Nobody takes them.
    #[default]
    Nowhere,
    /// To a session of this replica.
    Here(Arc<dyn Deliver>),
    /// To a session of another replica, by the stream from there.
    Elsewhere(Arc<dyn Deliver>),
}

impl Outlet {
    /// See [`Deliver::deliver`].
    pub fn deliver(&self, delivery: Delivery) -> bool {
        match self {
            Self::Nowhere => false,
            Self::Here(target) | Self::Elsewhere(target) => target.deliver(delivery),
        }
    }
}

impl fmt::Debug for Outlet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nowhere => "Nowhere",
            Self::Here(_) => "Here",
            Self::Elsewhere(_) => "Elsewhere",
        })
    }
}

/// Carries out commands, here or elsewhere.
pub trait Commands: Send + Sync + 'static {
    /// Carries out one command on somebody's behalf. Dropping the future does not undo what was begun.
    fn execute(&self, by: Caller, command: Command) -> BoxFuture<'_, Result<Answer, ServiceError>>;

    /// Names the present way to the leader. Sessions that were attached by another way must be attached
    /// anew.
    fn way(&self) -> u64 {
        0
    }
}

impl Command {
    /// Whether the command may be sent again when nobody knows what came of the first copy. What an
    /// explicit retry or a PATCH did cannot be told from what somebody else did in between, nor can how many jobs
    /// a page had, or who led before a transfer.
    pub fn repeatable(&self) -> bool {
        match self {
            Self::ApplyEvent(_, JobEvent::Retry | JobEvent::Patch(_))
            | Self::Control(Change::Transfer(_))
            | Self::ClearQueue(_) => false,
            Self::SubmitJobs(_)
            | Self::SubmitOnce(_)
            | Self::ApplyEvent(..)
            | Self::Outlook(_)
            | Self::ReadChanges(_)
            | Self::RegisterWorker(_)
            | Self::Heartbeat(_)
            | Self::PollJob(_)
            | Self::Attach(_)
            | Self::Hear(_)
            | Self::Detach(..)
            | Self::Control(_)
            | Self::DrainWorker(_)
            | Self::RemoveWorker(_) => true,
        }
    }

    /// A name for metrics and spans.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SubmitJobs(_) => "submit_jobs",
            Self::SubmitOnce(_) => "submit_once",
            Self::ApplyEvent(..) => "apply_event",
            Self::Outlook(_) => "outlook",
            Self::ReadChanges(_) => "read_changes",
            Self::RegisterWorker(_) => "register_worker",
            Self::Heartbeat(_) => "heartbeat",
            Self::PollJob(_) => "poll_job",
            Self::Attach(_) => "attach",
            Self::Hear(_) => "hear",
            Self::Detach(..) => "detach",
            Self::Control(_) => "control",
            Self::ClearQueue(_) => "clear_queue",
            Self::DrainWorker(_) => "drain_worker",
            Self::RemoveWorker(_) => "remove_worker",
        }
    }
}
