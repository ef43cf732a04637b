//! From a won election to work: fence, workers and leases, ready queue.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64};
use std::time::Instant;

use tokio::sync::watch;

use super::changes::Announcer;
use super::control::Dispatching;
use super::lanes::Lanes;
use super::{Core, Leader, LeaderParts, Nudges, ROUND_SLOTS, feed};
use crate::domain::worker::WorkerStatus;
use crate::ready_queue::QueueError;
use crate::services::batcher::Stage;
use crate::services::fleet::Fleet;
use crate::storage::StorageError;

impl Leader {
    /// Takes over: fences older leaders off, loads workers and live leases, and starts the batchers. From
    /// then on commands are accepted; the ready queue is seen to by [`Self::take_over_queue`].
    pub async fn take_over(
        parts: LeaderParts,
        term: i64,
        leader_id: i64,
        stage: &Stage,
    ) -> Result<Arc<Self>, StorageError> {
        let began = parts.ambient.instant();
        parts.database.take_over(parts.fence, term, leader_id).await?;
        let fenced = phase(&parts, "fence", began);
        let (fleet, waiting) = load(&parts).await?;
        phase(&parts, "load", fenced);
        let (feed, tail) = feed::prepare();
        let changes = Announcer::of(parts.fence.epoch, parts.ambient.now());
        let core = Arc::new(Core {
            parts,
            fleet: std::sync::Mutex::new(fleet),
            roster: tokio::sync::RwLock::new(()),
            nudges: Nudges::default(),
            feed,
            backlog: std::sync::Mutex::default(),
            rounds: Lanes::new(&ROUND_SLOTS),
            dispatching: Dispatching::default(),
            queue_lacks: AtomicBool::new(false),
            loss_suspected: AtomicBool::new(false),
            queue_known: AtomicBool::new(false),
            waiting: AtomicI64::new(waiting),
            arriving: Arc::new(AtomicU64::new(0)),
            next_due: std::sync::Mutex::new(None),
            away_since: std::sync::Mutex::new(None),
            changes,
            end: watch::Sender::new(None),
        });
        Ok(Self::start(core, stage, tail))
    }

    /// Puts back what the former leader claimed and did not assign, and learns what waits. Redis may be
    /// away: then `reconcile_queue` does it once it is back.
    pub async fn take_over_queue(&self) {
        let core = &self.core;
        let began = core.now();
        if let Err(error) = self.try_take_over_queue().await {
            tracing::warn!(%error, "The ready queue could not be taken over; it will be reconciled.");
            core.queue_lacks.store(true, std::sync::atomic::Ordering::Release);
        }
        phase(&core.parts, "queue", began);
        core.nudges.schedule.notify_one();
    }

    async fn try_take_over_queue(&self) -> Result<(), super::upkeep::UpkeepError> {
        let core = &self.core;
        let queue = &core.parts.queue;
        let epoch = core.parts.fence.epoch;
        let whole = match queue.generation(epoch).await {
            // PostgreSQL has just said that this epoch is the newest: Redis, which is no authority, holds
            // what another installation or a former life of this one left there.
            Err(QueueError::Fenced { stored }) => {
                // Unless a newer leader has taken over meanwhile: while this transaction is open, none does.
                let unsurpassed = core.begin().await.inspect_err(|error| core.note_failure(error))?;
                tracing::warn!(%epoch, stored, "Redis holds an epoch from elsewhere; it is set right.");
                queue.reset(epoch).await?;
                unsurpassed.commit().await?;
                None
            }
            other => other?,
        };
        let claims = queue.all_claims().await?;
        self.settle_claims(&claims).await?;
        let shapes = queue.shapes().await?;
        core.backlog().note(shapes.into_iter().map(|(shape, _)| shape));
        // Jobs that the former leader committed and could not tell the ready queue of. What it holds is asked first: a job
        // that comes meanwhile must not stand for one that is missing.
        let held = i64::try_from(queue.total().await?).unwrap_or(i64::MAX);
        let queued = core.parts.database.stats().await?.queued;
        if whole.is_none() || held != queued {
            core.queue_lacks.store(true, std::sync::atomic::Ordering::Release);
            core.nudges.reconcile.notify_one();
        }
        core.queue_known.store(true, std::sync::atomic::Ordering::Release);
        Ok(())
    }
}

/// Workers that are online or hold leases, the live leases, and how many jobs wait.
async fn load(parts: &LeaderParts) -> Result<(Fleet, i64), StorageError> {
    let database = &parts.database;
    let (leases, workers, now, stats) = tokio::try_join!(
        database.take_over_leases(parts.fence),
        database.workers(None),
        database.now(),
        database.stats(),
    )?;
    let holders: HashSet<_> = leases.iter().map(|lease| lease.worker_id).collect();
    let here = parts.ambient.instant();
    let mut fleet = Fleet::new(parts.patience);
    for worker in &workers.workers {
        if worker.status != WorkerStatus::Offline || holders.contains(&worker.id) {
            let silent_for = (now - worker.last_heartbeat).to_std().unwrap_or_default();
            let heard = here.checked_sub(silent_for).unwrap_or(here);
            fleet.recall(worker, parts.worker_timeout, heard, here);
        }
    }
    for lease in &leases {
        fleet.adopt(lease, here);
    }
    // The former leader removed them and did not come to end their leases: those are orphans.
    for worker in workers.workers.iter().filter(|worker| worker.removed_at.is_some()) {
        fleet.remove(worker.id);
    }
    Ok((fleet, stats.pending + stats.queued))
}

/// Publishes how long a phase took; answers the time at its end.
fn phase(parts: &LeaderParts, name: &str, began: Instant) -> Instant {
    let now = parts.ambient.instant();
    parts.metrics.takeover.with_label_values(&[name]).observe(now.duration_since(began).as_secs_f64());
    now
}
