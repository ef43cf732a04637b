//! Locking jobs for a decision and writing what was decided, many in one statement.

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value};

use super::error::StorageError;
use super::fence::FencedTransaction;
use super::sealed::{Sealed, same_json};
use crate::domain::execution::ExecutionStatus;
use crate::domain::ids::{JobId, LeaseId, WorkerId};
use crate::domain::job::JobStatus;
use crate::domain::matching::Shape;
use crate::domain::payload::Payload;
use crate::domain::retry::RetryPolicy;
use crate::domain::trace::TraceContext;
use crate::domain::transition::{ExecutionChange, Failure, JobState, Lease, Reporter};
use crate::domain::validate::Validator;
use crate::security::Column;

/// An ended attempt that somebody reports again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reported {
    /// How it ended.
    pub status: ExecutionStatus,
    /// Whether the report says the same as the one that was accepted.
    pub same: bool,
}

impl FencedTransaction {
    /// Locks jobs in the order of their ids, so that transactions side by side cannot block each other
    /// in a circle. Answers those that exist, and the database's time, which decides about deadlines.
    pub async fn lock_jobs(
        &mut self,
        ids: &[JobId],
        defaults: &RetryPolicy,
    ) -> Result<(DateTime<Utc>, Vec<JobState>), StorageError> {
        let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
        let rows = sqlx::query!(
            r#"SELECT id, status, priority, model_name, metadata->'requires_gpu' AS "requires_gpu: Value",
                   metadata->'required_memory_gb' AS "required_memory_gb: Value",
                   metadata->'retry_policy' AS "retry_policy: Value", submitted_at, retry_count, max_retries,
                   timeout_seconds, next_retry_at, retry_backoff_seconds, queued_at, assigned_at,
                   assigned_worker_id, started_at, completed_at, execution_duration_ms,
                   output_data::text AS output_data, error_message, error_stack, lease_id,
                   lease_expires_at, lost_workers, early_losses, trace_context, clock_timestamp() AS "moment!"
               FROM jobs WHERE id = ANY($1) ORDER BY id FOR UPDATE"#,
            &ids
        )
        .fetch_all(self.connection()?)
        .await?;
        let now = rows.iter().map(|row| row.moment).max().unwrap_or_default();
        let vault = &self.vault;
        let mut states = Vec::with_capacity(rows.len());
        for row in rows {
            let status = parse(&row.status)?;
            let lease = match (row.lease_id, row.assigned_worker_id, row.lease_expires_at) {
                (Some(id), Some(worker), Some(expires_at)) => Some(Lease {
                    id: LeaseId(id),
                    worker_id: WorkerId(worker),
                    running: status == JobStatus::Running,
                    expires_at,
                }),
                _ => None,
            };
            let text = |column, stored| vault.open_text(row.id, column, stored);
            let output = |stored| Payload::trusted(vault.open_json(row.id, Column::OutputData, stored));
            states.push(JobState {
                id: JobId(row.id),
                status,
                priority: u8::try_from(row.priority).unwrap_or_default(),
                shape: shape(&row.model_name, row.requires_gpu, row.required_memory_gb),
                submitted_at: row.submitted_at,
                retry_count: row.retry_count.cast_unsigned(),
                max_retries: row.max_retries.cast_unsigned(),
                retry_policy: policy(row.retry_policy.as_ref(), defaults),
                timeout_seconds: row.timeout_seconds.cast_unsigned(),
                next_retry_at: row.next_retry_at,
                retry_backoff_seconds: row.retry_backoff_seconds.map(i64::from),
                queued_at: row.queued_at,
                assigned_at: row.assigned_at,
                assigned_worker_id: row.assigned_worker_id.map(WorkerId),
                started_at: row.started_at,
                completed_at: row.completed_at,
                execution_duration_ms: row.execution_duration_ms,
                output_data: row.output_data.map(output),
                error_message: row.error_message.map(|stored| text(Column::ErrorMessage, stored)),
                error_stack: row.error_stack.map(|stored| text(Column::ErrorStack, stored)),
                early_losses: row.early_losses.cast_unsigned(),
                lost_workers: row.lost_workers.unwrap_or_default().into_iter().map(WorkerId).collect(),
                lease,
                trace: row.trace_context.as_deref().and_then(TraceContext::from_text),
                executions: Vec::new(),
            });
        }
        Ok((now, states))
    }

    /// Writes the state of locked jobs.
    pub async fn write_jobs(&mut self, jobs: &[&JobState]) -> Result<(), StorageError> {
        if jobs.is_empty() {
            return Ok(());
        }
        let sealed = Sealed::of(
            &self.vault,
            jobs.iter().map(|job| {
                let output = job.output_data.as_ref().map(Payload::as_str);
                (job.id, output, job.error_message.as_deref(), job.error_stack.as_deref())
            }),
        )?;
        let written = sqlx::query!(
            "UPDATE jobs j SET status = c.status, retry_count = c.retry_count,
                 next_retry_at = c.next_retry_at, retry_backoff_seconds = c.retry_backoff_seconds,
                 queued_at = c.queued_at, assigned_at = c.assigned_at,
                 assigned_worker_id = c.assigned_worker_id, started_at = c.started_at,
                 completed_at = c.completed_at, execution_duration_ms = c.execution_duration_ms,
                 output_data = c.output_data::jsonb, error_message = c.error_message,
                 error_stack = c.error_stack, lease_id = c.lease_id, lease_expires_at = c.lease_expires_at,
                 lost_workers = c.lost_workers::uuid[], early_losses = c.early_losses, updated_at = now()
             FROM unnest($1::uuid[], $2::text[], $3::int[], $4::timestamptz[], $5::int[], $6::timestamptz[],
                         $7::timestamptz[], $8::uuid[], $9::timestamptz[], $10::timestamptz[], $11::bigint[],
                         $12::text[], $13::text[], $14::text[], $15::uuid[], $16::timestamptz[], $17::text[],
                         $18::int[])
                 AS c (id, status, retry_count, next_retry_at, retry_backoff_seconds, queued_at, assigned_at,
                       assigned_worker_id, started_at, completed_at, execution_duration_ms, output_data,
                       error_message, error_stack, lease_id, lease_expires_at, lost_workers, early_losses)
             WHERE j.id = c.id",
            &column(jobs, |job| job.id.0),
            &column(jobs, |job| job.status.as_str()) as _,
            &column(jobs, |job| job.retry_count.cast_signed()),
            &column(jobs, |job| job.next_retry_at) as _,
            &column(jobs, |job| job.retry_backoff_seconds.map(|s| i32::try_from(s).unwrap_or(i32::MAX))) as _,
            &column(jobs, |job| job.queued_at) as _,
            &column(jobs, |job| job.assigned_at) as _,
            &column(jobs, |job| job.assigned_worker_id.map(|id| id.0)) as _,
            &column(jobs, |job| job.started_at) as _,
            &column(jobs, |job| job.completed_at) as _,
            &column(jobs, |job| job.execution_duration_ms) as _,
            &sealed.outputs() as _,
            &sealed.messages() as _,
            &sealed.stacks() as _,
            &column(jobs, |job| job.lease.as_ref().map(|lease| lease.id.0)) as _,
            &column(jobs, |job| deadline(job)) as _,
            &column(jobs, |job| array(&job.lost_workers)) as _,
            &column(jobs, |job| job.early_losses.cast_signed()),
        )
        .execute(self.connection()?)
        .await?;
        debug_assert_eq!(written.rows_affected(), jobs.len() as u64, "the rows are locked");
        Ok(())
    }

    /// Writes what happened to leases of these jobs.
    pub async fn write_executions(
        &mut self,
        changes: &[(JobId, &ExecutionChange)],
    ) -> Result<(), StorageError> {
        if changes.is_empty() {
            return Ok(());
        }
        let sealed = Sealed::of(
            &self.vault,
            changes.iter().map(|(job, change)| {
                let output = change.output_data.as_ref().map(Payload::as_str);
                let error = change.error.as_ref();
                let message = error.map(|error| error.message.as_str()).filter(|message| !message.is_empty());
                (*job, output, message, error.and_then(|error| error.stack.as_deref()))
            }),
        )?;
        let changes: Vec<&ExecutionChange> = changes.iter().map(|(_, change)| *change).collect();
        let changes = changes.as_slice();
        sqlx::query!(
            "WITH written AS (
                 UPDATE executions e SET status = c.status, started_at = coalesce(c.started_at, e.started_at),
                     lease_expires_at = c.lease_expires_at, completed_at = c.completed_at,
                     duration_ms = c.duration_ms, output_data = c.output_data::jsonb,
                     error_message = nullif(c.error_message, ''), error_stack = c.error_stack,
                     error_code = c.error_code,
                     cpu_usage_percent = coalesce(c.cpu::numeric(5, 2), e.cpu_usage_percent),
                     memory_usage_mb = coalesce(c.memory::int, e.memory_usage_mb),
                     gpu_usage_percent = coalesce(c.gpu::numeric(5, 2), e.gpu_usage_percent)
                 FROM unnest($1::uuid[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::timestamptz[],
                             $6::bigint[], $7::text[], $8::text[], $9::text[], $10::text[], $11::float8[],
                             $12::float8[], $13::float8[])
                     AS c (id, status, started_at, lease_expires_at, completed_at, duration_ms, output_data,
                           error_message, error_stack, error_code, cpu, memory, gpu)
                 WHERE e.id = c.id
                 RETURNING e.job_id, e.completed_at
             )
             DELETE FROM leases
             WHERE job_id = ANY(ARRAY(SELECT job_id FROM written WHERE completed_at IS NOT NULL)) AND id = ANY($1)",
            &column(changes, |change| change.lease.0),
            &column(changes, |change| change.status.as_str()) as _,
            &column(changes, |change| change.started_at) as _,
            &column(changes, |change| change.expires_at),
            &column(changes, |change| change.completed_at) as _,
            &column(changes, |change| change.duration_ms) as _,
            &sealed.outputs() as _,
            &sealed.messages() as _,
            &sealed.stacks() as _,
            &column(changes, |change| change.error.as_ref().and_then(|error| error.code.as_deref())) as _,
            &column(changes, |change| change.usage.cpu_usage_percent) as _,
            &column(changes, |change| change.usage.memory_usage_mb) as _,
            &column(changes, |change| change.usage.gpu_usage_percent) as _,
        )
        .execute(self.connection()?)
        .await?;
        Ok(())
    }

    /// The ended attempt that a report without a current lease is about: the one with its token, else
    /// the reporter's latest on the job. `output` and `failure` are compared with what was accepted.
    pub async fn reported(
        &mut self,
        job: JobId,
        by: Reporter,
        output: Option<&str>,
        failure: Option<&Failure>,
    ) -> Result<Option<Reported>, StorageError> {
        let row = sqlx::query!(
            r#"SELECT status,
                   (output_data IS NOT DISTINCT FROM $4::text::jsonb
                    AND coalesce(error_message, '') = coalesce($5, '')
                    AND error_stack IS NOT DISTINCT FROM $6
                    AND error_code IS NOT DISTINCT FROM $7) AS "same!",
                   error_code IS NOT DISTINCT FROM $7 AS "same_code!",
                   CASE WHEN $8 THEN output_data::text END AS output_data,
                   CASE WHEN $8 THEN error_message END AS error_message,
                   CASE WHEN $8 THEN error_stack END AS error_stack
               FROM executions
               WHERE job_id = $1 AND worker_id = $2 AND ($3::uuid IS NULL OR id = $3)
                   AND ($9::int IS NULL OR attempt_number = $9)
               ORDER BY created_at DESC, id DESC LIMIT 1"#,
            job.0,
            by.worker_id.0,
            by.lease.map(|lease| lease.0),
            output,
            failure.map(|failure| failure.message.as_str()),
            failure.and_then(|failure| failure.stack.as_deref()),
            failure.and_then(|failure| failure.code.as_deref()),
            self.vault.is_on(),
            by.attempt_number.map(u32::cast_signed),
        )
        .fetch_optional(self.connection()?)
        .await?;
        let vault = &self.vault;
        row.map(|row| {
            // What is sealed never looks the same twice, so it is opened and compared here.
            let text = |column, stored: Option<String>| {
                stored.map(|stored| vault.open_text(job.0, column, stored)).unwrap_or_default()
            };
            let stored = row.output_data.map(|stored| vault.open_json(job.0, Column::OutputData, stored));
            let message = failure.map_or("", |failure| failure.message.as_str());
            let stack = failure.and_then(|failure| failure.stack.as_deref()).unwrap_or_default();
            let same_opened = vault.is_on()
                && row.same_code
                && same_json(stored.as_deref(), output)
                && text(Column::ErrorMessage, row.error_message) == message
                && text(Column::ErrorStack, row.error_stack) == stack;
            Ok(Reported { status: parse(&row.status)?, same: row.same || same_opened })
        })
        .transpose()
    }
}

/// When the work on a job must be done: the lease's deadline, or that of the outside driver.
fn deadline(job: &JobState) -> Option<DateTime<Utc>> {
    let driven = || {
        let started = (job.status == JobStatus::Running).then_some(job.started_at).flatten()?;
        Some(started + TimeDelta::seconds(job.timeout_seconds.into()))
    };
    job.lease.as_ref().map(|lease| lease.expires_at).or_else(driven)
}

/// An array as PostgreSQL reads it from a text: an array of arrays could not be taken apart row by row. NULL if it
/// is empty.
fn array(ids: &[WorkerId]) -> Option<String> {
    let ids: Vec<String> = ids.iter().map(WorkerId::to_string).collect();
    (!ids.is_empty()).then(|| format!("{{{}}}", ids.join(",")))
}

fn column<'a, T, C>(rows: &[&'a T], of: impl Fn(&'a T) -> C) -> Vec<C> {
    rows.iter().map(|row| of(row)).collect()
}

/// A word of a closed list, as stored.
pub(super) fn parse<T: std::str::FromStr<Err = String>>(text: &str) -> Result<T, StorageError> {
    text.parse().map_err(|error: String| StorageError::Unexpected(sqlx::Error::Decode(error.into())))
}

/// The shape of a stored job, whose metadata was checked when it was submitted.
pub(super) fn shape(model_name: &str, gpu: Option<Value>, memory: Option<Value>) -> Shape {
    let members = [("requires_gpu", gpu), ("required_memory_gb", memory)];
    let metadata: Map<String, Value> =
        members.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
    Shape::of_job(model_name, &metadata, &mut Validator::default())
}

fn policy(stored: Option<&Value>, defaults: &RetryPolicy) -> RetryPolicy {
    stored
        .and_then(Value::as_object)
        .and_then(|policy| RetryPolicy::from_json(policy, defaults).ok())
        .unwrap_or_else(|| defaults.clone())
}
