//! What the leader notes of jobs that are traced: one span for what happened to one job, however many shared the
//! statement.
//!
//! ```text
//! leader.job.store               the submission, committed
//!  └ scheduler.job.assign        one for each attempt, named after its lease
//!     ├ worker.job.run           the worker's own, if it sends any
//!     └ leader.job.start, leader.job.complete, leader.job.fail, …   what was reported, or found out, committed
//! ```
//!
//! The context of `leader.job.store` is kept with the job, so whoever leads later goes on with the same trace.

use chrono::{DateTime, TimeDelta, Utc};

use super::Core;
use crate::domain::ids::{JobId, LeaseId, WorkerId};
use crate::domain::job::{JobStatus, NewJob};
use crate::domain::trace::TraceContext;
use crate::domain::transition::JobState;
use crate::storage::{Claim, Completed, Completion, Promoted};
use crate::telemetry::traces::{Span, SpanKind};

impl Core {
    /// The storing of a submission.
    pub(super) fn trace_submission(&self, jobs: &[NewJob]) -> Option<Span> {
        let mut span = self.parts.tracer.storing(jobs.first()?.id, "leader.job.store")?;
        span.set("cortex.jobs", i64::try_from(jobs.len()).unwrap_or(i64::MAX));
        if let [job] = jobs {
            span.set("cortex.job.id", job.id.to_string());
            span.set("cortex.model.name", job.model_name.clone());
        }
        Some(span)
    }

    /// An assignment, which was just committed, of a job that has waited for it. Answers where the worker's own work
    /// belongs.
    pub(super) fn trace_assignment(
        &self,
        stored: &TraceContext,
        claim: &Claim,
        attempt: u32,
        wait_ms: i64,
    ) -> Box<TraceContext> {
        let tracer = &self.parts.tracer;
        let span = tracer.attempt(stored, claim.lease, "scheduler.job.assign", SpanKind::Producer);
        let Some(mut span) = span else { return Box::new(stored.clone()) };
        let now = self.parts.ambient.now();
        span.lasted(now - TimeDelta::milliseconds(wait_ms.max(0)), now);
        describe(&mut span, claim.job_id, Some(claim.worker_id));
        span.set("cortex.job.attempt", i64::from(attempt));
        Box::new(span.context().clone())
    }

    /// A completion that was committed on the short way.
    pub(super) fn trace_completion(&self, row: &Completion<'_>, done: &Completed, began: DateTime<Utc>) {
        let Some(trace) = &done.trace else { return };
        if let Some(mut span) = self.trace_report(trace, Some(row.lease), "leader.job.complete", began) {
            describe(&mut span, row.job_id, Some(row.worker_id));
            span.set("cortex.job.run_ms", done.duration_ms);
        }
    }

    /// Whatever else changed a job, committed.
    pub(super) fn trace_change(&self, before: &JobState, after: &JobState, began: DateTime<Utc>) {
        let Some(trace) = &after.trace else { return };
        let lease = before.lease.as_ref().or(after.lease.as_ref());
        let Some(mut span) =
            self.trace_report(trace, lease.map(|lease| lease.id), name(before, after), began)
        else {
            return;
        };
        let worker = lease.map(|lease| lease.worker_id).or(after.assigned_worker_id);
        describe(&mut span, after.id, worker);
        span.set("cortex.job.status", after.status.as_str());
        span.set("cortex.job.attempt", i64::from(before.retry_count) + 1);
        // Never the text: it is the job's own, and may be sealed.
        let code = after.executions.iter().filter_map(|change| change.error.as_ref()).next_back();
        match code {
            Some(error) => span.fail(error.code.clone().unwrap_or_else(|| "failed".to_owned())),
            None if matches!(after.status, JobStatus::Failed | JobStatus::Timeout) => {
                span.fail(after.status.as_str());
            }
            None => {}
        }
    }

    /// The time of a job that waited for it has come, committed.
    pub(super) fn trace_promotion(&self, job: &Promoted, began: DateTime<Utc>) {
        let Some(trace) = &job.trace else { return };
        let Some(mut span) = self.trace_report(trace, None, "leader.job.requeue", began) else { return };
        describe(&mut span, job.id, None);
        span.set("cortex.job.status", JobStatus::Queued.as_str());
        span.set("cortex.job.attempt", i64::from(job.retry_count) + 1);
    }

    fn trace_report(
        &self,
        stored: &TraceContext,
        lease: Option<LeaseId>,
        name: &'static str,
        began: DateTime<Utc>,
    ) -> Option<Span> {
        let tracer = &self.parts.tracer;
        let parent = match lease {
            Some(lease) => tracer.of_attempt(stored.clone(), lease),
            None => stored.clone(),
        };
        let mut span = tracer.under(&parent, name, SpanKind::Internal)?;
        span.lasted(began, self.parts.ambient.now());
        Some(span)
    }
}

/// What happened, by what came of it.
fn name(before: &JobState, after: &JobState) -> &'static str {
    match after.status {
        JobStatus::Running if before.status == JobStatus::Running => "leader.job.update",
        JobStatus::Running => "leader.job.start",
        JobStatus::Completed => "leader.job.complete",
        JobStatus::Failed => "leader.job.fail",
        JobStatus::Timeout => "leader.job.time_out",
        JobStatus::Cancelled => "leader.job.cancel",
        JobStatus::Pending => "leader.job.retry",
        JobStatus::Queued => "leader.job.requeue",
        JobStatus::Assigned => "leader.job.update",
    }
}

fn describe(span: &mut Span, job: JobId, worker: Option<WorkerId>) {
    span.set("cortex.job.id", job.to_string());
    if let Some(worker) = worker {
        span.set("cortex.worker.id", worker.to_string());
    }
}
