//! Giving jobs to workers: rounds of the scheduler, and what a submission and a round have in common.
//!
//! A round takes free slots, claims the best jobs for them in the ready queue, reserves a worker for each,
//! and writes the leases in one transaction. While that commits the next round may begin: Redis, PostgreSQL
//! and the network work side by side.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::backlog::{Glimpse, Round};
use super::control::Open;
use super::feed::FeedItem;
use super::lanes::Lane;
use super::{Core, Leader};
use crate::domain::changes::JobChange;
use crate::domain::ids::{JobId, LeaseId, WorkerId};
use crate::domain::job::JobStatus;
use crate::domain::matching::Shape;
use crate::domain::placement::GroupId;
use crate::domain::transition::JobEvent;
use crate::ready_queue::{self, MAX_CLAIM, Offer, QueueError};
use crate::services::command::Assignment;
use crate::services::crash;
use crate::services::fleet::{FETCH_WITHIN, Poller};
use crate::storage::{Claim, Origin, StorageError, Taken};
use crate::telemetry::Tracer;

/// Until when a lease is good that its worker has not called running, beyond the job's timeout, in seconds.
pub(super) const FETCH_SECONDS: i32 = {
    #[expect(clippy::cast_possible_truncation, reason = "a constant that fits")]
    let seconds = FETCH_WITHIN.as_secs() as i32;
    seconds
};

/// Slots that a round must find to begin beside others. Fewer wait for the next commit, which frees more:
/// many small transactions cost more than few large ones.
const WORTH_A_ROUND: u32 = 32;

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

/// A job on its way to a worker that has a slot reserved for it.
pub(super) struct Placed {
    pub claim: Claim,
    pub poller: Option<Poller>,
}

/// What a round asks the ready queue for.
struct Question {
    round: Round,
    groups: Vec<GroupId>,
    slots: Vec<ready_queue::Group>,
    offers: Vec<Offer>,
    glimpses: Vec<Glimpse>,
    most: usize,
}

impl Question {
    /// The group and the shape that a claim names; `None` if the ready queue names what was not asked for.
    fn asked_for(&self, claim: &ready_queue::Claim) -> Option<(GroupId, &Shape)> {
        let group = self.groups.get(usize::from(claim.group))?;
        Some((*group, &self.offers.get(claim.offer)?.shape))
    }
}

impl Leader {
    /// Gives waiting jobs to free workers. Answers how many were tried, which includes those that turn
    /// out to wait no more; zero when there was nothing to do. The leases are written afterwards, beside the
    /// next round.
    pub async fn schedule_round(self: &Arc<Self>) -> Result<usize, RoundError> {
        let core = &self.core;
        let lane = core.rounds.enter().await;
        let open = core.dispatching.begin().await;
        let Some(question) = core.question(lane.is_alone()) else { return Ok(0) };
        let timer = core.parts.metrics.scheduling_duration.start_timer();
        let claimed = core
            .parts
            .queue
            .claim(core.parts.fence.epoch, question.most, &question.slots, &question.offers)
            .await;
        let claims = claimed.inspect_err(|error| core.note_queue_failure(error))?;
        crash::point("claimed");
        core.learn(&question, &claims);
        let placed = core.place(&question, &claims).await;
        timer.observe_duration();
        if placed.is_empty() {
            core.conclude(&question, &claims, &[]);
            return Ok(0);
        }
        let (leader, count) = (Arc::clone(self), claims.len());
        self.stage.tasks.spawn(async move { leader.assign(lane, open, &question, &claims, placed).await });
        Ok(count)
    }

    /// Writes the leases of a round and hands the jobs over.
    async fn assign(
        &self,
        lane: Lane,
        open: Open,
        question: &Question,
        claims: &[ready_queue::Claim],
        placed: Vec<Placed>,
    ) {
        let core = &self.core;
        let began = core.now();
        let wanted: Vec<Claim> = placed.iter().map(|placed| placed.claim).collect();
        let assigned = core
            .transaction("assign_jobs", || {
                let parts = &core.parts;
                let (slot, origin) = (lane.slot(), Origin::Queue);
                parts.database.assign_jobs(parts.fence, slot, origin, &wanted, FETCH_SECONDS)
            })
            .await;
        match assigned {
            Ok(taken) => {
                crash::point("assigned");
                core.conclude(question, claims, &taken);
                wanted.iter().for_each(|claim| core.feed(FeedItem::Settle(claim.job_id)));
                let priority = |claim: &ready_queue::Claim| (claim.job_id, claim.priority);
                self.hand_over(&claims.iter().map(priority).collect(), placed, taken, began);
            }
            Err(error) => {
                core.conclude(question, claims, &[]);
                let jobs: Vec<JobId> = wanted.iter().map(|claim| claim.job_id).collect();
                core.unreserve(placed);
                tracing::warn!(%error, jobs = jobs.len(), "Claimed jobs could not be assigned.");
                // Where it is unknown what the commit did, reconcile decides about the claims.
                if error.retryable() {
                    let shapes = question.offers.iter().map(|offer| offer.shape.clone());
                    core.put_back(&jobs, shapes).await;
                }
            }
        }
        drop((lane, open));
        core.nudges.schedule.notify_one();
    }

    /// After the commit of what was begun at `began`: leases into the fleet, jobs to their workers. What was not taken
    /// was not there to be had.
    pub(super) fn hand_over(
        &self,
        priorities: &HashMap<JobId, u8>,
        placed: Vec<Placed>,
        taken: Vec<Taken>,
        began: Instant,
    ) {
        let core = &self.core;
        let mut taken: HashMap<LeaseId, Taken> = taken.into_iter().map(|job| (job.lease, job)).collect();
        core.waiting.fetch_sub(i64::try_from(taken.len()).unwrap_or(0), Ordering::Relaxed);
        core.announce(|| {
            taken.values().map(|job| JobChange {
                job_id: job.job_id,
                status: JobStatus::Assigned,
                worker_id: Some(job.worker_id),
                at: job.assigned_at,
            })
        });
        for Placed { claim, poller } in placed {
            let Some(job) = taken.remove(&claim.lease) else {
                core.fleet().unreserve(claim.worker_id, poller);
                continue;
            };
            let priority = priorities.get(&claim.job_id).copied().unwrap_or_default();
            core.count_assignment(priority, job.wait_ms, began);
            if let Some(trace) = &job.trace {
                drop(core.trace_assignment(trace, &claim, job.attempt_number, job.wait_ms));
            }
            self.give(assignment(job, &core.parts.tracer), poller);
        }
    }

    /// Hands a job to its worker after its lease was committed.
    pub(super) fn give(&self, assignment: Assignment, poller: Option<Poller>) {
        let core = &self.core;
        let (job, lease) = (assignment.job_id, assignment.lease);
        let granted = core.fleet().grant(assignment, poller, core.now());
        if !granted && self.push_event(job, JobEvent::NotFetched { lease }, None).is_err() {
            core.end(super::End::Unsure);
        }
    }
}

impl Core {
    /// What to ask the ready queue for: shapes that may have jobs, are not paused, and that some free worker can
    /// take.
    /// `None` if there is nothing to ask, or too few slots to begin beside other rounds.
    fn question(&self, alone: bool) -> Option<Question> {
        let mut backlog = self.backlog();
        let paused = self.parts.control.paused();
        if backlog.is_empty() || paused.all {
            return None;
        }
        let mut fleet = self.fleet();
        let pool = fleet.pool();
        let (groups, slots): (Vec<_>, Vec<_>) =
            pool.groups().map(|(id, free_slots)| (id, ready_queue::Group { free_slots })).unzip();
        let free: u32 = slots.iter().map(|group| group.free_slots).sum();
        if free == 0 || !(alone || free >= WORTH_A_ROUND) {
            return None;
        }
        let places: HashMap<GroupId, u16> = groups.iter().copied().zip(0..=u16::MAX).collect();
        let (mut offers, mut glimpses) = (Vec::new(), Vec::new());
        for (shape, glimpse) in backlog.shapes().filter(|(shape, _)| !paused.holds(&shape.model_name)) {
            let able = pool.able(shape);
            let groups: Vec<u16> = able.iter().filter_map(|id| places.get(id).copied()).collect();
            if !groups.is_empty() {
                offers.push(Offer { shape: shape.clone(), groups });
                glimpses.push(glimpse);
            }
        }
        if offers.is_empty() {
            return None;
        }
        let most = (free as usize).min(self.parts.batch_size).min(MAX_CLAIM);
        Some(Question { round: backlog.begin(), groups, slots, offers, glimpses, most })
    }

    /// Tells the backlog what was claimed. A claim that took less than it could has seen those shapes to their
    /// end for which slots were left.
    fn learn(&self, question: &Question, claims: &[ready_queue::Claim]) {
        let mut left: Vec<u32> = question.slots.iter().map(|group| group.free_slots).collect();
        let mut taken = vec![0; question.offers.len()];
        for claim in claims {
            let priority = claim.priority.to_string();
            self.parts.metrics.jobs_dequeued.with_label_values(&[&priority]).inc();
            if let Some(left) = left.get_mut(usize::from(claim.group)) {
                *left = left.saturating_sub(1);
            }
            if let Some(taken) = taken.get_mut(claim.offer) {
                *taken += 1;
            }
        }
        let took_less = claims.len() < question.most;
        let has_slots = |group: &u16| left.get(usize::from(*group)).is_some_and(|left| *left > 0);
        let mut lacks = false;
        let mut backlog = self.backlog();
        for ((offer, glimpse), taken) in question.offers.iter().zip(&question.glimpses).zip(taken) {
            let emptied = (took_less && offer.groups.iter().any(has_slots)).then_some(*glimpse);
            lacks |= backlog.claimed(question.round, &offer.shape, taken, emptied);
        }
        // Before anybody else looks at the backlog.
        if lacks && !self.loss_suspected.swap(true, Ordering::AcqRel) {
            self.nudges.reconcile.notify_one();
        }
    }

    /// Tells the backlog which claims were for jobs that waited, each where it was looked for.
    fn conclude(&self, question: &Question, claims: &[ready_queue::Claim], taken: &[Taken]) {
        let taken: HashMap<JobId, &str> =
            taken.iter().map(|job| (job.job_id, job.model_name.as_str())).collect();
        // Whether all had waited that were claimed as having this shape, if any were.
        let mut outcomes: Vec<Option<bool>> = vec![None; question.offers.len()];
        for claim in claims {
            if let (Some(offer), Some(all_waited)) =
                (question.offers.get(claim.offer), outcomes.get_mut(claim.offer))
            {
                let waited = taken.get(&claim.job_id) == Some(&offer.shape.model_name.as_str());
                *all_waited = Some(waited && *all_waited != Some(false));
            }
        }
        let mut backlog = self.backlog();
        for (offer, all_waited) in question.offers.iter().zip(outcomes) {
            if let Some(all_waited) = all_waited {
                backlog.settled(question.round, &offer.shape, all_waited);
            }
        }
    }

    /// Reserves a worker for each claim, those with the model loaded first; what no worker can take any
    /// more goes back.
    async fn place(&self, question: &Question, claims: &[ready_queue::Claim]) -> Vec<Placed> {
        let mut placed = Vec::with_capacity(claims.len());
        let mut unplaced = Vec::new();
        {
            let mut fleet = self.fleet();
            let mut plain = Vec::with_capacity(claims.len());
            for claim in claims {
                let Some((group, shape)) = question.asked_for(claim) else {
                    unplaced.push(claim);
                    continue;
                };
                let loaded = fleet.pool().with_model(group, &shape.model_name);
                match loaded.and_then(|worker| Some((worker, fleet.reserve(worker)?))) {
                    Some((worker, poller)) => placed.push(self.placed(claim.job_id, worker, poller)),
                    None => plain.push((claim, group)),
                }
            }
            for (claim, group) in plain {
                let best = fleet.pool().best(group);
                match best.and_then(|worker| Some((worker, fleet.reserve(worker)?))) {
                    Some((worker, poller)) => placed.push(self.placed(claim.job_id, worker, poller)),
                    None => unplaced.push(claim),
                }
            }
        }
        if !unplaced.is_empty() {
            let jobs: Vec<JobId> = unplaced.iter().map(|claim| claim.job_id).collect();
            let asked_for = unplaced.iter().filter_map(|claim| question.asked_for(claim));
            let shapes = asked_for.map(|(_, shape)| shape.clone());
            self.put_back(&jobs, shapes).await;
        }
        placed
    }

    /// A lease for a job on a worker that has a slot reserved.
    pub(super) fn placed(&self, job_id: JobId, worker_id: WorkerId, poller: Option<Poller>) -> Placed {
        let delivery = poller.as_ref().map(|poller| poller.delivery);
        let lease = LeaseId(self.parts.ambient.uuid());
        Placed { claim: Claim { job_id, worker_id, lease, delivery }, poller }
    }

    /// Gives reserved slots back.
    pub(super) fn unreserve(&self, placed: impl IntoIterator<Item = Placed>) {
        let mut fleet = self.fleet();
        for placed in placed {
            fleet.unreserve(placed.claim.worker_id, placed.poller);
        }
    }

    async fn put_back(&self, jobs: &[JobId], shapes: impl IntoIterator<Item = Shape>) {
        if let Err(error) = self.parts.queue.put_back(self.parts.fence.epoch, jobs).await {
            tracing::warn!(%error, jobs = jobs.len(), "Claimed jobs could not be put back; they will be reconciled.");
            self.note_queue_failure(&error);
        }
        self.backlog().note(shapes);
    }

    /// A job was assigned that had waited for `wait_ms` at `then`, and goes to its worker now.
    pub(super) fn count_assignment(&self, priority: u8, wait_ms: i64, then: Instant) {
        let metrics = &self.parts.metrics;
        metrics.jobs_assigned.inc();
        metrics.jobs_scheduled.with_label_values(&[&priority.to_string()]).inc();
        #[expect(clippy::cast_precision_loss, reason = "a duration for a histogram")]
        let seconds = wait_ms as f64 / 1000.0;
        metrics.job_wait.observe(seconds);
        metrics.dispatch.observe(seconds + self.now().duration_since(then).as_secs_f64());
    }
}

/// What a worker needs of a job that was taken for it.
pub(super) fn assignment(job: Taken, tracer: &Tracer) -> Assignment {
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
        trace: job.trace.map(|trace| Box::new(tracer.of_attempt(trace, job.lease))),
    }
}
