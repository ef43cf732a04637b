//! What the loops look for: passed deadlines, and what the ready queue should hold.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::database::Database;
use super::error::StorageError;
use super::transitions::{parse, shape};
use crate::domain::ids::JobId;
use crate::domain::job::JobStatus;
use crate::domain::matching::Shape;

/// A job that belongs into the ready queue.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the columns of the specification's table")]
pub struct QueuedJob {
    pub id: JobId,
    pub priority: u8,
    pub submitted_at: DateTime<Utc>,
    pub shape: Shape,
}

/// Where a job belongs, and whether it waits in the ready queue.
#[derive(Debug, Clone)]
pub struct StoredPlace {
    /// Its state.
    pub status: JobStatus,
    /// What its entry in the ready queue says, if it has one.
    pub entry: QueuedJob,
}

impl Database {
    /// Jobs that are driven from outside and whose deadline has passed.
    pub async fn overdue_jobs(&self, limit: i64) -> Result<Vec<JobId>, StorageError> {
        let rows = sqlx::query_scalar!(
            "SELECT id FROM jobs WHERE driven_until <= now() ORDER BY driven_until LIMIT $1",
            limit
        )
        .fetch_all(&self.reads)
        .await?;
        Ok(rows.into_iter().map(JobId).collect())
    }

    /// A page of the jobs that the ready queue should hold, in dispatch order, after `after`.
    pub async fn queued_jobs(
        &self,
        after: Option<&QueuedJob>,
        limit: i64,
    ) -> Result<Vec<QueuedJob>, StorageError> {
        let rows = sqlx::query!(
            r#"SELECT id, priority, submitted_at, model_name, metadata->'requires_gpu' AS "gpu: Value",
                   metadata->'required_memory_gb' AS "memory: Value"
               FROM jobs
               WHERE ready AND (-priority, submitted_at, id) > ($1::int, $2::timestamptz, $3::uuid)
               ORDER BY -priority, submitted_at, id LIMIT $4"#,
            after.map_or(i32::MIN, |job| -i32::from(job.priority)),
            after.map_or(DateTime::UNIX_EPOCH, |job| job.submitted_at),
            after.map_or(uuid::Uuid::nil(), |job| job.id.0),
            limit,
        )
        .fetch_all(&self.reads)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| QueuedJob {
                id: JobId(row.id),
                priority: u8::try_from(row.priority).unwrap_or_default(),
                submitted_at: row.submitted_at,
                shape: shape(&row.model_name, row.gpu, row.memory),
            })
            .collect())
    }

    /// Those of `ids` that are there, in any state and in no order.
    pub async fn places(&self, ids: &[JobId]) -> Result<Vec<StoredPlace>, StorageError> {
        let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
        let rows = sqlx::query!(
            r#"SELECT id, status, priority, submitted_at, model_name, metadata->'requires_gpu' AS "gpu: Value",
                   metadata->'required_memory_gb' AS "memory: Value"
               FROM jobs WHERE id = ANY($1)"#,
            &ids
        )
        .fetch_all(&self.reads)
        .await?;
        let place = |(id, priority, submitted_at, shape)| QueuedJob {
            id: JobId(id),
            priority: u8::try_from(priority).unwrap_or_default(),
            submitted_at,
            shape,
        };
        rows.into_iter()
            .map(|row| {
                let shape = shape(&row.model_name, row.gpu, row.memory);
                let entry = place((row.id, row.priority, row.submitted_at, shape));
                Ok(StoredPlace { status: parse(&row.status)?, entry })
            })
            .collect()
    }

    /// Those of `ids` that are `queued`.
    pub async fn still_queued(&self, ids: &[JobId]) -> Result<Vec<JobId>, StorageError> {
        let ids: Vec<_> = ids.iter().map(|id| id.0).collect();
        let rows = sqlx::query_scalar!("SELECT id FROM jobs WHERE id = ANY($1) AND ready", &ids)
            .fetch_all(&self.reads)
            .await?;
        Ok(rows.into_iter().map(JobId).collect())
    }
}
