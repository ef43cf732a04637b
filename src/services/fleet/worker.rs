//! One worker and one lease, as the leader knows them.

use std::collections::{BTreeSet, HashSet, VecDeque};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::trust::Trust;
use crate::domain::execution::Usage;
use crate::domain::ids::{DeliveryId, JobId, LeaseId, SessionId, WorkerId};
use crate::domain::matching::Capabilities;
use crate::domain::payload::Payload;
use crate::domain::placement::Candidate;
use crate::domain::worker::{Worker, WorkerStatus};
use crate::services::command::{Assignment, Credits, Delivery, News, Outlet};

/// A worker that is not offline.
pub(super) struct FleetWorker {
    /// Who has registered it, where that is known.
    pub owner: Option<String>,
    /// Its hostname and port.
    pub address: String,
    pub capabilities: Capabilities,
    pub slots: u32,
    /// Silence after which the worker is lost.
    pub limit: Duration,
    pub last_heard: Instant,
    /// Never lost before this: the grace after a failover.
    pub grace_until: Instant,
    pub health: Health,
    /// What its failures have led to.
    pub trust: Trust,
    /// An operator wants it to get nothing new.
    pub draining: bool,
    pub usage: Usage,
    /// What else it says of itself; `None` if it has said nothing to this leader yet.
    pub metadata: Option<Payload>,
    pub loaded_models: BTreeSet<String>,
    /// Has told, at least once, which jobs it holds.
    pub lists_jobs: bool,
    pub leases: HashSet<LeaseId>,
    /// Slots taken by assignments that are being committed.
    pub reserved: u32,
    /// Leases whose job has not reached the worker, oldest first.
    pub unfetched: VecDeque<LeaseId>,
    pub way: Way,
    /// Something that PostgreSQL should be told.
    pub changed: bool,
}

/// How jobs reach a worker.
pub(super) enum Way {
    /// It fetches them.
    Polls(Polls),
    /// They are pushed.
    Session(Attached),
    /// Its session has ended, or this leader has not heard of it yet: it is about to show itself, or gone.
    Nowhere,
}

/// Calls of a worker that polls.
#[derive(Default)]
pub(super) struct Polls {
    /// `PollJob` calls that wait, oldest first.
    pub pollers: VecDeque<Poller>,
    /// Has waited for a job with a call.
    pub long: bool,
}

/// A `PollJob` call that waits for a job.
pub struct Poller {
    /// Names the call.
    pub delivery: DeliveryId,
    pub(super) reply: oneshot::Sender<Box<Assignment>>,
}

/// A session in force.
pub(super) struct Attached {
    pub session: SessionId,
    pub outlet: Outlet,
    pub credits: Credits,
}

/// What a worker says of itself.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Health {
    Well,
    Unhealthy,
    /// It says that it takes nothing new and is about to leave.
    Draining,
}

/// A live lease.
pub(super) struct FleetLease {
    pub job_id: JobId,
    pub worker_id: WorkerId,
    pub running: bool,
    pub granted: Instant,
    /// How long an attempt may run.
    pub timeout: Duration,
    /// When the lease runs out, as far as this clock knows.
    pub deadline: Instant,
    pub reached: Reached,
    /// What the worker needs, until it has it.
    pub assignment: Option<Box<Assignment>>,
}

/// Whether a job has reached its worker.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    Not,
    /// This call fetched it, at this time.
    Fetched(DeliveryId, Instant),
    /// It was pushed to the session, which accounts for it.
    Pushed,
}

impl Default for Way {
    fn default() -> Self {
        Self::Polls(Polls::default())
    }
}

impl From<WorkerStatus> for Health {
    fn from(status: WorkerStatus) -> Self {
        match status {
            WorkerStatus::Idle | WorkerStatus::Busy => Self::Well,
            WorkerStatus::Unhealthy => Self::Unhealthy,
            WorkerStatus::Offline => Self::Draining,
        }
    }
}

impl FleetWorker {
    pub(super) fn new(grace_until: Instant) -> Self {
        Self {
            owner: None,
            address: String::new(),
            capabilities: Capabilities { models: None, gpu: false, memory_mib: None },
            slots: 0,
            limit: Duration::ZERO,
            last_heard: grace_until,
            grace_until,
            health: Health::Well,
            trust: Trust::default(),
            draining: false,
            usage: Usage::default(),
            metadata: None,
            loaded_models: BTreeSet::new(),
            lists_jobs: false,
            leases: HashSet::new(),
            reserved: 0,
            unfetched: VecDeque::new(),
            way: Way::default(),
            changed: true,
        }
    }

    /// Takes a registration over.
    pub(super) fn register(&mut self, worker: &Worker, limit: Duration, heard: Instant, trust: Trust) {
        let members = serde_json::from_str(worker.capabilities.as_str()).unwrap_or_default();
        if let Ok(capabilities) = Capabilities::from_json(&members) {
            self.capabilities = capabilities;
        }
        self.owner.clone_from(&worker.owner);
        self.address = format!("{}:{}", worker.hostname, worker.port);
        self.slots = worker.max_concurrent_jobs;
        self.draining = worker.draining;
        self.trust = trust;
        self.limit = limit;
        self.last_heard = heard;
        self.health = Health::Well;
        self.changed = true;
        self.lists_jobs = false;
        self.loaded_models.clear();
        // Its calls and its session were made by a process that is gone.
        if let Way::Session(attached) = std::mem::take(&mut self.way) {
            attached.replaced(worker.id);
        }
    }

    /// As placement sees it.
    pub(super) fn candidate(&self, worker: WorkerId) -> Candidate<'_> {
        Candidate {
            worker,
            capabilities: &self.capabilities,
            free: self.assignable(),
            waits: self.waits(),
            near: self.is_near(),
            loaded_models: &self.loaded_models,
        }
    }

    /// Slots to offer. A worker that long-polls and has no call open is likely to be gone, or will be
    /// back in a moment.
    pub(super) fn assignable(&self) -> u32 {
        match &self.way {
            Way::Polls(polls) if polls.long && !self.waits() => 0,
            Way::Polls(_) => self.free(),
            Way::Session(attached) => self.free().min(attached.credit(self.reserved)),
            Way::Nowhere => 0,
        }
    }

    /// Whether a call of its waits for a job.
    fn waits(&self) -> bool {
        match &self.way {
            Way::Polls(polls) => polls.pollers.iter().any(|poller| !poller.reply.is_closed()),
            Way::Session(_) | Way::Nowhere => false,
        }
    }

    /// Whether its session is one of this replica.
    fn is_near(&self) -> bool {
        matches!(&self.way, Way::Session(Attached { outlet: Outlet::Here(_), .. }))
    }

    /// Slots that nothing runs in, whether or not it may be given more.
    pub(super) fn vacant(&self) -> u32 {
        let taken = u32::try_from(self.leases.len()).unwrap_or(u32::MAX).saturating_add(self.reserved);
        self.slots.saturating_sub(taken)
    }

    /// Slots that it may be given jobs for.
    pub(super) fn free(&self) -> u32 {
        if self.health != Health::Well || self.draining {
            return 0;
        }
        self.trust.allows(self.vacant(), self.reserved)
    }

    /// It takes nothing new, so what has not reached it is for others.
    pub(super) fn is_leaving(&self) -> bool {
        self.health == Health::Draining || self.draining
    }

    /// Reserves a slot, and the call that waits for it, if one does.
    #[expect(clippy::option_option, reason = "no slot, a slot, or a slot and a call")]
    pub(super) fn reserve(&mut self) -> Option<Option<Poller>> {
        // A call may have gone away since the worker was chosen; the job then waits to be fetched.
        let room = if matches!(self.way, Way::Polls(_)) { self.free() } else { self.assignable() };
        if room == 0 {
            return None;
        }
        self.reserved += 1;
        let Way::Polls(polls) = &mut self.way else { return Some(None) };
        while let Some(poller) = polls.pollers.pop_front() {
            if !poller.reply.is_closed() {
                return Some(Some(poller));
            }
        }
        Some(None)
    }

    /// Gives a reserved call back.
    pub(super) fn give_back(&mut self, poller: Option<Poller>) {
        if let Way::Polls(polls) = &mut self.way {
            polls.pollers.extend(poller);
        }
    }

    /// Pushes an assignment to the session. Gives it back if there is none that takes it.
    pub(super) fn push(&mut self, assignment: Box<Assignment>) -> Result<(), Box<Assignment>> {
        let Way::Session(attached) = &mut self.way else { return Err(assignment) };
        let worker_id = assignment.worker_id;
        // Kept only where the session turns out to be gone, which is rare.
        let copy = assignment.clone();
        if attached.tell(worker_id, News::Assigned(assignment)) {
            attached.credits.used += 1;
            return Ok(());
        }
        self.way = Way::Nowhere;
        Err(copy)
    }

    /// Has the calls that wait look again: a job is there to be fetched that was on its way to none of
    /// them. All of them, because one alone might go away before it has looked.
    pub(super) fn wake_pollers(&mut self) {
        if let Way::Polls(polls) = &mut self.way {
            polls.pollers.clear();
        }
    }

    pub(super) fn status(&self) -> WorkerStatus {
        match self.health {
            Health::Draining => WorkerStatus::Offline,
            Health::Unhealthy => WorkerStatus::Unhealthy,
            Health::Well if !self.trust.is_whole() => WorkerStatus::Unhealthy,
            Health::Well if self.vacant() == 0 => WorkerStatus::Busy,
            Health::Well => WorkerStatus::Idle,
        }
    }
}

impl Attached {
    fn credit(&self, reserved: u32) -> u32 {
        let left = self.credits.granted.saturating_sub(self.credits.used);
        u32::try_from(left).unwrap_or(u32::MAX).saturating_sub(reserved)
    }

    pub(super) fn tell(&self, worker_id: WorkerId, news: News) -> bool {
        self.outlet.deliver(Delivery { worker_id, session: self.session, news })
    }

    pub(super) fn replaced(&self, worker_id: WorkerId) {
        self.tell(worker_id, News::Replaced);
    }
}
