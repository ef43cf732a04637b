//! The end that most attempts come to, in one statement.

use std::borrow::Cow;

use chrono::{DateTime, Utc};

use super::database::Database;
use super::error::StorageError;
use super::fence::Fence;
use crate::domain::execution::Usage;
use crate::domain::ids::{JobId, LeaseId, WorkerId};
use crate::domain::payload::Payload;
use crate::domain::trace::TraceContext;
use crate::security::{Column, Unsealed, Vault};

/// A worker's report of success, under its lease.
#[derive(Debug, Clone, Copy)]
pub struct Completion<'a> {
    /// The job.
    pub job_id: JobId,
    /// The lease under which it ran.
    pub lease: LeaseId,
    /// Who holds the lease.
    pub worker_id: WorkerId,
    /// Whether the worker had said that the job runs.
    pub running: bool,
    /// What came out.
    pub output: Option<&'a Payload>,
    /// Run time as the worker measured it.
    pub duration_ms: Option<i64>,
    /// What the attempt used.
    pub usage: Usage,
}

/// A completion that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completed {
    /// The lease that has ended.
    pub lease: LeaseId,
    /// Run time.
    pub duration_ms: i64,
    /// When it ended.
    pub completed_at: DateTime<Utc>,
    /// The trace that the job belongs to.
    pub trace: Option<TraceContext>,
}

impl Database {
    /// Completes those jobs that are in the state in which the completion supposes them, under the very
    /// lease and before its deadline: what [`JobState::apply`](crate::domain::transition::JobState::apply) makes of
    /// such a report, for many jobs at once, with counters and workers' tallies. Answers which; about the
    /// others nothing is said. Each job may be named once. Fenced, and committed by itself.
    pub async fn complete_jobs(
        &self,
        fence: Fence,
        slot: i16,
        completions: &[Completion<'_>],
    ) -> Result<Vec<Completed>, StorageError> {
        let mut rows: Vec<&Completion<'_>> = completions.iter().collect();
        // In the order of their ids, as everywhere, against circles of locks.
        rows.sort_unstable_by_key(|row| row.job_id);
        let outputs = sealed_outputs(&self.vault, &rows)?;
        let mut connection = self.for_fenced_statement().await?;
        let rows = sqlx::query!(
            r#"WITH fence AS MATERIALIZED (SELECT cortex_pass($11, $12) AS passed
               ), completion AS (
                   SELECT c.* FROM fence, unnest(CASE WHEN passed THEN $2::uuid[] END, $3::uuid[], $4::uuid[], $5::bool[], $6::text[],
                                        $7::bigint[], $8::float8[], $9::float8[], $10::float8[])
                       AS c (job_id, lease_id, worker_id, running, output_data, duration_ms, cpu, memory, gpu)
               ), done AS (
                   UPDATE jobs j SET status = 'completed', completed_at = now(), updated_at = now(),
                       started_at = coalesce(j.started_at, greatest(j.assigned_at,
                           now() - make_interval(secs => coalesce(c.duration_ms, 0) / 1000.0))),
                       execution_duration_ms = coalesce(c.duration_ms, greatest(0,
                           extract(epoch FROM now() - coalesce(j.started_at, j.assigned_at)) * 1000)::bigint),
                       output_data = c.output_data::jsonb, error_message = NULL, error_stack = NULL,
                       lease_id = NULL, lease_expires_at = NULL
                   FROM completion c
                   WHERE j.id = c.job_id AND j.lease_id = c.lease_id AND j.assigned_worker_id = c.worker_id
                       AND j.status = CASE WHEN c.running THEN 'running' ELSE 'assigned' END
                       AND j.lease_expires_at > clock_timestamp()
                   RETURNING c.*, j.started_at, j.completed_at, j.execution_duration_ms AS ran_ms,
                       j.output_data AS stored_output, j.trace_context
               ), ended AS (
                   UPDATE executions e SET status = 'completed', started_at = d.started_at,
                       completed_at = d.completed_at, duration_ms = d.ran_ms, output_data = d.stored_output,
                       cpu_usage_percent = coalesce(d.cpu::numeric(5, 2), e.cpu_usage_percent),
                       memory_usage_mb = coalesce(d.memory::int, e.memory_usage_mb),
                       gpu_usage_percent = coalesce(d.gpu::numeric(5, 2), e.gpu_usage_percent)
                   FROM done d WHERE e.id = d.lease_id
               ), released AS (DELETE FROM leases WHERE job_id = ANY(ARRAY(SELECT job_id FROM done))
               ), counted AS (
                   UPDATE job_counters c SET assigned = c.assigned - t.not_running,
                       running = c.running - t.were_running, completed = c.completed + t.jobs,
                       execution_ms = c.execution_ms + t.ran_ms, executions = c.executions + t.jobs
                   FROM (SELECT count(*) AS jobs, count(*) FILTER (WHERE running) AS were_running,
                             count(*) FILTER (WHERE NOT running) AS not_running,
                             coalesce(sum(ran_ms), 0)::bigint AS ran_ms
                         FROM done) t
                   WHERE c.slot = $1 AND t.jobs > 0
               ), tallied AS (
                   UPDATE workers w SET total_jobs_completed = w.total_jobs_completed + t.jobs,
                       execution_ms = w.execution_ms + t.ran_ms, executions = w.executions + t.jobs,
                       average_execution_time_ms = (w.execution_ms + t.ran_ms) / (w.executions + t.jobs),
                       consecutive_failures = 0, last_active_at = now(), updated_at = now()
                   FROM (SELECT worker_id, count(*)::int AS jobs, sum(ran_ms)::bigint AS ran_ms
                         FROM done GROUP BY worker_id ORDER BY worker_id) t
                   WHERE w.id = t.worker_id
               )
               SELECT lease_id AS "lease_id!", ran_ms AS "ran_ms!", completed_at AS "completed_at!", trace_context
               FROM done"#,
            slot,
            &rows.iter().map(|row| row.job_id.0).collect::<Vec<_>>(),
            &rows.iter().map(|row| row.lease.0).collect::<Vec<_>>(),
            &rows.iter().map(|row| row.worker_id.0).collect::<Vec<_>>(),
            &rows.iter().map(|row| row.running).collect::<Vec<_>>(),
            &outputs.iter().map(Option::as_deref).collect::<Vec<_>>() as _,
            &rows.iter().map(|row| row.duration_ms).collect::<Vec<_>>() as _,
            &rows.iter().map(|row| row.usage.cpu_usage_percent).collect::<Vec<_>>() as _,
            &rows.iter().map(|row| row.usage.memory_usage_mb).collect::<Vec<_>>() as _,
            &rows.iter().map(|row| row.usage.gpu_usage_percent).collect::<Vec<_>>() as _,
            fence.cluster_id.0,
            fence.epoch.0,
        )
        .fetch_all(&mut connection)
        .await
        .map_err(StorageError::of_commit)?;
        Ok(rows
            .into_iter()
            .map(|row| Completed {
                lease: LeaseId(row.lease_id),
                duration_ms: row.ran_ms,
                completed_at: row.completed_at,
                trace: row.trace_context.as_deref().and_then(TraceContext::from_text),
            })
            .collect())
    }
}

fn sealed_outputs<'a>(
    vault: &Vault,
    rows: &[&Completion<'a>],
) -> Result<Vec<Option<Cow<'a, str>>>, Unsealed> {
    let seal = |row: &&Completion<'a>| {
        let output: Option<&'a Payload> = row.output;
        output.map(|output| vault.seal_json(row.job_id.0, Column::OutputData, output.as_str())).transpose()
    };
    rows.iter().map(seal).collect()
}
