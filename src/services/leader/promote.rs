//! Jobs whose time has come: to a worker if one has a slot to spare, else into the ready queue.
//!
//! By statements of their own, beside the batches of events: behind them a due job would wait for the commits of reports
//! that came before it, and for the round trips of a transaction that looks at jobs before it changes them.

use std::sync::PoisonError;
use std::time::Duration;

use super::direct::Newcomer;
use super::dispatch::{FETCH_SECONDS, Placed};
use super::feed::FeedItem;
use super::upkeep::UpkeepError;
use super::{Core, Leader, PROMOTE_SLOT};
use crate::domain::changes::JobChange;
use crate::domain::job::JobStatus;
use crate::ready_queue::Entry;
use crate::services::crash;
use crate::storage::{Claim, Due, Origin, Promoted, StorageError};

/// Jobs of one statement.
const SWEEP: u16 = 500;
/// Pause before another look at a job that is due and that somebody holds.
const HELD: Duration = Duration::from_millis(10);

impl Leader {
    /// Assigns jobs whose time has come, or puts them into the ready queue. Answers how long until the next one is
    /// due, if one is known.
    pub async fn promote_retries(&self) -> Result<Option<Duration>, UpkeepError> {
        let core = &self.core;
        core.next_due.lock().unwrap_or_else(PoisonError::into_inner).take();
        loop {
            // No more inputs in one statement than a round has.
            let limit = u16::try_from(core.parts.batch_size).map_or(SWEEP, |batch| batch.min(SWEEP));
            let due = core.parts.database.due(limit).await?;
            // Behind a whole page there may be more urgent ones: the ready queue knows the order of all.
            let all = due.len() < usize::from(limit);
            let mut moved = if all { self.assign_due(&due).await } else { 0 };
            if moved < due.len() {
                moved += self.queue_due().await?;
            }
            if moved < usize::from(limit) {
                break;
            }
        }
        let stored = core.parts.database.next_due_in().await?;
        let stored = stored.map(|seconds| core.now() + Duration::from_secs_f64(seconds.max(0.0)));
        // No nudge: whoever is told here is the one that a nudge would wake.
        let mut noted = core.next_due.lock().unwrap_or_else(PoisonError::into_inner);
        *noted = [*noted, stored].into_iter().flatten().min();
        let wait = noted.map(|due| due.saturating_duration_since(core.now()));
        Ok(wait.map(|wait| if wait.is_zero() { HELD } else { wait }))
    }

    /// Gives jobs to workers that have slots to spare. Answers how many. If it fails, they have the ready queue.
    async fn assign_due(&self, due: &[Due]) -> usize {
        let core = &self.core;
        let _open = core.dispatching.begin().await;
        let newcomers: Vec<_> = due.iter().map(|job| Some(Newcomer::due(job))).collect();
        let placed: Vec<Placed> = core.place_directly(&newcomers).into_iter().flatten().collect();
        if placed.is_empty() {
            return 0;
        }
        let began = core.now();
        let claims: Vec<Claim> = placed.iter().map(|placed| placed.claim).collect();
        let assigned = core
            .transaction("assign_due", || {
                let parts = &core.parts;
                let origin = Origin::Backoff;
                parts.database.assign_jobs(parts.fence, PROMOTE_SLOT, origin, &claims, FETCH_SECONDS)
            })
            .await;
        let count = match assigned {
            Ok(taken) => {
                crash::point("assigned");
                let count = taken.len();
                core.parts.metrics.jobs_queued.inc_by(count as u64);
                let priorities = due.iter().map(|job| (job.id, job.priority)).collect();
                self.hand_over(&priorities, placed, taken, began);
                count
            }
            Err(error) => {
                core.unreserve(placed);
                tracing::warn!(%error, jobs = claims.len(), "Due jobs could not be assigned; they are queued.");
                0
            }
        };
        if count < claims.len() {
            // Slots are free again that a round may have missed.
            core.nudges.schedule.notify_one();
        }
        count
    }

    /// Puts jobs into the ready queue. Answers how many.
    async fn queue_due(&self) -> Result<usize, StorageError> {
        let core = &self.core;
        let began = core.parts.tracer.now();
        let promoted = core
            .transaction("promote_due", || {
                let parts = &core.parts;
                parts.database.promote_due(parts.fence, PROMOTE_SLOT, SWEEP)
            })
            .await?;
        crash::point("promoted");
        if let Some(began) = began {
            promoted.iter().for_each(|job| core.trace_promotion(job, began));
        }
        core.announce(|| promoted.iter().map(queued));
        let count = promoted.len();
        promoted.into_iter().for_each(|job| core.queue_promoted(job));
        Ok(count)
    }
}

impl Core {
    fn queue_promoted(&self, job: Promoted) {
        self.parts.metrics.jobs_queued.inc();
        let Promoted { id: job_id, shape, priority, submitted_at, .. } = job;
        self.feed(FeedItem::Add(Entry { job_id, shape, priority, submitted_at }));
    }
}

fn queued(job: &Promoted) -> JobChange {
    JobChange { job_id: job.id, status: JobStatus::Queued, worker_id: None, at: job.at }
}
