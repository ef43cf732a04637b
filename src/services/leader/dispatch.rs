//! One round of scheduling: free slots, the best jobs for them, one transaction.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use super::feed::FeedItem;
use super::{Core, DISPATCH_SLOT, Leader, SHAPE_KEPT};
use crate::domain::ids::{JobId, LeaseId, WorkerId};
use crate::domain::placement::{self, Group};
use crate::domain::transition::JobEvent;
use crate::ready_queue::{self, MAX_CLAIM, Offer, QueueError};
use crate::services::command::Assignment;
use crate::services::crash;
use crate::services::fleet::{FETCH_WITHIN, Poller};
use crate::storage::{Claim, StorageError, Taken};

/// Why a round came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    /// The ready queue failed.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// PostgreSQL failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
}

/// A claimed job on its way to a worker.
struct Placed {
    claim: Claim,
    poller: Option<Poller>,
}

impl Leader {
    /// Gives waiting jobs to free workers. Answers how many were tried, which includes those that turned
    /// out to wait no more; zero when there was nothing to do.
    pub async fn schedule_round(&self) -> Result<usize, RoundError> {
        let core = &self.core;
        let mut groups = core.fleet().groups();
        let offers = core.offers(&groups);
        if offers.is_empty() {
            return Ok(0);
        }
        let timer = core.parts.metrics.scheduling_duration.start_timer();
        let free: usize = groups.iter().map(|group| group.free_slots() as usize).sum();
        let most = free.min(core.parts.batch_size).min(MAX_CLAIM);
        let slots: Vec<_> =
            groups.iter().map(|group| ready_queue::Group { free_slots: group.free_slots() }).collect();
        let claimed = core.parts.queue.claim(core.parts.fence.epoch, most, &slots, &offers).await;
        let claims = claimed.inspect_err(|error| core.note_queue_failure(error))?;
        crash::point("claimed");
        core.forget_empty_shapes(&offers, &claims, &slots, claims.len() < most);
        for claim in &claims {
            let priority = claim.priority.to_string();
            core.parts.metrics.jobs_dequeued.with_label_values(&[&priority]).inc();
        }
        let placed = core.place(&claims, &mut groups).await;
        let count = placed.len();
        self.assign(&claims, placed).await?;
        timer.observe_duration();
        Ok(count)
    }

    async fn assign(&self, claims: &[ready_queue::Claim], placed: Vec<Placed>) -> Result<(), RoundError> {
        if placed.is_empty() {
            return Ok(());
        }
        let core = &self.core;
        let wanted: Vec<Claim> = placed.iter().map(|placed| placed.claim).collect();
        let fetch_seconds = i32::try_from(FETCH_WITHIN.as_secs()).unwrap_or(i32::MAX);
        let assigned = core
            .transaction("assign_jobs", || async {
                let mut transaction = core.begin().await?;
                let taken = transaction.assign_jobs(DISPATCH_SLOT, &wanted, fetch_seconds).await?;
                transaction.commit().await.map(|()| taken)
            })
            .await;
        match assigned {
            Ok(taken) => {
                crash::point("assigned");
                self.hand_over(claims, placed, taken);
                Ok(())
            }
            Err(error) => {
                let jobs: Vec<JobId> = wanted.iter().map(|claim| claim.job_id).collect();
                for placed in placed {
                    core.fleet().unreserve(placed.claim.worker_id, placed.poller);
                }
                // Where it is unknown what the commit did, reconcile decides about the claims.
                if error.retryable() {
                    core.put_back(&jobs).await;
                }
                Err(error.into())
            }
        }
    }

    /// After the commit: leases into the fleet, jobs to those who wait for them. Claimed jobs that were
    /// not taken were no longer queued.
    fn hand_over(&self, claims: &[ready_queue::Claim], placed: Vec<Placed>, taken: Vec<Taken>) {
        let core = &self.core;
        let now = core.now();
        let priorities: HashMap<JobId, u8> =
            claims.iter().map(|claim| (claim.job_id, claim.priority)).collect();
        let mut taken: HashMap<LeaseId, Taken> = taken.into_iter().map(|job| (job.lease, job)).collect();
        let count = i64::try_from(taken.len()).unwrap_or(0);
        core.waiting.fetch_sub(count, Ordering::Relaxed);
        for Placed { claim, poller } in placed {
            core.feed(FeedItem::Settle(claim.job_id));
            let Some(job) = taken.remove(&claim.lease) else {
                core.fleet().unreserve(claim.worker_id, poller);
                continue;
            };
            core.count_assignment(&job, priorities.get(&claim.job_id).copied().unwrap_or_default());
            let granted = core.fleet().grant(assignment(job), poller, now);
            if !granted {
                let lost = JobEvent::WorkerLost { lease: claim.lease };
                if self.push_event(claim.job_id, lost, None).is_err() {
                    core.end(super::End::Unsure);
                }
            }
        }
    }
}

impl Core {
    /// Shapes with jobs that some free worker can take.
    fn offers(&self, groups: &[Group]) -> Vec<Offer> {
        if groups.is_empty() {
            return Vec::new();
        }
        let shapes = self.shapes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        shapes
            .keys()
            .map(|shape| Offer { shape: shape.clone(), groups: placement::able(groups, shape) })
            .filter(|offer| !offer.groups.is_empty())
            .collect()
    }

    /// A round that took less than it could has seen those shapes to their end for which slots were left.
    /// A shape that got jobs a moment ago was noted then, and stays.
    fn forget_empty_shapes(
        &self,
        offers: &[Offer],
        claims: &[ready_queue::Claim],
        slots: &[ready_queue::Group],
        took_less: bool,
    ) {
        let mut left: Vec<u32> = slots.iter().map(|group| group.free_slots).collect();
        for claim in claims {
            if let Some(left) = left.get_mut(usize::from(claim.group)) {
                *left = left.saturating_sub(1);
            }
        }
        // Those that had jobs a moment ago may have more, or get back what cannot be assigned.
        self.note_shapes(claims.iter().filter_map(|claim| Some(offers.get(claim.offer)?.shape.clone())));
        if !took_less {
            return;
        }
        let has_slots = |group: &u16| left.get(usize::from(*group)).is_some_and(|left| *left > 0);
        let now = self.now();
        let mut shapes = self.shapes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        for offer in offers.iter().filter(|offer| offer.groups.iter().any(has_slots)) {
            if shapes.get(&offer.shape).is_some_and(|noted| now.duration_since(*noted) >= SHAPE_KEPT) {
                shapes.remove(&offer.shape);
            }
        }
    }

    /// Chooses a worker for each claim; what no worker can take any more goes back.
    async fn place(&self, claims: &[ready_queue::Claim], groups: &mut [Group]) -> Vec<Placed> {
        let mut placed = Vec::with_capacity(claims.len());
        let mut unplaced = Vec::new();
        {
            let mut fleet = self.fleet();
            for claim in claims {
                let worker = groups.get_mut(usize::from(claim.group)).and_then(Group::take_slot);
                let slot = worker.and_then(|worker| Some((worker, fleet.reserve(worker)?)));
                match slot {
                    Some((worker_id, poller)) => placed.push(self.placed(claim.job_id, worker_id, poller)),
                    None => unplaced.push(claim.job_id),
                }
            }
        }
        if !unplaced.is_empty() {
            self.put_back(&unplaced).await;
        }
        placed
    }

    fn placed(&self, job_id: JobId, worker_id: WorkerId, poller: Option<Poller>) -> Placed {
        let delivery = poller.as_ref().map(|poller| poller.delivery);
        let lease = LeaseId(self.parts.ambient.uuid());
        Placed { claim: Claim { job_id, worker_id, lease, delivery }, poller }
    }

    async fn put_back(&self, jobs: &[JobId]) {
        if let Err(error) = self.parts.queue.put_back(self.parts.fence.epoch, jobs).await {
            tracing::warn!(%error, jobs = jobs.len(), "Claimed jobs could not be put back; they will be reconciled.");
            self.note_queue_failure(&error);
        }
    }

    fn count_assignment(&self, job: &Taken, priority: u8) {
        let metrics = &self.parts.metrics;
        metrics.jobs_assigned.inc();
        metrics.jobs_scheduled.with_label_values(&[&priority.to_string()]).inc();
        #[expect(clippy::cast_precision_loss, reason = "a duration for a histogram")]
        let seconds = job.wait_ms as f64 / 1000.0;
        metrics.job_wait.observe(seconds);
        metrics.dispatch.observe(seconds);
    }
}

/// What a worker needs of a job that was taken for it.
pub(super) fn assignment(job: Taken) -> Assignment {
    Assignment {
        lease: job.lease,
        attempt_number: job.attempt_number,
        worker_id: job.worker_id,
        job_id: job.job_id,
        job_name: job.name,
        model_name: job.model_name,
        model_version: job.model_version,
        input_data: job.input_data,
        timeout_seconds: job.timeout_seconds,
    }
}
