//! The leader's picture of workers and leases, in memory.
//!
//! It can always be rebuilt from PostgreSQL and decides nothing by itself: a lease is granted or ended
//! only after the transaction that says so has committed. Time is the leader's monotonic clock; whether
//! a worker is lost is judged again by the database's.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::command::{Assignment, Heartbeat, HeartbeatAnswer};
use crate::domain::execution::Usage;
use crate::domain::ids::{DeliveryId, JobId, LeaseId, WorkerId};
use crate::domain::matching::Capabilities;
use crate::domain::placement::{self, Candidate, Group};
use crate::domain::worker::{Worker, WorkerStatus};
use crate::storage::{LiveLease, Vitals};

/// How long an assigned job may wait to be fetched.
pub const FETCH_WITHIN: Duration = Duration::from_secs(30);
/// How long after a fetch a worker that lists its jobs may leave the job out before it counts as lost
/// on the way.
const LISTED_WITHIN: Duration = Duration::from_secs(3);

/// All workers that are not offline, and all live leases.
#[derive(Default)]
pub struct Fleet {
    workers: HashMap<WorkerId, FleetWorker>,
    leases: HashMap<LeaseId, FleetLease>,
}

struct FleetWorker {
    capabilities: Capabilities,
    slots: u32,
    /// Silence after which the worker is lost.
    limit: Duration,
    last_heard: Instant,
    /// Never lost before this: the grace after a failover.
    grace_until: Instant,
    health: Health,
    usage: Usage,
    /// Has told, at least once, which jobs it holds.
    lists_jobs: bool,
    /// Has waited for a job with a call.
    long_polls: bool,
    leases: HashSet<LeaseId>,
    /// Slots taken by assignments that are being committed.
    reserved: u32,
    /// Leases whose job nobody has fetched, oldest first.
    unfetched: VecDeque<LeaseId>,
    /// `PollJob` calls that wait, oldest first.
    pollers: VecDeque<Poller>,
    /// Something that PostgreSQL should be told.
    changed: bool,
}

/// What a worker says of itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Health {
    Well,
    Unhealthy,
    /// It takes nothing new and is about to leave.
    Draining,
}

struct FleetLease {
    job_id: JobId,
    worker_id: WorkerId,
    running: bool,
    granted: Instant,
    /// The call that fetched the job, and when.
    fetched: Option<(DeliveryId, Instant)>,
    /// What the worker needs, until it has fetched it.
    assignment: Option<Box<Assignment>>,
}

/// A `PollJob` call that waits for a job.
pub struct Poller {
    /// Names the call.
    pub delivery: DeliveryId,
    reply: oneshot::Sender<Box<Assignment>>,
}

/// What a `PollJob` call finds.
pub enum Polled {
    /// The worker is not known here.
    Unknown,
    /// The same call was answered before, with this lease.
    Again(LeaseId),
    /// This lease waits to be fetched; it is reserved for the call.
    Fetch(LeaseId),
    /// Nothing yet; a job may come this way. Closed without one, it says that it is time to poll again.
    Wait(oneshot::Receiver<Box<Assignment>>),
}

/// Timing of a worker: how long it may be silent.
pub fn silence_limit(worker_timeout: Duration, heartbeat_interval: Duration) -> Duration {
    worker_timeout.min(heartbeat_interval * 3)
}

impl Fleet {
    /// Takes a worker in, or takes its new registration over. Its leases stay until they are ended.
    pub fn admit(&mut self, worker: &Worker, worker_timeout: Duration, heard: Instant, now: Instant) {
        let interval = Duration::from_secs(worker.heartbeat_interval_seconds.into());
        let members = serde_json::from_str(worker.capabilities.as_str()).unwrap_or_default();
        let capabilities = Capabilities::from_json(&members).unwrap_or(Capabilities {
            models: None,
            gpu: false,
            memory_mib: None,
        });
        let limit = silence_limit(worker_timeout, interval);
        let entry = self.workers.entry(worker.id).or_insert_with(|| FleetWorker {
            capabilities: capabilities.clone(),
            slots: worker.max_concurrent_jobs,
            limit,
            last_heard: heard,
            grace_until: now + interval.min(limit),
            health: Health::Well,
            usage: Usage::default(),
            lists_jobs: false,
            long_polls: false,
            leases: HashSet::new(),
            reserved: 0,
            unfetched: VecDeque::new(),
            pollers: VecDeque::new(),
            changed: true,
        });
        entry.capabilities = capabilities;
        entry.slots = worker.max_concurrent_jobs;
        entry.limit = limit;
        entry.last_heard = heard;
        entry.health = Health::Well;
        entry.lists_jobs = false;
        entry.long_polls = false;
        // Those were made by a process that is gone.
        entry.pollers.clear();
    }

    /// Takes in a lease that a former leader granted; its worker gets the full time to fetch the job.
    pub fn adopt(&mut self, live: &LiveLease, now: Instant) {
        let Some(worker) = self.workers.get_mut(&live.worker_id) else { return };
        worker.leases.insert(live.lease);
        let fetched = live.delivery.map(|delivery| (delivery, now));
        if fetched.is_none() && !live.running {
            worker.unfetched.push_back(live.lease);
        }
        self.leases.insert(
            live.lease,
            FleetLease {
                job_id: live.job_id,
                worker_id: live.worker_id,
                running: live.running,
                granted: now,
                fetched,
                assignment: None,
            },
        );
    }

    /// Whether the worker is known and online.
    pub fn knows(&self, worker: WorkerId) -> bool {
        self.workers.contains_key(&worker)
    }

    /// Notes a sign of life.
    pub fn touch(&mut self, worker: WorkerId, now: Instant) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.last_heard = now;
            worker.changed = true;
        }
    }

    /// Groups of workers with free slots.
    pub fn groups(&self) -> Vec<Group> {
        placement::group(self.workers.iter().map(|(id, worker)| Candidate {
            worker: *id,
            capabilities: &worker.capabilities,
            free: worker.assignable(),
            waits: worker.waits(),
        }))
    }

    /// Reserves a slot for an assignment that is about to be committed, and the call that waits for it,
    /// if one does. `None` if the worker cannot take the job any more.
    #[expect(clippy::option_option, reason = "no slot, a slot, or a slot and a call")]
    pub fn reserve(&mut self, worker: WorkerId) -> Option<Option<Poller>> {
        let worker = self.workers.get_mut(&worker).filter(|worker| worker.free() > 0)?;
        worker.reserved += 1;
        while let Some(poller) = worker.pollers.pop_front() {
            if !poller.reply.is_closed() {
                return Some(Some(poller));
            }
        }
        Some(None)
    }

    /// The assignment did not come about. A call that waited for it goes on waiting.
    pub fn unreserve(&mut self, worker: WorkerId, poller: Option<Poller>) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.reserved = worker.reserved.saturating_sub(1);
            worker.pollers.extend(poller);
        }
    }

    /// The assignment was committed: hands it to the call that waits, or keeps it to be fetched. `false`
    /// if the worker has gone meanwhile: the lease must be ended.
    #[must_use]
    pub fn grant(&mut self, assignment: Assignment, poller: Option<Poller>, now: Instant) -> bool {
        let (id, worker_id, job_id) = (assignment.lease, assignment.worker_id, assignment.job_id);
        let delivery = poller.as_ref().map(|poller| poller.delivery);
        let unsent = match poller {
            None => Some(Box::new(assignment)),
            Some(poller) => poller.reply.send(Box::new(assignment)).err(),
        };
        let Some(worker) = self.workers.get_mut(&worker_id) else { return false };
        worker.reserved = worker.reserved.saturating_sub(1);
        worker.leases.insert(id);
        worker.changed = true;
        let fetched = delivery.filter(|_| unsent.is_none()).map(|delivery| (delivery, now));
        if fetched.is_none() {
            worker.unfetched.push_back(id);
            worker.wake_pollers();
        }
        let lease =
            FleetLease { job_id, worker_id, running: false, granted: now, fetched, assignment: unsent };
        self.leases.insert(id, lease);
        true
    }

    /// The lease has ended.
    pub fn release(&mut self, lease: LeaseId) {
        let Some(ended) = self.leases.remove(&lease) else { return };
        if let Some(worker) = self.workers.get_mut(&ended.worker_id) {
            worker.leases.remove(&lease);
            worker.unfetched.retain(|waiting| *waiting != lease);
            worker.changed = true;
        }
    }

    /// The holder said that the job runs.
    pub fn mark_running(&mut self, lease: LeaseId) {
        if let Some(lease) = self.leases.get_mut(&lease) {
            lease.running = true;
            lease.assignment = None;
        }
    }

    /// What a `PollJob` call finds; `waits` says whether it is ready to wait for a job.
    pub fn poll(&mut self, id: WorkerId, delivery: DeliveryId, waits: bool, now: Instant) -> Polled {
        let Some(worker) = self.workers.get_mut(&id) else { return Polled::Unknown };
        worker.last_heard = now;
        worker.changed = true;
        if worker.health == Health::Draining {
            worker.health = Health::Well;
        }
        let again = worker.leases.iter().find(|lease| {
            let fetched = self.leases.get(lease).and_then(|lease| lease.fetched);
            fetched.is_some_and(|(by, _)| by == delivery)
        });
        if let Some(lease) = again {
            return Polled::Again(*lease);
        }
        if let Some(lease) = worker.unfetched.pop_front() {
            return Polled::Fetch(lease);
        }
        worker.pollers.retain(|poller| poller.delivery != delivery && !poller.reply.is_closed());
        worker.long_polls |= waits;
        let (reply, receiver) = oneshot::channel();
        worker.pollers.push_back(Poller { delivery, reply });
        Polled::Wait(receiver)
    }

    /// Ends the wait of a call. `false` if a job is already on its way to it.
    pub fn stop_waiting(&mut self, id: WorkerId, delivery: DeliveryId) -> bool {
        let Some(worker) = self.workers.get_mut(&id) else { return true };
        let before = worker.pollers.len();
        worker.pollers.retain(|poller| poller.delivery != delivery);
        worker.pollers.len() < before
    }

    /// The fetch was committed. Answers what the worker needs, if it is still in memory.
    pub fn fetched(&mut self, lease: LeaseId, by: DeliveryId, now: Instant) -> Option<Box<Assignment>> {
        let lease = self.leases.get_mut(&lease)?;
        lease.fetched = Some((by, now));
        lease.assignment.take()
    }

    /// The fetch did not come about.
    pub fn unfetch(&mut self, id: LeaseId) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        lease.fetched = None;
        if let Some(worker) = self.workers.get_mut(&lease.worker_id)
            && !worker.unfetched.contains(&id)
        {
            worker.unfetched.push_front(id);
            worker.wake_pollers();
        }
    }

    /// Takes a heartbeat. The second part are leases that the worker shows it does not have, although
    /// their job was sent to it, or will not fetch because it is leaving.
    pub fn heartbeat(
        &mut self,
        heartbeat: &Heartbeat,
        now: Instant,
    ) -> Option<(HeartbeatAnswer, Vec<(JobId, LeaseId)>)> {
        let worker = self.workers.get_mut(&heartbeat.worker_id)?;
        worker.last_heard = now;
        worker.changed = true;
        worker.usage = heartbeat.usage;
        worker.lists_jobs |= !heartbeat.current_jobs.is_empty();
        worker.health = match heartbeat.status {
            WorkerStatus::Idle | WorkerStatus::Busy => Health::Well,
            WorkerStatus::Unhealthy => Health::Unhealthy,
            WorkerStatus::Offline => Health::Draining,
        };
        let listed: HashSet<JobId> = heartbeat.current_jobs.iter().copied().collect();
        let patience = if worker.lists_jobs { LISTED_WITHIN } else { FETCH_WITHIN };
        let says_less = worker.lists_jobs || (heartbeat.current_job_count as usize) < worker.leases.len();
        let mut held = HashSet::new();
        let mut given_back = Vec::new();
        for id in &worker.leases {
            let Some(lease) = self.leases.get(id) else { continue };
            held.insert(lease.job_id);
            let unknown_to_worker = !lease.running
                && says_less
                && !listed.contains(&lease.job_id)
                && lease.fetched.is_some_and(|(_, at)| now.duration_since(at) >= patience);
            let never_fetched = worker.health == Health::Draining && lease.fetched.is_none();
            if unknown_to_worker || never_fetched {
                given_back.push((lease.job_id, *id));
            }
        }
        let pending = worker.unfetched.iter().filter_map(|id| self.leases.get(id));
        let answer = HeartbeatAnswer {
            pending_jobs: pending.map(|lease| lease.job_id).collect(),
            cancelled_jobs: heartbeat
                .current_jobs
                .iter()
                .copied()
                .filter(|job| !held.contains(job))
                .collect(),
        };
        Some((answer, given_back))
    }

    /// Leases whose job was not fetched in time.
    pub fn unfetched(&self, now: Instant) -> Vec<(JobId, LeaseId)> {
        let late = |lease: &FleetLease| {
            lease.fetched.is_none() && !lease.running && now.duration_since(lease.granted) >= FETCH_WITHIN
        };
        let leases = self.leases.iter().filter(|(_, lease)| late(lease));
        leases.map(|(id, lease)| (lease.job_id, *id)).collect()
    }

    /// Workers that were silent for too long, with their limit.
    pub fn silent(&self, now: Instant) -> Vec<(WorkerId, Duration)> {
        let silent = |worker: &FleetWorker| {
            now >= worker.grace_until && now.duration_since(worker.last_heard) >= worker.limit
        };
        self.workers
            .iter()
            .filter(|(_, worker)| silent(worker))
            .map(|(id, worker)| (*id, worker.limit))
            .collect()
    }

    /// The leases of a worker.
    pub fn leases_of(&self, worker: WorkerId) -> Vec<(JobId, LeaseId)> {
        let leases = self.workers.get(&worker).map(|worker| &worker.leases);
        let leases = leases.into_iter().flatten();
        leases.filter_map(|id| Some((self.leases.get(id)?.job_id, *id))).collect()
    }

    /// The worker has gone offline. Answers how many leases it leaves behind as orphans.
    pub fn remove(&mut self, worker: WorkerId) -> usize {
        self.workers.remove(&worker).map_or(0, |worker| worker.leases.len())
    }

    /// Leases whose worker has gone, or has come back without them.
    pub fn orphans(&self) -> Vec<(JobId, LeaseId)> {
        let held = |id: &LeaseId, lease: &FleetLease| {
            self.workers.get(&lease.worker_id).is_some_and(|worker| worker.leases.contains(id))
        };
        let orphans = self.leases.iter().filter(|(id, lease)| !held(id, lease));
        orphans.map(|(id, lease)| (lease.job_id, *id)).collect()
    }

    /// What PostgreSQL should be told of workers that were heard since the last time.
    pub fn take_vitals(&mut self, now: Instant) -> Vec<Vitals> {
        let mut vitals = Vec::new();
        for (id, worker) in self.workers.iter_mut().filter(|(_, worker)| worker.changed) {
            worker.changed = false;
            vitals.push(Vitals {
                worker_id: *id,
                status: worker.status(),
                current_job_count: u32::try_from(worker.leases.len()).unwrap_or(u32::MAX),
                silent_for: now.duration_since(worker.last_heard),
                usage: worker.usage,
            });
        }
        vitals.sort_by_key(|vitals| vitals.worker_id);
        vitals
    }

    /// The vitals could not be written; they are due again.
    pub fn keep_vitals(&mut self, vitals: &[Vitals]) {
        for vitals in vitals {
            if let Some(worker) = self.workers.get_mut(&vitals.worker_id) {
                worker.changed = true;
            }
        }
    }

    /// How many workers there are in each state.
    pub fn count_by_status(&self) -> HashMap<WorkerStatus, i64> {
        let mut counts: HashMap<_, _> = WorkerStatus::ALL.into_iter().map(|status| (status, 0)).collect();
        for worker in self.workers.values() {
            *counts.entry(worker.status()).or_default() += 1;
        }
        counts
    }
}

impl FleetWorker {
    /// Slots to offer. A worker that long-polls and has no call open is likely to be gone, or will be
    /// back in a moment.
    fn assignable(&self) -> u32 {
        if self.long_polls && !self.waits() { 0 } else { self.free() }
    }

    /// Whether a call of its waits for a job.
    fn waits(&self) -> bool {
        self.pollers.iter().any(|poller| !poller.reply.is_closed())
    }

    /// Has the calls that wait look again: a job is there to be fetched that was on its way to none of
    /// them. All of them, because one alone might go away before it has looked.
    fn wake_pollers(&mut self) {
        self.pollers.clear();
    }

    fn free(&self) -> u32 {
        let taken = u32::try_from(self.leases.len()).unwrap_or(u32::MAX).saturating_add(self.reserved);
        if self.health == Health::Well { self.slots.saturating_sub(taken) } else { 0 }
    }

    fn status(&self) -> WorkerStatus {
        match self.health {
            Health::Draining => WorkerStatus::Offline,
            Health::Unhealthy => WorkerStatus::Unhealthy,
            Health::Well if self.free() == 0 => WorkerStatus::Busy,
            Health::Well => WorkerStatus::Idle,
        }
    }
}

#[cfg(test)]
#[path = "fleet_tests.rs"]
mod tests;
