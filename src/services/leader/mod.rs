//! What the leader does with commands, and what its loops do.
//!
//! A [`Leader`] lives from a fenced take-over to the loss of the leadership; nothing in it outlives
//! that. Every write goes through a batcher and a fenced transaction, and every caller is answered after
//! its commit. When a store says that another leader has taken over, or when it is unknown what a commit
//! did, the leader ends itself and `leadership` decides what comes next.

mod apply;
mod backlog;
mod changes;
mod clear;
mod complete;
mod control;
mod direct;
mod dispatch;
mod feed;
mod lanes;
mod once;
mod outlook;
mod promote;
mod queue_metrics;
mod roster;
mod sessions;
mod submit;
mod take_over;
mod traced;
mod upkeep;
mod usage;
mod workers;

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use futures::future::{BoxFuture, ready};
use futures::{FutureExt, TryFutureExt};
use tokio::sync::{Notify, oneshot, watch};

use self::apply::EventItem;
use self::backlog::Backlog;
use self::changes::Announcer;
use self::control::Dispatching;
pub use self::dispatch::RoundError;
use self::feed::Feed;
use self::lanes::Lanes;
use self::once::Keyed;
pub use self::queue_metrics::Recording;
use self::submit::Submission;
pub use self::upkeep::{Pruning, Reconciliation, UpkeepError};
pub use self::usage::UsageGauges;
use self::workers::Fetch;
use super::batcher::{Batcher, Stage};
use super::command::{Answer, Applied, Command, Commands};
use super::control::Control;
use super::error::ServiceError;
use super::fleet::Fleet;
pub use super::fleet::Patience;
use crate::domain::ambient::Ambient;
use crate::domain::ids::JobId;
use crate::domain::job::JobDefaults;
use crate::domain::transition::JobEvent;
use crate::ready_queue::{QueueError, ReadyQueue};
use crate::security::Caller;
use crate::storage::{Database, Fence, FencedTransaction, StorageError};
use crate::telemetry::{Metrics, Tracer};

/// Counter slots of writers that run side by side (see `storage::counters`).
const SUBMISSION_SLOTS: [i16; 2] = [0, 1];
const EVENT_SLOT: i16 = 2;
const ROUND_SLOTS: [i16; 3] = [3, 4, 5];
const PRUNE_SLOT: i16 = 6;
const PROMOTE_SLOT: i16 = 7;

/// Longest transaction as seen from here; PostgreSQL's own limits are shorter, but do not help when its
/// host is gone.
const TRANSACTION_WITHIN: Duration = Duration::from_secs(5);
/// How long PostgreSQL may be away before this replica starts over.
const AWAY_WITHIN: Duration = Duration::from_secs(5);

/// Tries of a transaction that met a passing obstacle.
const TRIES: u32 = 4;

/// What a leader is given.
#[derive(Clone)]
pub struct LeaderParts {
    /// The truth.
    pub database: Database,
    /// The index of what is ready.
    pub queue: ReadyQueue,
    /// What it must show to write.
    pub fence: Fence,
    /// What the replicas agree on.
    pub control: Arc<dyn Control>,
    /// Time, ids and randomness.
    pub ambient: Arc<dyn Ambient>,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
    /// Notes what happens to jobs that are traced.
    pub tracer: Tracer,
    /// What submissions leave open.
    pub defaults: JobDefaults,
    /// `scheduler.worker_timeout`.
    pub worker_timeout: Duration,
    /// How much failing of a worker is borne.
    pub patience: Patience,
    /// `scheduler.batch_size`: most jobs of one scheduling round.
    pub batch_size: usize,
    /// `queue.max_queue_size`: most jobs that wait or are being stored; 0 means any number.
    pub max_queue_size: u64,
    /// `scheduler.enabled`: whether jobs are given to workers.
    pub scheduling: bool,
}

/// Why a leader ended itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// A store has seen a newer leader.
    Fenced,
    /// What is in memory cannot be trusted: it is unknown what a commit did, PostgreSQL has been away for
    /// long, or Redis knows a higher epoch, about which PostgreSQL must decide.
    Unsure,
    /// The leadership is over.
    Over,
}

/// What hastens the loops.
#[derive(Default)]
pub struct Nudges {
    /// Work or a slot may have come.
    pub schedule: Notify,
    /// A retry may be due.
    pub promote: Notify,
    /// The ready queue may lack something.
    pub reconcile: Notify,
}

/// A leadership in force.
pub struct Leader {
    core: Arc<Core>,
    submissions: Batcher<Submission>,
    keys: Batcher<Keyed>,
    events: Batcher<EventItem>,
    fetches: Batcher<Fetch>,
    stage: Stage,
}

/// What the parts of a leader share.
struct Core {
    parts: LeaderParts,
    fleet: std::sync::Mutex<Fleet>,
    /// Held by those who take workers in, and alone by who drains or removes one, so that PostgreSQL and the
    /// fleet agree about what came last.
    roster: tokio::sync::RwLock<()>,
    nudges: Nudges,
    feed: Feed,
    /// Locked before the fleet where both are.
    backlog: std::sync::Mutex<Backlog>,
    /// Rounds of the scheduler that are being committed.
    rounds: Lanes,
    /// Rounds and direct placements, from the look at what is paused to the commit.
    dispatching: Dispatching,
    /// Something could not be told to the ready queue.
    queue_lacks: AtomicBool,
    /// A claim found less in the ready queue than was told to it.
    loss_suspected: AtomicBool,
    /// The ready queue was taken over and is not being rebuilt: the backlog has every shape of which jobs wait.
    queue_known: AtomicBool,
    /// Jobs that wait, by the counters and what was added since.
    waiting: AtomicI64,
    /// Jobs that are being stored.
    arriving: Arc<AtomicU64>,
    /// When the next retry is due.
    next_due: std::sync::Mutex<Option<Instant>>,
    /// When PostgreSQL began not to answer.
    away_since: std::sync::Mutex<Option<Instant>>,
    /// What was committed, for those who follow it.
    changes: Announcer,
    end: watch::Sender<Option<End>>,
}

impl Leader {
    /// Starts the batchers of a leader that has taken over.
    fn start(core: Arc<Core>, stage: &Stage, feed: feed::Tail) -> Arc<Self> {
        let sizes = |name: &str| core.parts.metrics.batch_size.with_label_values(&[name]);
        feed.start(&core, stage, &sizes("ready_queue"));
        let events = apply::start(&core, stage, &sizes("event"));
        let keys = once::start(&core, stage, &sizes("key"));
        let fetches = workers::start(&core, stage, &sizes("fetch"));
        Arc::new_cyclic(|leader| {
            let submissions = submit::start(leader, stage, &sizes("submission"));
            Self { submissions, keys, events, fetches, stage: stage.clone(), core: Arc::clone(&core) }
        })
    }

    /// Becomes `Some` when the leader ends itself.
    pub fn ended(&self) -> watch::Receiver<Option<End>> {
        self.core.end.subscribe()
    }

    /// Sends waiting calls away: the leadership is over. What is being committed still is.
    pub fn dismiss(&self) {
        self.core.end(End::Over);
    }

    /// What hastens the loops.
    pub fn nudges(&self) -> &Nudges {
        &self.core.nudges
    }

    /// Lets something happen to a job and waits for the commit.
    async fn apply(&self, job: JobId, event: JobEvent) -> Result<Applied, ServiceError> {
        let (reply, answer) = oneshot::channel();
        self.push_event(job, event, Some(reply))?;
        answer.await.unwrap_or(Err(ServiceError::OutcomeUnknown))
    }

    /// The same without waiting: a loop looks again if it comes to nothing.
    fn push_event(
        &self,
        job: JobId,
        event: JobEvent,
        reply: Option<oneshot::Sender<Result<Applied, ServiceError>>>,
    ) -> Result<(), ServiceError> {
        let item = EventItem { job, event, reply };
        let bytes = item.bytes();
        self.events.push(item, bytes)
    }
}

impl Commands for Leader {
    /// Each command has a future of its own, no larger than it needs.
    fn execute(&self, by: Caller, command: Command) -> BoxFuture<'_, Result<Answer, ServiceError>> {
        if self.core.end.borrow().is_some() {
            return ready(Err(ServiceError::NoLeader)).boxed();
        }
        match command {
            Command::SubmitJobs(jobs) => self.submit(jobs).map_ok(Answer::SubmitJobs).boxed(),
            Command::SubmitOnce(submission) => {
                self.submit_once(*submission).map_ok(Answer::SubmitOnce).boxed()
            }
            Command::ApplyEvent(job, event) => {
                async move { self.take_event(&by, job, event).await.map(Answer::ApplyEvent) }.boxed()
            }
            Command::Outlook(shape) => ready(Ok(Answer::Outlook(self.outlook(&shape)))).boxed(),
            Command::ReadChanges(wanted) => self.read_changes(wanted).map_ok(Answer::Changes).boxed(),
            Command::RegisterWorker(new) => async move {
                let (worker, created) = self.register(&by, new).await?;
                Ok(Answer::RegisterWorker(Box::new(worker), created))
            }
            .boxed(),
            Command::Heartbeat(heartbeat) => {
                async move { self.heartbeat(&by, heartbeat).await.map(Answer::Heartbeat) }.boxed()
            }
            Command::PollJob(poll) => async move { self.poll(&by, poll).await.map(Answer::PollJob) }.boxed(),
            Command::Attach(attach) => {
                async move { self.attach(&by, attach).await.map(Answer::Attach) }.boxed()
            }
            Command::Hear(hear) => async move { self.hear(&by, hear).await.map(Answer::Hear) }.boxed(),
            Command::Detach(worker, session, held) => {
                self.detach(worker, session, held);
                ready(Ok(Answer::Detach)).boxed()
            }
            Command::Control(change) => self.control(change).map_ok(Answer::Control).boxed(),
            Command::ClearQueue(page) => self.clear_page(page).map_ok(Answer::ClearQueue).boxed(),
            Command::DrainWorker(worker) => async move {
                let worker = self.drain(worker).await?;
                Ok(Answer::DrainWorker(Box::new(worker)))
            }
            .boxed(),
            Command::RemoveWorker(worker) => self.remove(worker).map_ok(|()| Answer::RemoveWorker).boxed(),
        }
    }
}

impl Core {
    fn now(&self) -> Instant {
        self.parts.ambient.instant()
    }

    fn fleet(&self) -> std::sync::MutexGuard<'_, Fleet> {
        self.fleet.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether jobs that wait are in the backlog. If not, one that comes now might overtake them.
    fn knows_who_waits(&self) -> bool {
        // A suspicion first: it ends only once the queue is not known any more.
        !self.loss_suspected.load(Ordering::Acquire)
            && self.queue_known.load(Ordering::Acquire)
            && !self.queue_lacks.load(Ordering::Acquire)
    }

    fn backlog(&self) -> std::sync::MutexGuard<'_, Backlog> {
        self.backlog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the leadership; the first reason stands. Answers whether it is this one.
    fn end(&self, reason: End) -> bool {
        self.end.send_if_modified(|end| {
            let first = end.is_none();
            if first {
                *end = Some(reason);
            }
            first
        })
    }

    /// Draws the consequences of a failed transaction.
    fn note_failure(&self, error: &StorageError) {
        match error {
            StorageError::Fenced | StorageError::ForeignCluster(_) => {
                self.parts.metrics.fenced_writes.inc();
                if self.end(End::Fenced) {
                    tracing::warn!(epoch = %self.parts.fence.epoch, "PostgreSQL fenced a write off; this replica stops leading.");
                }
            }
            StorageError::OutcomeUnknown(cause) => {
                tracing::warn!(%cause, "The outcome of a commit is unknown; the leader starts over from PostgreSQL.");
                self.end(End::Unsure);
            }
            StorageError::Unavailable(_) => {
                let now = self.now();
                let mut since = self.away_since.lock().unwrap_or_else(PoisonError::into_inner);
                if now.duration_since(*since.get_or_insert(now)) >= AWAY_WITHIN {
                    tracing::warn!(
                        "PostgreSQL has been away for long; the leader starts over or hands over."
                    );
                    self.end(End::Unsure);
                }
            }
            StorageError::Rejected(_)
            | StorageError::Unexpected(_)
            | StorageError::PageTooLarge
            | StorageError::Url(_)
            | StorageError::TooOld { .. } => {}
        }
    }

    /// Draws the consequences of a failed operation on the ready queue.
    fn note_queue_failure(&self, error: &QueueError) {
        match error {
            QueueError::Fenced { stored } => {
                self.parts.metrics.fenced_writes.inc();
                tracing::warn!(epoch = %self.parts.fence.epoch, stored, "Redis fenced a write off; PostgreSQL decides who leads.");
                self.end(End::Unsure);
            }
            QueueError::Unavailable(_)
            | QueueError::TooOld { .. }
            | QueueError::Protocol(_)
            | QueueError::Config(_) => {
                self.queue_lacks.store(true, Ordering::Release);
            }
        }
    }

    /// Runs a fenced transaction, and runs it again when it meets a passing obstacle. `run` begins and
    /// commits by itself, with [`Self::begin`]; one that fails on the way is rolled back.
    async fn transaction<T, F, Fut>(&self, name: &'static str, mut run: F) -> Result<T, StorageError>
    where
        F: FnMut() -> Fut + Send,
        Fut: Future<Output = Result<T, StorageError>> + Send,
    {
        let timer = self.parts.metrics.transaction.with_label_values(&[name]).start_timer();
        let mut tries = 1;
        let result = loop {
            // A leadership that has ended itself begins nothing, whatever still waits. No store has fenced
            // this off, so it does not count as such.
            if self.end.borrow().is_some_and(|end| end != End::Over) {
                return Err(StorageError::Fenced);
            }
            let attempt = tokio::time::timeout(TRANSACTION_WITHIN, run());
            match attempt.await.unwrap_or_else(|_| Err(StorageError::timed_out())) {
                Err(error) if error.retryable() && tries < TRIES && self.end.borrow().is_none() => {
                    tracing::debug!(name, %error, tries, "A transaction is tried again.");
                    let pause = f64::from(5 << tries) * (0.5 + self.parts.ambient.unit());
                    tokio::time::sleep(Duration::from_secs_f64(pause / 1000.0)).await;
                    tries += 1;
                }
                result => break result,
            }
        };
        timer.observe_duration();
        match &result {
            Err(error) => self.note_failure(error),
            Ok(_) => drop(self.away_since.lock().unwrap_or_else(PoisonError::into_inner).take()),
        }
        result
    }

    async fn begin(&self) -> Result<FencedTransaction, StorageError> {
        self.parts.database.begin(self.parts.fence).await
    }
}
