//! Workers that poll: who waits for a job, and who fetches one.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::worker::{FleetLease, Health, Poller, Polls, Reached, Way};
use super::{FETCH_WITHIN, Fleet};
use crate::domain::ids::{DeliveryId, JobId, LeaseId, WorkerId};
use crate::services::command::{Assignment, Heartbeat, HeartbeatAnswer};

/// How long after a fetch a worker that lists its jobs may leave the job out before it counts as lost
/// on the way.
pub(super) const LISTED_WITHIN: Duration = Duration::from_secs(3);

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

impl Fleet {
    /// What a `PollJob` call finds; `waits` says whether it is ready to wait for a job.
    pub fn poll(&mut self, id: WorkerId, delivery: DeliveryId, waits: bool, now: Instant) -> Polled {
        let Some(worker) = self.workers.get_mut(&id) else { return Polled::Unknown };
        worker.last_heard = now;
        worker.changed = true;
        if worker.health == Health::Draining {
            worker.health = Health::Well;
            self.pool.put(&worker.candidate(id));
        }
        let again = worker.leases.iter().find(|lease| {
            let reached = self.leases.get(lease).map(|lease| lease.reached);
            matches!(reached, Some(Reached::Fetched(by, _)) if by == delivery)
        });
        if let Some(lease) = again {
            return Polled::Again(*lease);
        }
        if let Some(lease) = worker.unfetched.pop_front() {
            return Polled::Fetch(lease);
        }
        if !matches!(worker.way, Way::Polls(_)) {
            worker.way = Way::default();
        }
        let (reply, receiver) = oneshot::channel();
        if let Way::Polls(Polls { pollers, long }) = &mut worker.way {
            pollers.retain(|poller| poller.delivery != delivery && !poller.reply.is_closed());
            *long |= waits;
            pollers.push_back(Poller { delivery, reply });
        }
        self.refresh(id);
        Polled::Wait(receiver)
    }

    /// Ends the wait of a call. `false` if a job is already on its way to it.
    pub fn stop_waiting(&mut self, id: WorkerId, delivery: DeliveryId) -> bool {
        let Some(worker) = self.workers.get_mut(&id) else { return true };
        let Way::Polls(polls) = &mut worker.way else { return false };
        let before = polls.pollers.len();
        polls.pollers.retain(|poller| poller.delivery != delivery);
        let stopped = polls.pollers.len() < before;
        self.refresh(id);
        stopped
    }

    /// The fetch was committed. Answers what the worker needs, if it is still in memory.
    pub fn fetched(&mut self, id: LeaseId, by: DeliveryId, now: Instant) -> Option<Box<Assignment>> {
        let lease = self.leases.get_mut(&id)?;
        lease.reached = Reached::Fetched(by, now);
        if let Some(worker) = self.workers.get_mut(&lease.worker_id) {
            // A session may have put it back meanwhile.
            worker.unfetched.retain(|waiting| *waiting != id);
        }
        lease.assignment.take()
    }

    /// The fetch did not come about. The job may have reached the worker on another way meanwhile.
    pub fn unfetch(&mut self, id: LeaseId) {
        let waits = |lease: &&FleetLease| lease.reached == Reached::Not && !lease.running;
        let Some(lease) = self.leases.get(&id).filter(waits) else { return };
        let worker_id = lease.worker_id;
        if let Some(worker) = self.workers.get_mut(&worker_id)
            && worker.leases.contains(&id)
            && !worker.unfetched.contains(&id)
        {
            worker.unfetched.push_front(id);
            worker.wake_pollers();
            self.refresh(worker_id);
        }
    }

    /// Takes a heartbeat. The second part are leases that the worker shows it does not have, although
    /// their job was sent to it, or will not fetch because it is leaving.
    pub fn heartbeat(
        &mut self,
        heartbeat: &Heartbeat,
        now: Instant,
    ) -> Option<(HeartbeatAnswer, Vec<(JobId, LeaseId)>)> {
        let id = heartbeat.worker_id;
        let worker = self.workers.get_mut(&id)?;
        worker.last_heard = now;
        worker.changed = true;
        worker.usage = heartbeat.usage;
        if matches!(worker.way, Way::Nowhere) {
            worker.way = Way::default();
        }
        match &heartbeat.metadata {
            Some(metadata) => worker.metadata = Some(metadata.clone()),
            None => drop(worker.metadata.get_or_insert_default()),
        }
        worker.loaded_models = heartbeat.loaded_models.iter().cloned().collect();
        worker.lists_jobs |= !heartbeat.current_jobs.is_empty();
        worker.health = heartbeat.status.into();
        let listed: HashSet<JobId> = heartbeat.current_jobs.iter().copied().collect();
        let patience = if worker.lists_jobs { LISTED_WITHIN } else { FETCH_WITHIN };
        let says_less = worker.lists_jobs || (heartbeat.current_job_count as usize) < worker.leases.len();
        let mut held = HashSet::new();
        let mut given_back = Vec::new();
        for id in &worker.leases {
            let Some(lease) = self.leases.get(id) else { continue };
            held.insert(lease.job_id);
            let sent_long_ago =
                matches!(lease.reached, Reached::Fetched(_, at) if now.duration_since(at) >= patience);
            let unknown_to_worker =
                !lease.running && says_less && !listed.contains(&lease.job_id) && sent_long_ago;
            let never_fetched = worker.is_leaving() && lease.reached == Reached::Not && !lease.running;
            if unknown_to_worker || never_fetched {
                given_back.push((lease.job_id, *id));
            }
        }
        let pending = worker.unfetched.iter().filter_map(|id| self.leases.get(id));
        let answer = HeartbeatAnswer {
            draining: worker.draining,
            pending_jobs: pending.map(|lease| lease.job_id).collect(),
            cancelled_jobs: heartbeat
                .current_jobs
                .iter()
                .copied()
                .filter(|job| !held.contains(job))
                .collect(),
        };
        self.refresh(id);
        Some((answer, given_back))
    }
}
