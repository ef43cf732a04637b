//! The leader's picture of workers and leases, in memory.
//!
//! It can always be rebuilt from PostgreSQL and decides nothing by itself: a lease is granted or ended
//! only after the transaction that says so has committed. Time is the leader's monotonic clock; whether
//! a worker is lost is judged again by the database's.

mod outlook;
mod polls;
mod sessions;
mod trust;
mod upkeep;
mod worker;

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

pub use self::polls::Polled;
pub use self::trust::Patience;
use self::trust::Trust;
pub use self::worker::Poller;
use self::worker::{FleetLease, FleetWorker, Reached, Way};
use super::command::{Assignment, News};
use crate::domain::ids::{JobId, LeaseId, WorkerId};
use crate::domain::placement::Pool;
use crate::domain::worker::Worker;
use crate::security::Caller;
use crate::storage::LiveLease;

/// How long an assigned job may wait to be fetched.
pub const FETCH_WITHIN: Duration = Duration::from_secs(30);

/// All workers that are not offline, and all live leases.
#[derive(Default)]
pub struct Fleet {
    workers: HashMap<WorkerId, FleetWorker>,
    leases: HashMap<LeaseId, FleetLease>,
    /// Slots that are reserved on workers that have gone since, and may come back before the commit.
    reserved_on_gone: HashMap<WorkerId, u32>,
    pool: Pool,
    patience: Patience,
}

/// Timing of a worker: how long it may be silent.
pub fn silence_limit(worker_timeout: Duration, heartbeat_interval: Duration) -> Duration {
    worker_timeout.min(heartbeat_interval * 3)
}

impl Fleet {
    /// Nobody yet.
    pub fn new(patience: Patience) -> Self {
        Self { patience, ..Self::default() }
    }

    /// Takes a worker in that is registered and has not been heard of by this leader. It gets nothing before it is.
    pub fn recall(&mut self, worker: &Worker, worker_timeout: Duration, heard: Instant, now: Instant) {
        self.admit(worker, worker_timeout, heard, now);
        if let Some(worker) = self.workers.get_mut(&worker.id) {
            worker.way = Way::Nowhere;
        }
        self.refresh(worker.id);
    }

    /// Takes a worker in, or takes its new registration over. Its leases stay until they are ended.
    pub fn admit(&mut self, worker: &Worker, worker_timeout: Duration, heard: Instant, now: Instant) {
        let interval = Duration::from_secs(worker.heartbeat_interval_seconds.into());
        let limit = silence_limit(worker_timeout, interval);
        let entry =
            self.workers.entry(worker.id).or_insert_with(|| FleetWorker::new(now + interval.min(limit)));
        entry.reserved += self.reserved_on_gone.remove(&worker.id).unwrap_or(0);
        let failures = u32::try_from(worker.consecutive_failures).unwrap_or(u32::MAX);
        entry.register(worker, limit, heard, Trust::after(failures, self.patience, now));
        self.refresh(worker.id);
    }

    /// Takes in a lease that a former leader granted; its worker gets the full time to fetch the job.
    pub fn adopt(&mut self, live: &LiveLease, now: Instant) {
        let Some(worker) = self.workers.get_mut(&live.worker_id) else { return };
        worker.leases.insert(live.lease);
        let reached = live.delivery.map_or(Reached::Not, |delivery| Reached::Fetched(delivery, now));
        if reached == Reached::Not && !live.running {
            worker.unfetched.push_back(live.lease);
        }
        self.leases.insert(
            live.lease,
            FleetLease {
                job_id: live.job_id,
                worker_id: live.worker_id,
                running: live.running,
                granted: now,
                timeout: Duration::from_secs(live.timeout_seconds.into()),
                deadline: now + Duration::from_secs_f64(live.expires_in.max(0.0)),
                reached,
                assignment: None,
            },
        );
        self.refresh(live.worker_id);
    }

    /// Whether the worker is known and online.
    pub fn knows(&self, worker: WorkerId) -> bool {
        self.workers.contains_key(&worker)
    }

    /// Whether the worker is the caller's; nothing if it is not known.
    pub fn owned(&self, worker: WorkerId, by: &Caller) -> Option<bool> {
        self.workers.get(&worker).map(|worker| by.owns(worker.owner.as_deref()))
    }

    /// Notes a sign of life.
    pub fn touch(&mut self, worker: WorkerId, now: Instant) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.last_heard = now;
            worker.changed = true;
        }
    }

    /// Free slots, and who is best to take one from.
    pub fn pool(&mut self) -> &mut Pool {
        &mut self.pool
    }

    /// Reserves a slot for an assignment that is about to be committed, and the call that waits for it,
    /// if one does. `None` if the worker cannot take the job any more.
    #[expect(clippy::option_option, reason = "no slot, a slot, or a slot and a call")]
    pub fn reserve(&mut self, id: WorkerId) -> Option<Option<Poller>> {
        let reserved = self.workers.get_mut(&id)?.reserve();
        self.refresh(id);
        reserved
    }

    /// The assignment did not come about. A call that waited for it goes on waiting.
    pub fn unreserve(&mut self, id: WorkerId, poller: Option<Poller>) {
        self.settle(id);
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.give_back(poller);
            self.refresh(id);
        }
    }

    /// The assignment was committed: pushes it to the session, hands it to the call that waits, or keeps
    /// it to be fetched. `false` if the worker has gone or is drained meanwhile: the lease must be ended. Until it is,
    /// it is an orphan.
    #[must_use]
    pub fn grant(&mut self, assignment: Assignment, poller: Option<Poller>, now: Instant) -> bool {
        let (id, worker_id) = (assignment.lease, assignment.worker_id);
        let timeout = Duration::from_secs(assignment.timeout_seconds.into());
        let mut lease = FleetLease {
            job_id: assignment.job_id,
            worker_id,
            running: false,
            granted: now,
            timeout,
            deadline: now + timeout + FETCH_WITHIN,
            reached: Reached::Not,
            assignment: None,
        };
        self.settle(worker_id);
        let Some(worker) = self.workers.get_mut(&worker_id).filter(|worker| !worker.draining) else {
            self.leases.insert(id, lease);
            return false;
        };
        worker.leases.insert(id);
        worker.trust.granted(id);
        worker.changed = true;
        let assignment = Box::new(assignment);
        let sent = match poller {
            Some(poller) => poller.reply.send(assignment).map(|()| Reached::Fetched(poller.delivery, now)),
            None => Err(assignment),
        };
        let sent = sent.or_else(|assignment| worker.push(assignment).map(|()| Reached::Pushed));
        match sent {
            Ok(reached) => lease.reached = reached,
            Err(assignment) => {
                worker.unfetched.push_back(id);
                worker.wake_pollers();
                lease.assignment = Some(assignment);
            }
        }
        self.leases.insert(id, lease);
        self.refresh(worker_id);
        true
    }

    /// Whether a lease is of this job, and of this worker where one is named.
    pub fn is_lease_of(&self, id: LeaseId, job: JobId, worker: Option<WorkerId>) -> bool {
        let lease = self.leases.get(&id).filter(|lease| lease.job_id == job);
        lease.is_some_and(|lease| worker.is_none_or(|worker| lease.worker_id == worker))
    }

    /// The lease has ended, by its holder's report or without it.
    pub fn release(&mut self, id: LeaseId, by_holder: bool) {
        let Some(ended) = self.leases.remove(&id) else { return };
        if let Some(worker) = self.workers.get_mut(&ended.worker_id) {
            worker.leases.remove(&id);
            worker.trust.released(id);
            worker.unfetched.retain(|waiting| *waiting != id);
            worker.changed = true;
            if !by_holder {
                self.tell(ended.worker_id, News::Ended(ended.job_id, id));
            }
            self.refresh(ended.worker_id);
        }
    }

    /// The lease has ended with its holder's report of success.
    pub fn complete(&mut self, id: LeaseId) {
        if let Some(holder) = self.leases.get(&id).map(|lease| lease.worker_id) {
            self.note_success(holder);
        }
        self.release(id, true);
    }

    /// The holder said that the job runs.
    pub fn mark_running(&mut self, id: LeaseId, now: Instant) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.running = true;
            lease.deadline = now + lease.timeout;
            lease.assignment = None;
            if let Some(worker) = self.workers.get_mut(&lease.worker_id) {
                worker.unfetched.retain(|waiting| *waiting != id);
            }
        }
    }

    /// Whether the holder has said that the job runs.
    pub fn is_running(&self, lease: LeaseId) -> bool {
        self.leases.get(&lease).is_some_and(|lease| lease.running)
    }

    /// Leases that seem to have run out; the database's clock decides.
    pub fn overdue(&self, now: Instant) -> Vec<(JobId, LeaseId)> {
        let leases = self.leases.iter().filter(|(_, lease)| lease.deadline <= now);
        leases.map(|(id, lease)| (lease.job_id, *id)).collect()
    }

    /// Leases whose job was not fetched in time, or will not be, because the worker is leaving.
    pub fn unfetched(&self, now: Instant) -> Vec<(JobId, LeaseId)> {
        let leaving = |id| self.workers.get(&id).is_some_and(FleetWorker::is_leaving);
        let late = |lease: &FleetLease| {
            lease.reached == Reached::Not
                && !lease.running
                && (now.duration_since(lease.granted) >= FETCH_WITHIN || leaving(lease.worker_id))
        };
        let leases = self.leases.iter().filter(|(_, lease)| late(lease));
        leases.map(|(id, lease)| (lease.job_id, *id)).collect()
    }

    /// The leases of a worker.
    pub fn leases_of(&self, worker: WorkerId) -> Vec<(JobId, LeaseId)> {
        let leases = self.workers.get(&worker).map(|worker| &worker.leases);
        let leases = leases.into_iter().flatten();
        leases.filter_map(|id| Some((self.leases.get(id)?.job_id, *id))).collect()
    }

    /// The worker gets nothing new until it registers again. Answers leases that have not reached it.
    pub fn drain(&mut self, id: WorkerId) -> Vec<(JobId, LeaseId)> {
        let Some(worker) = self.workers.get_mut(&id) else { return Vec::new() };
        worker.draining = true;
        worker.changed = true;
        self.tell(id, News::Draining);
        self.refresh(id);
        self.left_behind(id)
    }

    /// The worker is taken out of service: its session is told that its leases end, and ends. Answers the leases,
    /// which are orphans now.
    pub fn dismiss(&mut self, id: WorkerId) -> Vec<(JobId, LeaseId)> {
        let leases = self.leases_of(id);
        for (job, lease) in &leases {
            self.tell(id, News::Ended(*job, *lease));
        }
        self.tell(id, News::Removed);
        self.remove(id);
        leases
    }

    /// The worker has gone offline. Answers how many leases it leaves behind as orphans.
    pub fn remove(&mut self, worker: WorkerId) -> usize {
        self.pool.remove(worker);
        let Some(gone) = self.workers.remove(&worker) else { return 0 };
        if gone.reserved > 0 {
            self.reserved_on_gone.insert(worker, gone.reserved);
        }
        gone.leases.len()
    }

    /// Leases whose worker has gone, or has come back without them.
    pub fn orphans(&self) -> Vec<(JobId, LeaseId)> {
        let held = |id: &LeaseId, lease: &FleetLease| {
            self.workers.get(&lease.worker_id).is_some_and(|worker| worker.leases.contains(id))
        };
        let orphans = self.leases.iter().filter(|(id, lease)| !held(id, lease));
        orphans.map(|(id, lease)| (lease.job_id, *id)).collect()
    }

    /// An assignment is not on its way any more.
    fn settle(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.reserved = worker.reserved.saturating_sub(1);
        } else if let Entry::Occupied(mut reserved) = self.reserved_on_gone.entry(id) {
            *reserved.get_mut() -= 1;
            if *reserved.get() == 0 {
                reserved.remove();
            }
        }
    }

    /// Tells placement what has changed of a worker.
    fn refresh(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get(&id) {
            self.pool.put(&worker.candidate(id));
        }
    }
}

#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
