//! From what use cases answer to messages.

use chrono::{DateTime, Utc};
use cortex_client::proto;

use crate::domain::ids::WorkerId;
use crate::domain::job::{Job, JobList, JobStats};
use crate::domain::payload::Payload;
use crate::services::watching::Update;

/// What a client that submits many is told of each.
pub(super) fn submitted(job: &Job) -> proto::SubmittedJob {
    proto::SubmittedJob {
        id: job.id.to_string(),
        status: job.status.as_str().to_owned(),
        submitted_at_ms: ms(job.submitted_at),
    }
}

/// A job with all its fields.
pub(super) fn job(job: Job) -> proto::Job {
    proto::Job {
        id: job.id.to_string(),
        name: job.name,
        model_name: job.model_name,
        model_version: job.model_version,
        status: job.status.as_str().to_owned(),
        priority: job.priority.into(),
        max_retries: count(job.max_retries),
        retry_count: count(job.retry_count),
        timeout_seconds: count(job.timeout_seconds),
        input_data: job.input_data.bytes(),
        output_data: job.output_data.as_ref().map(Payload::bytes).unwrap_or_default(),
        error_message: job.error_message,
        error_stack: job.error_stack,
        assigned_worker_id: worker(job.assigned_worker_id),
        assigned_at_ms: job.assigned_at.map(ms),
        submitted_at_ms: ms(job.submitted_at),
        queued_at_ms: job.queued_at.map(ms),
        started_at_ms: job.started_at.map(ms),
        completed_at_ms: job.completed_at.map(ms),
        execution_duration_ms: job.execution_duration_ms,
        queue_wait_time_ms: job.queue_wait_time_ms,
        tags: serde_json::from_str(job.tags.as_str()).unwrap_or_default(),
        metadata: job.metadata.bytes(),
        created_by: job.created_by.unwrap_or_default(),
        next_retry_at_ms: job.next_retry_at.map(ms),
        retry_backoff_seconds: job.retry_backoff_seconds,
        created_at_ms: ms(job.created_at),
        updated_at_ms: ms(job.updated_at),
    }
}

/// A page of jobs.
pub(super) fn list(list: JobList, without_payloads: bool) -> proto::ListJobsResponse {
    let mut jobs: Vec<proto::Job> = list.jobs.into_iter().map(job).collect();
    if without_payloads {
        for job in &mut jobs {
            for payload in [&mut job.input_data, &mut job.output_data, &mut job.metadata] {
                payload.clear();
            }
        }
    }
    let narrow = |number: i64| i32::try_from(number).unwrap_or(i32::MAX);
    proto::ListJobsResponse {
        jobs,
        total: list.total,
        page: narrow(list.page),
        page_size: narrow(list.page_size),
        pages: list.pages,
    }
}

/// Jobs by state.
pub(super) fn stats(stats: &JobStats) -> proto::JobStats {
    proto::JobStats {
        total_jobs: stats.total_jobs,
        pending: stats.pending,
        queued: stats.queued,
        assigned: stats.assigned,
        running: stats.running,
        completed: stats.completed,
        failed: stats.failed,
        cancelled: stats.cancelled,
        timeout: stats.timeout,
        average_execution_time_ms: stats.average_execution_time_ms,
        average_queue_time_ms: stats.average_queue_time_ms,
        success_rate: stats.success_rate,
    }
}

/// What somebody who follows a job is told.
pub(super) fn change(update: &Update) -> proto::JobChange {
    let cursor = update.cursor().to_string();
    match update {
        Update::Reset(_) => proto::JobChange { cursor, reset: true, ..proto::JobChange::default() },
        Update::Change(_, change) => proto::JobChange {
            cursor,
            reset: false,
            job_id: change.job_id.to_string(),
            status: change.status.as_str().to_owned(),
            worker_id: worker(change.worker_id),
            at_ms: ms(change.at),
        },
    }
}

fn ms(time: DateTime<Utc>) -> i64 {
    time.timestamp_millis()
}

fn count(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn worker(id: Option<WorkerId>) -> String {
    id.map(|id| id.to_string()).unwrap_or_default()
}
