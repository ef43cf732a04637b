//! Jobs that wait for their time.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::database::Database;
use super::error::StorageError;
use super::fence::Fence;
use super::transitions::shape;
use crate::domain::ids::{JobId, WorkerId};
use crate::domain::matching::Shape;
use crate::domain::trace::TraceContext;

/// A job whose time has come, and that still waits.
#[derive(Debug, Clone)]
pub struct Due {
    /// Which.
    pub id: JobId,
    /// 1 to 10.
    pub priority: u8,
    /// When it was submitted.
    pub submitted_at: DateTime<Utc>,
    /// Who can take it.
    pub shape: Shape,
    /// Workers that were lost while they ran it.
    pub lost_workers: Vec<WorkerId>,
}

/// A job whose time has come: it is queued now.
#[derive(Debug, Clone)]
pub struct Promoted {
    /// Which.
    pub id: JobId,
    /// 1 to 10.
    pub priority: u8,
    /// When it was submitted.
    pub submitted_at: DateTime<Utc>,
    /// Who can take it.
    pub shape: Shape,
    /// How often it was tried again before.
    pub retry_count: u32,
    /// The trace that it belongs to.
    pub trace: Option<TraceContext>,
    /// Since when it is queued.
    pub at: DateTime<Utc>,
}

impl Database {
    /// The jobs whose time has come, those that are longest overdue, at most `limit`, in the order of their submission.
    /// Over a connection for writes: reads must not keep them waiting.
    pub async fn due(&self, limit: u16) -> Result<Vec<Due>, StorageError> {
        let rows = sqlx::query!(
            r#"SELECT id, priority, submitted_at, model_name, metadata->'requires_gpu' AS "requires_gpu: Value",
                   metadata->'required_memory_gb' AS "required_memory_gb: Value", lost_workers
               FROM jobs WHERE status = 'pending' AND next_retry_at <= now() ORDER BY next_retry_at LIMIT $1"#,
            i64::from(limit),
        )
        .fetch_all(&self.writes)
        .await?;
        let mut due: Vec<Due> = rows
            .into_iter()
            .map(|row| Due {
                id: JobId(row.id),
                priority: u8::try_from(row.priority).unwrap_or_default(),
                submitted_at: row.submitted_at,
                shape: shape(&row.model_name, row.requires_gpu, row.required_memory_gb),
                lost_workers: row.lost_workers.unwrap_or_default().into_iter().map(WorkerId).collect(),
            })
            .collect();
        due.sort_by_key(|job| job.submitted_at);
        Ok(due)
    }

    /// Queues the jobs whose time has come, the longest overdue first, at most `limit`; the clock is PostgreSQL's, so
    /// none is early. One that somebody else is changing is passed over. Fenced, and committed by itself.
    pub async fn promote_due(
        &self,
        fence: Fence,
        slot: i16,
        limit: u16,
    ) -> Result<Vec<Promoted>, StorageError> {
        let mut connection = self.for_fenced_statement().await?;
        let rows = sqlx::query!(
            r#"WITH fence AS MATERIALIZED (SELECT cortex_pass($3, $4) AS passed
               ), due AS (
                   SELECT id FROM jobs WHERE status = 'pending' AND next_retry_at <= now()
                   ORDER BY next_retry_at LIMIT (SELECT CASE WHEN passed THEN $2::bigint ELSE 0 END FROM fence)
                   FOR UPDATE SKIP LOCKED
               ), queued AS (
                   UPDATE jobs j SET status = 'queued', next_retry_at = NULL, queued_at = now(), updated_at = now()
                   FROM due WHERE j.id = due.id
                   RETURNING j.id, j.priority, j.model_name, j.metadata, j.submitted_at, j.retry_count,
                       j.trace_context
               ), counted AS (
                   UPDATE job_counters SET pending = pending - q.jobs, queued = job_counters.queued + q.jobs
                   FROM (SELECT count(*) AS jobs FROM queued) q WHERE slot = $1 AND q.jobs > 0
               )
               SELECT id AS "id!", priority AS "priority!", model_name AS "model_name!",
                   metadata->'requires_gpu' AS "requires_gpu: Value",
                   metadata->'required_memory_gb' AS "required_memory_gb: Value",
                   submitted_at AS "submitted_at!", retry_count AS "retry_count!", trace_context, now() AS "now!"
               FROM queued"#,
            slot,
            i64::from(limit),
            fence.cluster_id.0,
            fence.epoch.0,
        )
        .fetch_all(&mut connection)
        .await
        .map_err(StorageError::of_commit)?;
        Ok(rows
            .into_iter()
            .map(|row| Promoted {
                id: JobId(row.id),
                priority: u8::try_from(row.priority).unwrap_or_default(),
                submitted_at: row.submitted_at,
                shape: shape(&row.model_name, row.requires_gpu, row.required_memory_gb),
                retry_count: row.retry_count.cast_unsigned(),
                trace: row.trace_context.as_deref().and_then(TraceContext::from_text),
                at: row.now,
            })
            .collect())
    }

    /// How long until the next retry is due, in seconds; negative if it is overdue.
    pub async fn next_due_in(&self) -> Result<Option<f64>, StorageError> {
        Ok(sqlx::query_scalar!(
            "SELECT extract(epoch FROM min(next_retry_at) - now())::float8 FROM jobs
             WHERE next_retry_at IS NOT NULL"
        )
        .fetch_one(&self.reads)
        .await?)
    }
}
