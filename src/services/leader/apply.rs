//! Letting things happen to jobs: reports, cancellations, retries, deadlines, hundreds in one
//! transaction.
//!
//! Lock the jobs, fold the events over them, write what came out, commit, answer. What a transition
//! means for the ready queue, the fleet and the counters follows from the state before and after.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use chrono::{DateTime, Utc};
use prometheus::Histogram;
use tokio::sync::oneshot;

use super::feed::FeedItem;
use super::{Core, EVENT_SLOT, Leader};
use crate::domain::changes::JobChange;
use crate::domain::execution::ExecutionStatus;
use crate::domain::ids::{JobId, LeaseId, WorkerId};
use crate::domain::job::JobStatus;
use crate::domain::payload::Payload;
use crate::domain::transition::{JobEvent, JobState, Refusal, Reporter, rejection};
use crate::planted::{Plant, planted};
use crate::ready_queue::Entry;
use crate::security::Caller;
use crate::services::batcher::{Batcher, Limits, Stage};
use crate::services::command::Applied;
use crate::services::crash;
use crate::services::error::{Conflict, ServiceError};
use crate::storage::{Deltas, FencedTransaction, StorageError, WorkerTally};

/// How long reports gather under load. A worker that reports goes on with its other jobs meanwhile.
const LINGER: Duration = Duration::from_millis(10);

type Outcome = Result<Applied, ServiceError>;

/// One caller's event.
pub(super) struct EventItem {
    pub job: JobId,
    pub event: JobEvent,
    pub reply: Option<oneshot::Sender<Outcome>>,
}

/// A job that the batch touches.
struct Touched {
    before: JobState,
    after: JobState,
    /// The holder of the lease has reported.
    by_holder: bool,
}

/// What a committed batch did.
struct Done {
    outcomes: Vec<Outcome>,
    touched: Vec<Touched>,
    /// The live lease of every job that was looked at.
    leases: HashMap<JobId, LeaseId>,
    now: DateTime<Utc>,
}

impl EventItem {
    pub(super) fn bytes(&self) -> usize {
        256 + match &self.event {
            JobEvent::Completed { output, .. } => output.as_ref().map_or(0, |output| output.as_str().len()),
            JobEvent::Patch(patch) => {
                let texts = [&patch.error_message, &patch.error_stack];
                let texts: usize = texts.into_iter().flatten().map(String::len).sum();
                texts + patch.output_data.as_ref().map_or(0, |output| output.as_str().len())
            }
            JobEvent::Rejected { message, .. } => message.len(),
            JobEvent::Failed { failure, .. } => {
                failure.message.len() + failure.stack.as_ref().map_or(0, String::len)
            }
            _ => 0,
        }
    }
}

/// One committer, so that no two transactions tally the same worker.
pub(super) fn start(core: &Arc<Core>, stage: &Stage, sizes: &Histogram) -> Batcher<EventItem> {
    let core = Arc::clone(core);
    let limits = Limits { linger: LINGER, ..Limits::default() };
    Batcher::start(stage, limits, &[EVENT_SLOT], sizes, move |slot, batch| {
        let core = Arc::clone(&core);
        async move { core.apply_events(slot, batch).await }
    })
}

impl Core {
    async fn apply_events(&self, slot: i16, mut batch: Vec<EventItem>) {
        if planted(Plant::CompletionBeforeCommit) {
            let completions =
                batch.iter_mut().filter(|item| matches!(item.event, JobEvent::Completed { .. }));
            completions.for_each(accept_unseen);
        }
        let rest = match self.complete(slot, &batch).await {
            Ok(completed) => self.settle_completed(batch, completed),
            // Checked values that PostgreSQL refuses all the same: the long way finds out which.
            Err(StorageError::Rejected(_)) => batch,
            Err(error) => return refuse(batch, &error.into()),
        };
        if rest.is_empty() {
            return;
        }
        let began = self.parts.tracer.now();
        match self.commit_events(slot, &rest).await {
            Ok(done) => self.settle(rest, done, began),
            // They must not fail their neighbours.
            Err(StorageError::Rejected(_)) if rest.len() > 1 => {
                for item in rest {
                    let alone = [item];
                    let done = self.commit_events(slot, &alone).await;
                    match done {
                        Ok(done) => self.settle(alone.into(), done, began),
                        Err(error) => refuse(alone.into(), &error.into()),
                    }
                }
            }
            Err(error) => refuse(rest, &error.into()),
        }
    }

    async fn commit_events(&self, slot: i16, batch: &[EventItem]) -> Result<Done, StorageError> {
        self.transaction("apply_events", || async {
            let mut transaction = self.begin().await?;
            let done = self.write_events(&mut transaction, slot, batch).await?;
            transaction.commit().await.map(|()| done)
        })
        .await
    }

    /// The long way: locks the jobs, folds the events over them, writes what came out.
    async fn write_events(
        &self,
        transaction: &mut FencedTransaction,
        slot: i16,
        batch: &[EventItem],
    ) -> Result<Done, StorageError> {
        let mut ids: Vec<JobId> = batch.iter().map(|item| item.job).collect();
        ids.sort_unstable();
        ids.dedup();
        let (now, states) = transaction.lock_jobs(&ids, &self.parts.defaults.retry).await?;
        let mut touched: HashMap<JobId, Touched> = states
            .into_iter()
            .map(|state| (state.id, Touched { before: state.clone(), after: state, by_holder: false }))
            .collect();
        let verdicts: Vec<Option<Result<(), Refusal>>> = batch
            .iter()
            .map(|item| {
                let job = touched.get_mut(&item.job)?;
                let event = judged(&item.event, &job.after);
                let verdict = job.after.apply(&event, now, self.parts.ambient.unit());
                if planted(Plant::RetriesEarly) && job.after.retry_count > job.before.retry_count {
                    job.after.next_retry_at = job.after.next_retry_at.map(|due| now + (due - now) / 2);
                }
                job.by_holder |= verdict.is_ok() && reporter(&item.event).is_some();
                Some(verdict)
            })
            .collect();
        let leases =
            touched.values().filter_map(|job| Some((job.after.id, job.after.lease.as_ref()?.id))).collect();
        let touched: Vec<Touched> = touched.into_values().filter(|job| job.before != job.after).collect();
        write_changes(transaction, slot, &touched).await?;
        let mut outcomes = Vec::with_capacity(batch.len());
        for (item, verdict) in batch.iter().zip(verdicts) {
            outcomes.push(match verdict {
                None => Err(ServiceError::no_job(item.job)),
                Some(Ok(())) => Ok(applied(transaction, item).await?),
                Some(Err(refusal)) => explain_refusal(transaction, item, refusal).await?,
            });
        }
        Ok(Done { outcomes, touched, leases, now })
    }

    /// After the commit: ready queue, fleet, metrics, then answers.
    fn settle(&self, batch: Vec<EventItem>, done: Done, began: Option<DateTime<Utc>>) {
        crash::point("applied");
        if let Some(began) = began {
            let changed = done.touched.iter();
            changed.for_each(|job| self.trace_change(&job.before, &job.after, began));
        }
        // Before the leases end, so that a worker that has to rest gets nothing in between.
        self.judge_workers(&done.touched);
        self.announce(|| {
            let changed = |job: &&Touched| job.before.status != job.after.status;
            done.touched.iter().filter(changed).map(|Touched { after, .. }| JobChange {
                job_id: after.id,
                status: after.status,
                worker_id: after.assigned_worker_id,
                at: done.now,
            })
        });
        for job in &done.touched {
            self.follow(job, done.now);
        }
        for (item, outcome) in batch.into_iter().zip(done.outcomes) {
            // A lease that PostgreSQL does not call live must not take a slot, whoever ended it.
            if let Some(lease) =
                named_lease(&item.event).filter(|lease| done.leases.get(&item.job) != Some(lease))
            {
                let mut fleet = self.fleet();
                // Who names another's lease, or that of another job, has said nothing about it.
                let by = reporter(&item.event).map(|by| by.worker_id);
                if fleet.is_lease_of(lease, item.job, by) {
                    fleet.release(lease, true);
                }
            }
            if let Some(reply) = item.reply {
                drop(reply.send(outcome));
            }
        }
    }

    /// Tells the fleet how attempts ended. Failures first: where a batch holds both, the tally counts the success
    /// as the later one, too.
    fn judge_workers(&self, touched: &[Touched]) {
        let changes = || touched.iter().flat_map(|job| &job.after.executions);
        let now = self.now();
        let mut fleet = self.fleet();
        for change in changes().filter(|change| change.blames_worker()) {
            fleet.note_failure(change.worker_id, now);
        }
        for change in changes().filter(|change| change.status == ExecutionStatus::Completed) {
            fleet.note_success(change.worker_id);
        }
    }

    /// What a transition means outside PostgreSQL.
    fn follow(&self, job: &Touched, now: DateTime<Utc>) {
        let (before, after) = (&job.before, &job.after);
        self.follow_lease(job);
        let waits = |status| matches!(status, JobStatus::Pending | JobStatus::Queued);
        let change = i64::from(waits(after.status)) - i64::from(waits(before.status));
        self.waiting.fetch_add(change, Ordering::Relaxed);
        match (before.status == JobStatus::Queued, after.status == JobStatus::Queued) {
            (true, false) => self.feed(FeedItem::Remove(after.id, after.shape.clone())),
            (false, true) => {
                self.parts.metrics.jobs_queued.inc();
                self.feed(FeedItem::Add(Entry {
                    job_id: after.id,
                    shape: after.shape.clone(),
                    priority: after.priority,
                    submitted_at: after.submitted_at,
                }));
            }
            _ => {}
        }
        if let (JobStatus::Pending, Some(due)) = (after.status, after.next_retry_at) {
            self.promote_at((due - now).to_std().unwrap_or(Duration::ZERO));
        }
        if after.retry_count > before.retry_count {
            let attempt = after.retry_count.to_string();
            self.parts.metrics.jobs_retried.with_label_values(&[&attempt]).inc();
        }
        if after.status.is_terminal() && !before.status.is_terminal() {
            self.parts.metrics.jobs_finished.with_label_values(&[after.status.as_str()]).inc();
        }
    }

    fn follow_lease(&self, Touched { before, after, by_holder }: &Touched) {
        match (&before.lease, &after.lease) {
            (Some(held), None) => {
                self.fleet().release(held.id, *by_holder);
                self.nudges.schedule.notify_one();
            }
            (Some(held), Some(now)) if now.running && !held.running => {
                self.fleet().mark_running(held.id, self.now());
            }
            _ => {}
        }
        for change in &after.executions {
            if let (ExecutionStatus::Completed, Some(ms)) = (change.status, change.duration_ms) {
                #[expect(clippy::cast_precision_loss, reason = "a duration for a histogram")]
                self.parts.metrics.job_run.observe(ms as f64 / 1000.0);
            }
        }
    }

    /// A retry is due after `delay`.
    pub(super) fn promote_at(&self, delay: Duration) {
        let due = self.now() + delay;
        let mut next = self.next_due.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if next.is_none_or(|next| due < next) {
            *next = Some(due);
            self.nudges.promote.notify_one();
        }
    }
}

async fn write_changes(
    transaction: &mut FencedTransaction,
    slot: i16,
    touched: &[Touched],
) -> Result<(), StorageError> {
    let jobs: Vec<&JobState> = touched.iter().map(|job| &job.after).collect();
    let executions: Vec<_> =
        jobs.iter().flat_map(|job| job.executions.iter().map(|change| (job.id, change))).collect();
    let mut deltas = Deltas::default();
    let mut tallies: HashMap<WorkerId, WorkerTally> = HashMap::new();
    for job in touched {
        if job.before.status != job.after.status {
            deltas.moved(job.before.status, job.after.status);
        }
        for change in &job.after.executions {
            let tally = tallies.entry(change.worker_id).or_default();
            match change.status {
                ExecutionStatus::Completed => {
                    let ms = change.duration_ms.unwrap_or(0);
                    tally.completed += 1;
                    tally.execution_ms += ms;
                    deltas.ran(ms);
                }
                ExecutionStatus::Failed | ExecutionStatus::Timeout => {
                    tally.failed += 1;
                    tally.blamed += i32::from(change.blames_worker());
                }
                ExecutionStatus::Started | ExecutionStatus::Running | ExecutionStatus::Cancelled => {}
            }
        }
    }
    tallies.retain(|_, tally| tally.completed + tally.failed > 0);
    transaction.write_jobs(&jobs).await?;
    transaction.write_executions(&executions).await?;
    transaction.count(slot, &deltas).await?;
    transaction.tally_workers(&tallies.into_iter().collect::<Vec<_>>()).await
}

/// What the caller of an event is answered; clients get to see the job.
async fn applied(transaction: &mut FencedTransaction, item: &EventItem) -> Result<Applied, StorageError> {
    let job = match &item.event {
        JobEvent::Retry | JobEvent::Patch(_) => transaction.job(item.job).await?,
        _ => None,
    };
    Ok(Applied { repeated: false, job: job.map(Box::new) })
}

/// A report without a current lease is fine if it says again what was accepted before.
async fn explain_refusal(
    transaction: &mut FencedTransaction,
    item: &EventItem,
    refusal: Refusal,
) -> Result<Outcome, StorageError> {
    let repeated = refusal == Refusal::NotHolder && says_again(transaction, item.job, &item.event).await?;
    Ok(if repeated { Ok(Applied { repeated, job: None }) } else { Err(refusal.into()) })
}

/// Whether a report says of an ended attempt what was accepted of it.
async fn says_again(
    transaction: &mut FencedTransaction,
    job: JobId,
    event: &JobEvent,
) -> Result<bool, StorageError> {
    Ok(match event {
        JobEvent::Completed { by, output, .. } => {
            let output = output.as_ref().map(Payload::as_str);
            let reported = transaction.reported(job, *by, output, None).await?;
            reported.is_some_and(|ended| ended.status == ExecutionStatus::Completed && ended.same)
        }
        JobEvent::Failed { by, failure, .. } => {
            let reported = transaction.reported(job, *by, None, Some(failure)).await?;
            let ended_badly = |status| matches!(status, ExecutionStatus::Failed | ExecutionStatus::Timeout);
            reported.is_some_and(|ended| ended_badly(ended.status) && ended.same)
        }
        JobEvent::Rejected { by, message } => {
            let reported = transaction.reported(job, *by, None, Some(&rejection(message))).await?;
            // Failed: the job ran already when it was handed back.
            let handed_back = |status| matches!(status, ExecutionStatus::Cancelled | ExecutionStatus::Failed);
            reported.is_some_and(|ended| handed_back(ended.status) && ended.same)
        }
        _ => false,
    })
}

impl Leader {
    /// Takes an event, a report only from a worker that is in service. One that was removed is told of what was
    /// accepted before, and nothing else.
    pub(super) async fn take_event(&self, by: &Caller, job: JobId, event: JobEvent) -> Outcome {
        match self.note_reporter(by, &event).await {
            Ok(()) => self.apply(job, event).await,
            Err(removed @ ServiceError::Conflict(Conflict::Removed(_))) => {
                let repeated = self
                    .core
                    .transaction("repeated_report", || async {
                        says_again(&mut self.core.begin().await?, job, &event).await
                    })
                    .await?;
                if repeated { Ok(Applied { repeated, job: None }) } else { Err(removed) }
            }
            Err(error) => Err(error),
        }
    }
}

/// The event as the job's state is asked about it.
fn judged<'a>(event: &'a JobEvent, job: &JobState) -> Cow<'a, JobEvent> {
    let mut event = Cow::Borrowed(event);
    if planted(Plant::LeaseTokenIgnored)
        && let Some(lease) = &job.lease
        && let JobEvent::Started { by, .. }
        | JobEvent::Rejected { by, .. }
        | JobEvent::Completed { by, .. }
        | JobEvent::Failed { by, .. } = event.to_mut()
    {
        *by = Reporter { worker_id: lease.worker_id, lease: None, attempt_number: None };
    }
    event
}

/// Only where a defect is planted.
fn accept_unseen(item: &mut EventItem) {
    if let Some(reply) = item.reply.take() {
        drop(reply.send(Ok(Applied { repeated: false, job: None })));
    }
}

fn refuse(mut batch: Vec<EventItem>, error: &ServiceError) {
    if planted(Plant::DeposedReportsAccepted) && matches!(error, ServiceError::NoLeader) {
        let reports = batch.iter_mut().filter(|item| reporter(&item.event).is_some());
        reports.for_each(accept_unseen);
    }
    for reply in batch.into_iter().filter_map(|item| item.reply) {
        drop(reply.send(Err(error.clone())));
    }
}

/// The lease that an event is about.
fn named_lease(event: &JobEvent) -> Option<LeaseId> {
    match event {
        JobEvent::WorkerLost { lease }
        | JobEvent::WorkerRemoved { lease }
        | JobEvent::NotFetched { lease } => Some(*lease),
        JobEvent::DeadlinePassed { lease } => *lease,
        _ => reporter(event).and_then(|by| by.lease),
    }
}

pub(super) fn reporter(event: &JobEvent) -> Option<&Reporter> {
    match event {
        JobEvent::Started { by, .. }
        | JobEvent::Rejected { by, .. }
        | JobEvent::Completed { by, .. }
        | JobEvent::Failed { by, .. } => Some(by),
        JobEvent::DeadlinePassed { .. }
        | JobEvent::WorkerLost { .. }
        | JobEvent::WorkerRemoved { .. }
        | JobEvent::NotFetched { .. }
        | JobEvent::Cancel
        | JobEvent::Clear
        | JobEvent::Retry
        | JobEvent::Patch(_)
        | JobEvent::Due => None,
    }
}
