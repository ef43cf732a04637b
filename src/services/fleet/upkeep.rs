//! What is looked at from time to time: who was heard, who was not, and who fares how.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use super::Fleet;
use super::worker::FleetWorker;
use crate::domain::execution::Usage;
use crate::domain::ids::WorkerId;
use crate::domain::worker::WorkerStatus;
use crate::storage::Vitals;

impl Fleet {
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

    /// An attempt of the worker's has failed.
    pub fn note_failure(&mut self, id: WorkerId, now: Instant) {
        if let Some(worker) = self.workers.get_mut(&id) {
            let was_whole = worker.trust.is_whole();
            worker.trust.note_failure(self.patience, now);
            worker.changed = true;
            if was_whole && !worker.trust.is_whole() {
                tracing::warn!(worker_id = %id, "A worker failed too often in a row; it gets nothing new for a while.");
            }
            self.refresh(id);
        }
    }

    /// An attempt of the worker's has ended well.
    pub fn note_success(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(&id).filter(|worker| !worker.trust.is_spotless()) {
            if !worker.trust.is_whole() {
                tracing::info!(worker_id = %id, "A worker that had failed too often does well again.");
            }
            worker.trust.note_success();
            worker.changed = true;
            self.refresh(id);
        }
    }

    /// Lets workers that have rested be tried again. Answers whether there are any.
    pub fn end_rests(&mut self, now: Instant) -> bool {
        let rested = |(id, worker): (&WorkerId, &mut FleetWorker)| worker.trust.end_rest(now).then_some(*id);
        let rested: Vec<WorkerId> = self.workers.iter_mut().filter_map(rested).collect();
        rested.iter().for_each(|id| self.refresh(*id));
        !rested.is_empty()
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
                metadata: worker.metadata.clone(),
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

    /// What workers say of their machines, by their hostname and port.
    pub fn usage_by_worker(&self) -> BTreeMap<String, Usage> {
        let said = self.workers.values().filter(|worker| worker.usage != Usage::default());
        said.map(|worker| (worker.address.clone(), worker.usage)).collect()
    }
}
