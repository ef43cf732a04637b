//! Jobs whose time has come.
//!
//! A statement of its own, beside the batches of events: behind them a due job would wait for the commits of reports
//! that came before it, and for the round trips of a transaction that looks at jobs before it changes them.

use std::sync::PoisonError;
use std::time::Duration;

use super::feed::FeedItem;
use super::upkeep::UpkeepError;
use super::{Core, Leader, PROMOTE_SLOT};
use crate::domain::changes::JobChange;
use crate::domain::job::JobStatus;
use crate::ready_queue::Entry;
use crate::services::crash;
use crate::storage::Promoted;

/// Jobs of one statement.
const SWEEP: i64 = 500;

impl Leader {
    /// Puts jobs whose retry time has come into the ready queue. Answers how long until the next one is
    /// due, if one is known.
    pub async fn promote_retries(&self) -> Result<Option<Duration>, UpkeepError> {
        let core = &self.core;
        core.next_due.lock().unwrap_or_else(PoisonError::into_inner).take();
        loop {
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
            if i64::try_from(count).unwrap_or(SWEEP) < SWEEP {
                break;
            }
        }
        let stored = core.parts.database.next_due_in().await?;
        let stored = stored.map(|seconds| core.now() + Duration::from_secs_f64(seconds.max(0.0)));
        // No nudge: whoever is told here is the one that a nudge would wake.
        let mut noted = core.next_due.lock().unwrap_or_else(PoisonError::into_inner);
        *noted = [*noted, stored].into_iter().flatten().min();
        Ok(noted.map(|due| due.saturating_duration_since(core.now())))
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
