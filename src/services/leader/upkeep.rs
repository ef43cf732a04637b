//! What the leader's loops do, one method each; every one can be run at any time and any number of times.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Leader, PRUNE_SLOT, UsageGauges};
use crate::domain::ids::JobId;
use crate::domain::transition::JobEvent;
use crate::domain::worker::WorkerStatus;
use crate::planted::{Plant, planted};
use crate::ready_queue::{Entry, QueueError};
use crate::services::error::ServiceError;
use crate::storage::{OldJob, QueuedJob, StorageError, Vitals};
use crate::telemetry::Metrics;

/// Jobs that one sweep looks at.
const SWEEP: i64 = 500;
/// Jobs per page of a rebuild.
const PAGE: i64 = 5_000;
/// Most old jobs that are deleted in one transaction: it has 2 s, and each may take megabytes.
const PRUNE: i64 = 100;
/// Age from which a claim counts as left behind. Longer than any assignment takes.
const STALE_CLAIM: Duration = Duration::from_secs(8);
/// How long a committed change may take to reach the ready queue before it counts as lost.
const ON_THE_WAY: Duration = Duration::from_millis(500);
/// How often the ready queue is compared with the counters.
const COMPARE_EVERY: Duration = Duration::from_secs(10);
/// How often it is looked for jobs that the ready queue seems to have lost.
const SUSPECT_EVERY: Duration = Duration::from_secs(1);
/// How often the workers that are offline are counted, of which PostgreSQL alone knows.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// How long that may take: vitals must not wait for it.
const COUNT_WITHIN: Duration = Duration::from_millis(500);

/// A loop's run that failed; it is run again.
#[derive(Debug, thiserror::Error)]
pub enum UpkeepError {
    /// The ready queue failed.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// PostgreSQL failed.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A write was not accepted.
    #[error(transparent)]
    Service(#[from] ServiceError),
}

/// What `reconcile_queue` remembers from one run to the next. The depth that it shows goes with the leadership.
pub struct Reconciliation {
    metrics: Arc<Metrics>,
    compared: Option<Instant>,
    suspected: Option<Instant>,
    /// A claim missed jobs, and not all that wait were looked at since.
    doubts: bool,
    bloated: bool,
    /// Where the search for missing jobs goes on.
    looked_at: Option<QueuedJob>,
    /// It is to be made once more after that.
    again: bool,
}

impl Reconciliation {
    /// Nothing is known yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            metrics,
            compared: None,
            suspected: None,
            doubts: false,
            bloated: false,
            looked_at: None,
            again: false,
        }
    }

    fn show(&self, depth: [u64; 10]) {
        for (priority, count) in (1..).zip(depth) {
            let label = i32::to_string(&priority);
            let gauge = self.metrics.queue_depth.with_label_values(&[&label]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

impl Drop for Reconciliation {
    fn drop(&mut self) {
        self.show([0; 10]);
    }
}

/// What `prune_jobs` remembers from one run to the next.
pub struct Pruning {
    /// Where the sweep over the old jobs goes on.
    looked_at: Option<OldJob>,
    /// Jobs of the next page: fewer after a failure, which may have been for their size.
    page: i64,
    gone: u64,
}

impl Default for Pruning {
    fn default() -> Self {
        Self { looked_at: None, page: PRUNE, gone: 0 }
    }
}

impl Leader {
    /// Ends attempts that ran too long, takes back jobs that were not fetched, gives up workers that went silent,
    /// and tries those again that have rested from failing.
    pub async fn reap_leases(&self) -> Result<(), UpkeepError> {
        let core = &self.core;
        if core.fleet().end_rests(core.now()) {
            core.nudges.schedule.notify_one();
        }
        // None of the three may keep the others from being done.
        let overdue = self.reap_overdue().await;
        let unfetched = core.fleet().unfetched(core.now());
        let unfetched = self
            .apply_all(unfetched.into_iter().map(|(job, lease)| (job, JobEvent::NotFetched { lease })))
            .await;
        let silent = self.give_up_silent_workers().await;
        let orphans = core.fleet().orphans();
        self.apply_all(orphans.into_iter().map(|(job, lease)| (job, JobEvent::WorkerLost { lease }))).await?;
        overdue.and(silent).and(unfetched.map(drop).map_err(UpkeepError::from))
    }

    /// Leases are watched here, jobs that are driven from outside in PostgreSQL.
    async fn reap_overdue(&self) -> Result<(), UpkeepError> {
        let core = &self.core;
        let mut leased = core.fleet().overdue(core.now());
        leased.truncate(usize::try_from(SWEEP).unwrap_or(usize::MAX));
        let driven = core.parts.database.overdue_jobs(SWEEP).await?;
        let leased =
            leased.into_iter().map(|(job, lease)| (job, JobEvent::DeadlinePassed { lease: Some(lease) }));
        let driven = driven.into_iter().map(|job| (job, JobEvent::DeadlinePassed { lease: None }));
        self.apply_all(leased.chain(driven)).await?;
        Ok(())
    }

    /// Their leases become orphans, which are ended next.
    async fn give_up_silent_workers(&self) -> Result<(), UpkeepError> {
        let core = &self.core;
        let silent: Vec<_> = core
            .fleet()
            .silent(core.now())
            .into_iter()
            .map(|(worker, limit)| (worker, limit.as_secs_f64()))
            .collect();
        if silent.is_empty() {
            return Ok(());
        }
        let offline = core
            .transaction("mark_offline", || async {
                let mut transaction = core.begin().await?;
                let offline = transaction.mark_offline(&silent).await?;
                transaction.commit().await.map(|()| offline)
            })
            .await?;
        for worker in offline {
            let leases = core.fleet().remove(worker);
            tracing::warn!(worker_id = %worker, leases, "A worker went silent; its leases are ended.");
        }
        Ok(())
    }

    /// Tells PostgreSQL who was heard, and shows how workers fare.
    pub async fn record_vitals(&self, gauges: &mut UsageGauges) -> Result<(), UpkeepError> {
        let core = &self.core;
        let (vitals, counts, usage) = {
            let mut fleet = core.fleet();
            (fleet.take_vitals(core.now()), fleet.count_by_status(), fleet.usage_by_worker())
        };
        gauges.show(usage);
        for (status, count) in counts.into_iter().filter(|(status, _)| *status != WorkerStatus::Offline) {
            gauges.count(status, count);
        }
        if !vitals.is_empty() {
            self.write_vitals(&vitals).await?;
        }
        let now = core.now();
        if gauges.counted.is_none_or(|at| now.duration_since(at) >= COUNT_EVERY) {
            gauges.counted = Some(now);
            let stats = tokio::time::timeout(COUNT_WITHIN, core.parts.database.worker_stats()).await;
            if let Ok(Ok(stats)) = stats {
                gauges.count(WorkerStatus::Offline, stats.offline_workers);
            }
        }
        Ok(())
    }

    async fn write_vitals(&self, vitals: &[Vitals]) -> Result<(), UpkeepError> {
        let core = &self.core;
        let written = core
            .transaction("record_vitals", || async {
                let mut transaction = core.begin().await?;
                transaction.write_vitals(vitals).await?;
                transaction.commit().await
            })
            .await;
        if written.is_err() {
            core.fleet().keep_vitals(vitals);
        }
        Ok(written?)
    }

    /// Deletes jobs that ended more than `age` ago, page by page from the oldest on. Answers when to go on, or `None`
    /// at the end of a sweep.
    pub async fn prune_jobs(
        &self,
        age: Duration,
        memory: &mut Pruning,
    ) -> Result<Option<Duration>, UpkeepError> {
        let core = &self.core;
        let began = core.now();
        let limit = memory.page;
        memory.page = (limit / 2).max(1);
        let page = core.parts.database.old_jobs(age, memory.looked_at.as_ref(), limit).await?;
        let ended: Vec<JobId> = page.iter().filter(|job| job.ended).map(|job| job.id).collect();
        if !ended.is_empty() {
            memory.gone += core
                .transaction("prune_jobs", || async {
                    let mut transaction = core.begin().await?;
                    let gone = transaction.delete_ended(PRUNE_SLOT, &ended, age).await?;
                    transaction.commit().await.map(|()| gone)
                })
                .await?;
        }
        memory.page = (limit * 2).min(PRUNE);
        if i64::try_from(page.len()).unwrap_or(limit) < limit {
            let Pruning { gone, .. } = std::mem::take(memory);
            if gone > 0 {
                tracing::info!(
                    jobs = gone,
                    "Jobs that ended longer ago than retention.finished_jobs are gone."
                );
            }
            return Ok(None);
        }
        memory.looked_at = page.into_iter().last();
        // As long a pause as the work took: others have something to do, too.
        Ok(Some(core.now().saturating_duration_since(began)))
    }

    /// Applies events and waits for all of them. A refusal means that somebody else was faster. Answers how many
    /// were not refused.
    pub(super) async fn apply_all(
        &self,
        events: impl IntoIterator<Item = (JobId, JobEvent)>,
    ) -> Result<u64, ServiceError> {
        let mut answers = Vec::new();
        for (job, event) in events {
            let (reply, answer) = oneshot::channel();
            self.push_event(job, event, Some(reply))?;
            answers.push(answer);
        }
        let mut applied = 0;
        for answer in answers {
            match answer.await.unwrap_or(Err(ServiceError::OutcomeUnknown)) {
                Ok(_) => applied += 1,
                Err(ServiceError::Conflict(_) | ServiceError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(applied)
    }

    /// Makes the ready queue hold what PostgreSQL says it should: after a loss of Redis, after a change
    /// that could not be told, and for claims that were left behind.
    pub async fn reconcile_queue(&self, memory: &mut Reconciliation) -> Result<(), UpkeepError> {
        let core = &self.core;
        let epoch = core.parts.fence.epoch;
        let generation =
            core.parts.queue.generation(epoch).await.inspect_err(|e| core.note_queue_failure(e))?;
        let lacks = core.queue_lacks.swap(false, Ordering::AcqRel);
        if (generation.is_none() || lacks)
            && let Err(error) = self.rebuild_queue().await
        {
            core.queue_lacks.store(true, Ordering::Release);
            return Err(error);
        }
        let stale = core.parts.queue.claims_older_than(STALE_CLAIM).await?;
        self.settle_claims(&stale).await?;
        let now = core.now();
        let compares = memory.compared.is_none_or(|at| now.duration_since(at) >= COMPARE_EVERY);
        let suspects = core.loss_suspected.load(Ordering::Acquire)
            && memory.suspected.is_none_or(|at| now.duration_since(at) >= SUSPECT_EVERY);
        if suspects {
            memory.suspected = Some(now);
            memory.doubts = true;
            // What a search has passed may be missing by now. It goes on to its end, though, and is made once more.
            memory.again = memory.looked_at.is_some();
            core.queue_known.store(false, Ordering::Release);
            core.loss_suspected.store(false, Ordering::Release);
        }
        if compares || suspects {
            // The jobs that come first are looked at each time, those behind them in turn.
            let next = self.put_missing_back(None).await;
            let next = next.inspect_err(|_| {
                core.loss_suspected.fetch_or(suspects, Ordering::AcqRel);
            })?;
            memory.looked_at = memory.looked_at.take().or(next);
        }
        if compares {
            memory.compared = Some(now);
            self.compare_queue(memory).await?;
        } else if let Some(after) = &memory.looked_at {
            memory.looked_at = self.put_missing_back(Some(after)).await?;
        }
        if memory.again && memory.looked_at.is_none() {
            memory.looked_at = self.put_missing_back(None).await?;
            memory.again = false;
        }
        // Whatever is behind the pages that were looked at may be missing still.
        memory.doubts &= memory.looked_at.is_some();
        core.queue_known.store(!memory.doubts, Ordering::Release);
        memory.show(core.parts.queue.depth().await?);
        Ok(())
    }

    /// Fills the ready queue from PostgreSQL, in dispatch order, while scheduling goes on. A job that is
    /// taken meanwhile may be put in once more; its next claim comes to nothing.
    async fn rebuild_queue(&self) -> Result<(), UpkeepError> {
        let core = &self.core;
        let epoch = core.parts.fence.epoch;
        core.queue_known.store(false, Ordering::Release);
        let generation = core.parts.ambient.uuid().to_string();
        core.parts.queue.begin_rebuild(epoch, &generation).await?;
        let mut after: Option<QueuedJob> = None;
        let mut count = 0;
        loop {
            let page = core.parts.database.queued_jobs(after.as_ref(), PAGE).await?;
            let entries: Vec<Entry> = page.iter().map(entry).collect();
            core.parts.queue.enqueue(epoch, &entries).await.inspect_err(|e| core.note_queue_failure(e))?;
            core.backlog().note(entries.into_iter().map(|entry| entry.shape));
            core.nudges.schedule.notify_one();
            count += page.len();
            let full = i64::try_from(page.len()).unwrap_or(0) >= PAGE;
            after = page.into_iter().last();
            if !full {
                break;
            }
        }
        if core.parts.queue.mark_whole(epoch, &generation).await?.is_none() {
            tracing::warn!("Redis was emptied during a rebuild of the ready queue; it is done again.");
            core.queue_lacks.store(true, Ordering::Release);
            core.nudges.reconcile.notify_one();
            return Ok(());
        }
        tracing::info!(jobs = count, "The ready queue was made whole from PostgreSQL.");
        Ok(())
    }

    /// Puts claims back whose job is still queued, and forgets the others.
    pub(super) async fn settle_claims(&self, claims: &[JobId]) -> Result<(), UpkeepError> {
        if claims.is_empty() || planted(Plant::ClaimsNotRecovered) {
            return Ok(());
        }
        let core = &self.core;
        let epoch = core.parts.fence.epoch;
        let queued = core.parts.database.still_queued(claims).await?;
        let gone: Vec<JobId> = claims.iter().copied().filter(|job| !queued.contains(job)).collect();
        core.parts.queue.put_back(epoch, &queued).await?;
        core.parts.queue.confirm(epoch, &gone).await?;
        if !queued.is_empty() {
            let shapes = core.parts.queue.shapes().await?;
            core.backlog().note(shapes.into_iter().map(|(shape, _)| shape));
        }
        tracing::info!(
            put_back = queued.len(),
            forgotten = gone.len(),
            "Claims that were left behind are settled."
        );
        core.nudges.schedule.notify_one();
        Ok(())
    }

    /// Compares the ready queue with PostgreSQL by numbers, which prove little while jobs come and go: what seems too
    /// much must be a lot, twice.
    async fn compare_queue(&self, memory: &mut Reconciliation) -> Result<(), UpkeepError> {
        let core = &self.core;
        let stats = core.parts.database.stats().await?;
        core.waiting.store(stats.pending + stats.queued, Ordering::Relaxed);
        let held = i64::try_from(core.parts.queue.total().await?).unwrap_or(i64::MAX);
        let shapes = core.parts.queue.shapes().await?;
        {
            let mut backlog = core.backlog();
            shapes.into_iter().for_each(|(shape, jobs)| backlog.held(shape, jobs));
        }
        let bloated = held - stats.queued > (stats.queued / 10).max(1_000);
        if bloated && memory.bloated {
            tracing::warn!(
                held,
                queued = stats.queued,
                "The ready queue holds jobs that do not wait; they are dropped."
            );
            self.drop_strangers().await?;
        }
        memory.bloated = bloated && !memory.bloated;
        // Whatever an eviction or somebody else did to its keys.
        let audit = core.parts.queue.audit().await?;
        let miscounted = audit.miscounted().unwrap_or_default();
        if !miscounted.is_empty() || audit.shapes.iter().any(|shape| shape.too_late) {
            tracing::warn!(?miscounted, "The ready queue says of itself what is not so; it is counted anew.");
            core.parts.queue.recount(core.parts.fence.epoch).await?;
        }
        Ok(())
    }

    /// Looks whether the jobs of a page are in the ready queue or claimed, and puts those back that are neither. Answers the
    /// page's last job if there are more. Numbers cannot tell: a job too many stands for one that is missing.
    async fn put_missing_back(&self, after: Option<&QueuedJob>) -> Result<Option<QueuedJob>, UpkeepError> {
        let core = &self.core;
        let page = core.parts.database.queued_jobs(after, PAGE).await?;
        let full = i64::try_from(page.len()).unwrap_or(0) >= PAGE;
        let last = page.last().filter(|_| full).cloned();
        let mut absent = self.absent(page).await?;
        if absent.is_empty() {
            return Ok(last);
        }
        // What was just committed may be on its way: a moment later only a loss is left.
        let mut end = core.end.subscribe();
        tokio::select! {
            () = tokio::time::sleep(ON_THE_WAY) => {}
            _ = end.wait_for(Option::is_some) => return Ok(None),
        }
        absent = self.absent(absent).await?;
        // PostgreSQL last: what was given to a worker meanwhile is not queued any more.
        let ids: Vec<JobId> = absent.iter().map(|job| job.id).collect();
        let queued: HashSet<JobId> = core.parts.database.still_queued(&ids).await?.into_iter().collect();
        let missing: Vec<Entry> = absent.iter().filter(|job| queued.contains(&job.id)).map(entry).collect();
        if !missing.is_empty() {
            tracing::warn!(jobs = missing.len(), "The ready queue lacked jobs; they are put back.");
            let told = core.parts.queue.enqueue(core.parts.fence.epoch, &missing).await;
            told.inspect_err(|error| core.note_queue_failure(error))?;
            core.backlog().note(missing.into_iter().map(|entry| entry.shape));
            core.nudges.schedule.notify_one();
        }
        Ok(last)
    }

    /// Those of the jobs that are neither in the ready queue nor claimed.
    async fn absent(&self, jobs: Vec<QueuedJob>) -> Result<Vec<QueuedJob>, UpkeepError> {
        let asked: Vec<_> = jobs.iter().map(|job| (job.id, job.shape.clone())).collect();
        let present = self.core.parts.queue.contains(&asked).await?;
        Ok(jobs.into_iter().zip(present).filter(|(_, present)| !present).map(|(job, _)| job).collect())
    }

    /// Takes out of the ready queue what PostgreSQL does not call queued.
    async fn drop_strangers(&self) -> Result<(), UpkeepError> {
        let core = &self.core;
        for (shape, _) in core.parts.queue.shapes().await? {
            let mut cursor = Some(0);
            while let Some(at) = cursor {
                let (members, next) = core.parts.queue.members_page(&shape, at).await?;
                let queued = core.parts.database.still_queued(&members).await?;
                let strangers: Vec<_> = members
                    .into_iter()
                    .filter(|job| !queued.contains(job))
                    .map(|job| (job, shape.clone()))
                    .collect();
                core.parts.queue.remove(core.parts.fence.epoch, &strangers).await?;
                cursor = next;
            }
        }
        Ok(())
    }
}

fn entry(job: &QueuedJob) -> Entry {
    Entry { job_id: job.id, shape: job.shape.clone(), priority: job.priority, submitted_at: job.submitted_at }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_leads_no_more_shows_no_depth() {
        let metrics = Arc::new(Metrics::new());
        let memory = Reconciliation::new(Arc::clone(&metrics));
        memory.show([3; 10]);
        assert_eq!(metrics.queue_depth.with_label_values(&["10"]).get(), 3);
        drop(memory);
        assert_eq!(metrics.queue_depth.with_label_values(&["10"]).get(), 0);
    }
}
