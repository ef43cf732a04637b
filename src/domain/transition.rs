//! What an event does to a job: the one place where a job changes its state.
//!
//! Callers lock the rows, fold the events of a batch over them with [`JobState::apply`], and write what
//! came out. Queue entries, freed slots and counters follow from comparing the state before and after,
//! so no caller keeps its own idea of what a transition means.

use chrono::{DateTime, TimeDelta, Utc};

pub use super::event::{Failure, JobEvent, JobPatch, Refusal, Reporter};
pub use super::execution::ExecutionChange;
use super::execution::{ExecutionStatus, Usage};
use super::ids::{JobId, LeaseId, WorkerId};
use super::job::JobStatus;
use super::matching::Shape;
use super::payload::Payload;
use super::retry::{RetryDecision, RetryPolicy};
use super::trace::TraceContext;

/// Error code of an attempt that ran past its deadline.
pub const TIMEOUT: &str = "timeout";
/// Error code of an attempt whose worker went silent or registered again.
pub const WORKER_LOST: &str = "worker_lost";
/// Error code of the attempt with which a job took its last worker down: it is not tried again.
pub const POISON: &str = "poison";
/// Error code of an attempt that the worker handed back, or never fetched.
pub const REJECTED: &str = "rejected";

/// How many different workers a job may take down, whatever its retry policy says.
pub const MOST_LOST_WORKERS: usize = 3;

/// How many workers may be lost with a job that they have not begun: one alone may have been gone before.
pub const MOST_EARLY_LOSSES: u32 = 10;

/// How long a handed-back job waits before it is offered again, in milliseconds.
const REJECTED_DELAY_MS: i64 = 1_000;

/// What is said of an attempt whose worker was lost.
const LOST: &str = "The worker was lost.";

/// A live lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The token.
    pub id: LeaseId,
    /// Who holds it.
    pub worker_id: WorkerId,
    /// Whether the holder said that the job runs.
    pub running: bool,
    /// From this moment on the lease is worth nothing.
    pub expires_at: DateTime<Utc>,
}

/// A locked job, as far as decisions need it.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the columns of the specification's table")]
pub struct JobState {
    pub id: JobId,
    pub status: JobStatus,
    pub priority: u8,
    pub shape: Shape,
    pub submitted_at: DateTime<Utc>,
    pub retry_count: u32,
    pub max_retries: u32,
    pub retry_policy: RetryPolicy,
    pub timeout_seconds: u32,
    pub next_retry_at: Option<DateTime<Utc>>,
    pub retry_backoff_seconds: Option<i64>,
    pub queued_at: Option<DateTime<Utc>>,
    pub assigned_at: Option<DateTime<Utc>>,
    pub assigned_worker_id: Option<WorkerId>,
    pub started_at: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
    pub execution_duration_ms: Option<i64>,
    pub output_data: Option<Payload>,
    pub error_message: Option<String>,
    pub error_stack: Option<String>,
    /// Workers that were lost while they ran the job, each once.
    pub lost_workers: Vec<WorkerId>,
    /// How often a worker was lost after the job was given to it and before it said that it runs.
    pub early_losses: u32,
    /// The live lease, if any; a job driven from outside runs without one.
    pub lease: Option<Lease>,
    pub trace: Option<TraceContext>,
    /// What happened to leases of this job while events were applied.
    pub executions: Vec<ExecutionChange>,
}

/// Why an attempt ended that its worker handed back with `message`.
pub fn rejection(message: &str) -> Failure {
    failure(REJECTED, if message.is_empty() { "The worker rejected the job." } else { message })
}

impl JobState {
    /// Applies one event at the database's time `now`; `unit` is a random number in `[0, 1)`.
    /// A refusal leaves the state as it was.
    pub fn apply(&mut self, event: &JobEvent, now: DateTime<Utc>, unit: f64) -> Result<(), Refusal> {
        match event {
            JobEvent::Started { by, usage } => self.start(*by, *usage, now),
            JobEvent::Rejected { by, message } => {
                let lease = self.held(*by, now)?;
                self.hand_back(&lease, message, now, unit);
                Ok(())
            }
            JobEvent::Completed { by, output, duration_ms, usage } => {
                let lease = self.held(*by, now)?;
                self.complete(&lease, output.clone(), *duration_ms, *usage, now);
                Ok(())
            }
            JobEvent::Failed { by, failure, duration_ms, usage } => {
                let lease = self.held(*by, now)?;
                let duration = self.duration(*duration_ms, now);
                let change = self.execution(&lease);
                change.duration_ms = duration;
                change.usage = *usage;
                self.fail_attempt(Some(&lease), failure.clone(), now, unit);
                Ok(())
            }
            JobEvent::DeadlinePassed { lease } => {
                self.time_out(*lease, now, unit);
                Ok(())
            }
            JobEvent::WorkerLost { lease } => {
                self.lose_worker(*lease, now, unit);
                Ok(())
            }
            JobEvent::WorkerRemoved { lease } => {
                if let Some(lease) = self.lease.clone().filter(|held| held.id == *lease) {
                    self.lose_lease(&lease, failure(WORKER_LOST, "The worker was removed."), now, unit);
                }
                Ok(())
            }
            JobEvent::NotFetched { lease } => {
                if let Some(lease) = self.lease.clone().filter(|held| held.id == *lease && !held.running) {
                    let failure = failure(REJECTED, "The worker did not fetch the job in time.");
                    self.requeue(&lease, failure, now);
                }
                Ok(())
            }
            JobEvent::Cancel => self.cancel(now),
            JobEvent::Clear if self.status == JobStatus::Queued => self.cancel(now),
            JobEvent::Clear => Err(Refusal::Illegal { from: self.status, action: "cleared from the queue" }),
            JobEvent::Retry => self.retry_now(now),
            JobEvent::Patch(patch) => self.patch(patch, now, unit),
            JobEvent::Due => {
                if self.status == JobStatus::Pending && self.next_retry_at.is_none_or(|due| due <= now) {
                    self.enqueue(now);
                }
                Ok(())
            }
        }
    }

    fn start(&mut self, by: Reporter, usage: Usage, now: DateTime<Utc>) -> Result<(), Refusal> {
        let mut lease = self.held(by, now)?;
        if lease.running {
            return Ok(());
        }
        lease.running = true;
        lease.expires_at = now + TimeDelta::seconds(self.timeout_seconds.into());
        let change = self.execution(&lease);
        change.status = ExecutionStatus::Running;
        change.started_at = Some(now);
        change.expires_at = lease.expires_at;
        change.usage = usage;
        self.lease = Some(lease);
        self.started_at = Some(now);
        self.go(JobStatus::Running);
        Ok(())
    }

    fn complete(
        &mut self,
        lease: &Lease,
        output: Option<Payload>,
        duration_ms: Option<i64>,
        usage: Usage,
        now: DateTime<Utc>,
    ) {
        let duration = self.duration(duration_ms, now);
        // A completion stands for the report of the start, too, if that did not come before it.
        let since = now - TimeDelta::milliseconds(duration.unwrap_or(0));
        let started = self.started_at.or_else(|| self.assigned_at.map(|assigned| assigned.max(since)));
        self.started_at = started;
        let change = self.execution(lease);
        change.started_at = started;
        change.duration_ms = duration;
        change.usage = usage;
        change.output_data.clone_from(&output);
        self.end_lease(lease, ExecutionStatus::Completed, None, now);
        self.finish(JobStatus::Completed, now);
        self.output_data = output;
        self.execution_duration_ms = duration;
        (self.error_message, self.error_stack) = (None, None);
    }

    /// Run time as reported, else as seen from here.
    fn duration(&self, reported: Option<i64>, now: DateTime<Utc>) -> Option<i64> {
        let since = self.started_at.or(self.assigned_at);
        reported.filter(|ms| *ms > 0).or_else(|| since.map(|since| (now - since).num_milliseconds().max(0)))
    }

    /// Back to the worker pool after the worker handed it back; a job that ran spends a retry.
    fn hand_back(&mut self, lease: &Lease, message: &str, now: DateTime<Utc>, unit: f64) {
        let failure = rejection(message);
        if lease.running {
            self.fail_attempt(Some(lease), failure, now, unit);
        } else {
            self.end_lease(lease, ExecutionStatus::Cancelled, Some(failure), now);
            self.retry_backoff_seconds = None;
            self.wait_until(now + TimeDelta::milliseconds(REJECTED_DELAY_MS));
        }
    }

    fn lose_worker(&mut self, lease: LeaseId, now: DateTime<Utc>, unit: f64) {
        let Some(lease) = self.lease.clone().filter(|held| held.id == lease) else { return };
        if !lease.running {
            self.early_losses += 1;
        } else if !self.lost_workers.contains(&lease.worker_id) {
            self.lost_workers.push(lease.worker_id);
        }
        let losses = match (lease.running, self.lost_workers.len(), self.early_losses) {
            (true, lost @ MOST_LOST_WORKERS.., _) => {
                format!("{lost} different workers were lost while they ran")
            }
            (false, _, early @ MOST_EARLY_LOSSES..) => {
                format!("{early} times a worker was lost before it ran")
            }
            _ => return self.lose_lease(&lease, failure(WORKER_LOST, LOST), now, unit),
        };
        let message = format!("{losses} the job; it is not tried again.");
        self.end_attempt(Some(&lease), ExecutionStatus::Failed, failure(POISON, &message), now);
        self.give_up(JobStatus::Failed, now);
    }

    /// A job that had not begun waits again, and has spent nothing.
    fn lose_lease(&mut self, lease: &Lease, failure: Failure, now: DateTime<Utc>, unit: f64) {
        if lease.running {
            self.fail_attempt(Some(lease), failure, now, unit);
        } else {
            self.requeue(lease, failure, now);
        }
    }

    fn time_out(&mut self, lease: Option<LeaseId>, now: DateTime<Utc>, unit: f64) {
        let passed = match (&self.lease, lease) {
            (Some(held), Some(lease)) => held.id == lease && held.expires_at <= now,
            (None, None) => {
                let limit = TimeDelta::seconds(self.timeout_seconds.into());
                self.status == JobStatus::Running
                    && self.started_at.is_some_and(|started| started + limit <= now)
            }
            _ => false,
        };
        if passed {
            let message = format!("The attempt ran longer than {} s.", self.timeout_seconds);
            self.fail_attempt(self.lease.clone().as_ref(), failure(TIMEOUT, &message), now, unit);
        }
    }

    /// Ends the attempt and lets the retry policy say what becomes of the job.
    fn fail_attempt(&mut self, lease: Option<&Lease>, failure: Failure, now: DateTime<Utc>, unit: f64) {
        let code = failure.code.as_deref();
        let (job_end, execution_end) = if code == Some(TIMEOUT) {
            (JobStatus::Timeout, ExecutionStatus::Timeout)
        } else {
            (JobStatus::Failed, ExecutionStatus::Failed)
        };
        let decision = self.retry_policy.decide(self.retry_count, self.max_retries, code, unit);
        self.end_attempt(lease, execution_end, failure, now);
        match decision {
            RetryDecision::RetryAfter(delay) => {
                let delay = TimeDelta::from_std(delay).unwrap_or(TimeDelta::MAX);
                self.retry_count += 1;
                self.retry_backoff_seconds = Some((delay.num_milliseconds() + 999) / 1000);
                self.wait_until(now + delay);
            }
            RetryDecision::Spent | RetryDecision::NotRetryable => self.give_up(job_end, now),
        }
    }

    fn end_attempt(
        &mut self,
        lease: Option<&Lease>,
        status: ExecutionStatus,
        failure: Failure,
        now: DateTime<Utc>,
    ) {
        self.error_message = Some(failure.message.clone());
        self.error_stack.clone_from(&failure.stack);
        if let Some(lease) = lease {
            self.end_lease(lease, status, Some(failure), now);
        }
    }

    /// The job has failed for good.
    fn give_up(&mut self, status: JobStatus, now: DateTime<Utc>) {
        self.execution_duration_ms = self.duration(None, now);
        self.finish(status, now);
    }

    fn cancel(&mut self, now: DateTime<Utc>) -> Result<(), Refusal> {
        if !self.status.may_become(JobStatus::Cancelled) {
            return Err(Refusal::Illegal { from: self.status, action: "cancelled" });
        }
        if let Some(lease) = self.lease.clone() {
            self.end_lease(&lease, ExecutionStatus::Cancelled, None, now);
        }
        self.finish(JobStatus::Cancelled, now);
        Ok(())
    }

    fn retry_now(&mut self, now: DateTime<Utc>) -> Result<(), Refusal> {
        match self.status {
            JobStatus::Pending => {
                self.retry_backoff_seconds = None;
                self.next_retry_at = Some(now);
            }
            JobStatus::Failed | JobStatus::Timeout | JobStatus::Cancelled => {
                self.retry_count += 1;
                self.completed_at = None;
                self.execution_duration_ms = None;
                self.output_data = None;
                self.lost_workers.clear();
                self.early_losses = 0;
                (self.error_message, self.error_stack) = (None, None);
                self.retry_backoff_seconds = None;
                self.wait_until(now);
            }
            JobStatus::Queued | JobStatus::Assigned | JobStatus::Running | JobStatus::Completed => {
                return Err(Refusal::Illegal { from: self.status, action: "retried" });
            }
        }
        Ok(())
    }

    fn patch(&mut self, patch: &JobPatch, now: DateTime<Utc>, unit: f64) -> Result<(), Refusal> {
        if patch.status == Some(JobStatus::Cancelled) {
            self.cancel(now)?;
            self.keep_results_of(patch);
            return Ok(());
        }
        if self.status.is_terminal() {
            return Err(Refusal::Illegal { from: self.status, action: "changed" });
        }
        if let Some(lease) = &self.lease {
            return Err(Refusal::HeldByWorker(lease.worker_id));
        }
        let given_away = patch.assigned_worker_id.is_some_and(|to| Some(to) != self.assigned_worker_id);
        if given_away && patch.status.is_some_and(JobStatus::is_terminal) {
            return Err(Refusal::Illegal { from: self.status, action: "given to a worker as it ends" });
        }
        match patch.status {
            None if patch.assigned_worker_id.is_none() => {}
            // Who drives it may change while it runs.
            None if self.status == JobStatus::Running => self.assigned_worker_id = patch.assigned_worker_id,
            None => return Err(Refusal::Illegal { from: self.status, action: "given to a worker" }),
            Some(JobStatus::Running) if matches!(self.status, JobStatus::Pending | JobStatus::Queued) => {
                self.started_at = Some(now);
                self.assigned_worker_id = patch.assigned_worker_id;
                self.next_retry_at = None;
                self.go(JobStatus::Running);
            }
            Some(JobStatus::Completed) if self.status == JobStatus::Running => {
                self.execution_duration_ms = self.duration(patch.execution_duration_ms, now);
                self.finish(JobStatus::Completed, now);
            }
            Some(JobStatus::Failed) => {
                let failure = Failure {
                    message: patch.error_message.clone().unwrap_or_else(|| "Failed from outside.".to_owned()),
                    stack: patch.error_stack.clone(),
                    code: None,
                };
                self.fail_attempt(None, failure, now, unit);
            }
            Some(JobStatus::Timeout) if self.status == JobStatus::Running => {
                let message = patch.error_message.as_deref().unwrap_or("Timed out from outside.");
                self.fail_attempt(None, failure(TIMEOUT, message), now, unit);
            }
            Some(next) => return Err(Refusal::Illegal { from: self.status, action: next.as_str() }),
        }
        self.keep_results_of(patch);
        Ok(())
    }

    fn keep_results_of(&mut self, patch: &JobPatch) {
        if patch.output_data.is_some() {
            self.output_data.clone_from(&patch.output_data);
        }
        if patch.error_message.is_some() {
            self.error_message.clone_from(&patch.error_message);
        }
        if patch.error_stack.is_some() {
            self.error_stack.clone_from(&patch.error_stack);
        }
        if patch.execution_duration_ms.is_some() {
            self.execution_duration_ms = patch.execution_duration_ms;
        }
    }

    /// The lease under which `by` may report.
    fn held(&self, by: Reporter, now: DateTime<Utc>) -> Result<Lease, Refusal> {
        let lease = self.lease.as_ref().filter(|lease| {
            lease.worker_id == by.worker_id
                && by.lease.is_none_or(|reported| reported == lease.id)
                && by.attempt_number.is_none_or(|reported| reported == self.retry_count + 1)
        });
        match lease {
            None => Err(Refusal::NotHolder),
            Some(lease) if lease.expires_at <= now => Err(Refusal::LeaseExpired),
            Some(lease) => Ok(lease.clone()),
        }
    }

    /// The change to the execution of `lease` that is being gathered.
    fn execution(&mut self, lease: &Lease) -> &mut ExecutionChange {
        let at = self.executions.iter().position(|change| change.lease == lease.id).unwrap_or_else(|| {
            self.executions.push(ExecutionChange {
                lease: lease.id,
                worker_id: lease.worker_id,
                status: if lease.running { ExecutionStatus::Running } else { ExecutionStatus::Started },
                started_at: None,
                expires_at: lease.expires_at,
                completed_at: None,
                duration_ms: None,
                output_data: None,
                error: None,
                usage: Usage::default(),
            });
            self.executions.len() - 1
        });
        &mut self.executions[at]
    }

    fn end_lease(
        &mut self,
        lease: &Lease,
        status: ExecutionStatus,
        error: Option<Failure>,
        now: DateTime<Utc>,
    ) {
        let duration = self.duration(None, now);
        let change = self.execution(lease);
        change.status = status;
        change.completed_at = Some(now);
        change.duration_ms = change.duration_ms.or(duration);
        change.error = error;
        self.lease = None;
    }

    /// Back to the ready queue without spending a retry.
    fn requeue(&mut self, lease: &Lease, failure: Failure, now: DateTime<Utc>) {
        self.end_lease(lease, ExecutionStatus::Cancelled, Some(failure), now);
        self.enqueue(now);
    }

    fn enqueue(&mut self, now: DateTime<Utc>) {
        self.leave_worker();
        self.next_retry_at = None;
        self.queued_at = Some(now);
        self.go(JobStatus::Queued);
    }

    fn wait_until(&mut self, due: DateTime<Utc>) {
        self.leave_worker();
        self.queued_at = None;
        // Kept to the millisecond and never early: a fraction is rounded up.
        let ms = due.timestamp_subsec_nanos() % 1_000_000;
        let up = if ms == 0 { 0 } else { i64::from(1_000_000 - ms) };
        self.next_retry_at = Some(due + TimeDelta::nanoseconds(up));
        self.go(JobStatus::Pending);
    }

    fn finish(&mut self, status: JobStatus, now: DateTime<Utc>) {
        self.next_retry_at = None;
        self.completed_at = Some(now);
        self.go(status);
    }

    fn leave_worker(&mut self) {
        self.assigned_worker_id = None;
        self.assigned_at = None;
        self.started_at = None;
    }

    fn go(&mut self, next: JobStatus) {
        debug_assert!(self.status.may_become(next), "{} to {next}", self.status);
        self.status = next;
    }
}

fn failure(code: &str, message: &str) -> Failure {
    Failure { message: message.to_owned(), stack: None, code: Some(code.to_owned()) }
}

#[cfg(test)]
#[path = "transition_tests.rs"]
mod tests;
