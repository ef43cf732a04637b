//! Jobs, for reading.

use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use sqlx::postgres::Postgres;
use sqlx::{FromRow, QueryBuilder};
use uuid::Uuid;

use super::database::Database;
use super::error::{PAGE_BYTES, StorageError};
use super::fence::FencedTransaction;
use super::transitions::parse;
use crate::domain::ids::{JobId, WorkerId};
use crate::domain::job::Job;
use crate::domain::payload::Payload;
use crate::security::{Column, Vault};

/// The columns of a shown job. Conditions vary, so these statements are built at run time.
pub(super) const SELECT_JOB: &str = "SELECT id, name, model_name, model_version, status, priority, max_retries, \
     retry_count, timeout_seconds, input_data::text AS input_data, output_data::text AS output_data, \
     error_message, error_stack, assigned_worker_id, assigned_at, submitted_at, queued_at, started_at, \
     completed_at, execution_duration_ms, queue_wait_time_ms, coalesce(tags, '{}')::text AS tags, \
     coalesce(metadata, '{}')::text AS metadata, created_by, next_retry_at, retry_backoff_seconds, \
     created_at, updated_at FROM jobs";

#[derive(FromRow)]
pub(super) struct JobRow {
    id: Uuid,
    name: String,
    model_name: String,
    model_version: String,
    status: String,
    priority: i32,
    max_retries: i32,
    retry_count: i32,
    timeout_seconds: i32,
    input_data: String,
    output_data: Option<String>,
    error_message: Option<String>,
    error_stack: Option<String>,
    assigned_worker_id: Option<Uuid>,
    assigned_at: Option<DateTime<Utc>>,
    submitted_at: DateTime<Utc>,
    queued_at: Option<DateTime<Utc>>,
    started_at: Option<DateTime<Utc>>,
    completed_at: Option<DateTime<Utc>>,
    execution_duration_ms: Option<i64>,
    queue_wait_time_ms: Option<i64>,
    tags: String,
    metadata: String,
    created_by: Option<String>,
    next_retry_at: Option<DateTime<Utc>>,
    retry_backoff_seconds: Option<i32>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl JobRow {
    /// About how much memory it takes.
    fn bytes(&self) -> usize {
        let texts = [&self.output_data, &self.error_message, &self.error_stack].into_iter().flatten();
        let json = [&self.input_data, &self.tags, &self.metadata].into_iter();
        size_of::<Self>() + texts.chain(json).map(String::len).sum::<usize>()
    }

    pub(super) fn read(self, vault: &Vault) -> Result<Job, StorageError> {
        let row = self;
        let json = |column, stored| Payload::trusted(vault.open_json(row.id, column, stored));
        let text = |column, stored| vault.open_text(row.id, column, stored);
        Ok(Job {
            id: JobId(row.id),
            status: parse(&row.status)?,
            name: row.name,
            model_name: row.model_name,
            model_version: row.model_version,
            priority: u8::try_from(row.priority).unwrap_or_default(),
            max_retries: row.max_retries.cast_unsigned(),
            retry_count: row.retry_count.cast_unsigned(),
            timeout_seconds: row.timeout_seconds.cast_unsigned(),
            input_data: json(Column::InputData, row.input_data),
            output_data: row.output_data.map(|stored| json(Column::OutputData, stored)),
            error_message: row.error_message.map(|stored| text(Column::ErrorMessage, stored)),
            error_stack: row.error_stack.map(|stored| text(Column::ErrorStack, stored)),
            assigned_worker_id: row.assigned_worker_id.map(WorkerId),
            assigned_at: row.assigned_at,
            submitted_at: row.submitted_at,
            queued_at: row.queued_at,
            started_at: row.started_at,
            completed_at: row.completed_at,
            execution_duration_ms: row.execution_duration_ms,
            queue_wait_time_ms: row.queue_wait_time_ms,
            tags: Payload::trusted(row.tags),
            metadata: Payload::trusted(row.metadata),
            created_by: row.created_by,
            next_retry_at: row.next_retry_at,
            retry_backoff_seconds: row.retry_backoff_seconds.map(i64::from),
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

impl Database {
    /// One job.
    pub async fn job(&self, id: JobId) -> Result<Option<Job>, StorageError> {
        let row = select_by_id(id).build_query_as::<JobRow>().fetch_optional(&self.reads).await?;
        row.map(|row| row.read(&self.vault)).transpose()
    }

    /// Those of the jobs that are there, in this order.
    pub async fn jobs_of(&self, ids: &[JobId]) -> Result<Vec<Job>, StorageError> {
        let rows: Vec<JobRow> = among(ids, "").build_query_as().fetch_all(&self.reads).await?;
        rows.into_iter().map(|row| row.read(&self.vault)).collect()
    }

    /// Those of the jobs that wait in the queue, in this order.
    pub async fn queued_among(&self, ids: &[JobId]) -> Result<Vec<Job>, StorageError> {
        let rows = self.page_rows(among(ids, "ready AND ")).await?;
        rows.into_iter().map(|row| row.read(&self.vault)).collect()
    }

    /// The rows of a page, unless they are too large together: whoever has large jobs has to ask for fewer.
    pub(super) async fn page_rows(
        &self,
        mut select: QueryBuilder<Postgres>,
    ) -> Result<Vec<JobRow>, StorageError> {
        let mut rows = select.build_query_as::<JobRow>().fetch(&self.reads);
        let (mut page, mut bytes) = (Vec::new(), 0);
        while let Some(row) = rows.try_next().await? {
            bytes += row.bytes();
            // One job is shown, however large.
            if bytes > PAGE_BYTES && !page.is_empty() {
                return Err(StorageError::PageTooLarge);
            }
            page.push(row);
        }
        Ok(page)
    }

    /// How many queued jobs go before this one, counted up to `most`: an index is read from its beginning.
    pub async fn ahead_of(&self, job: &Job, most: i64) -> Result<i64, StorageError> {
        Ok(sqlx::query_scalar!(
            r#"SELECT count(*) AS "jobs!" FROM (
                   SELECT FROM jobs WHERE ready AND (-priority, submitted_at, id) < ($1::int, $2::timestamptz, $3::uuid)
                   ORDER BY -priority, submitted_at, id LIMIT $4) ahead"#,
            -i32::from(job.priority),
            job.submitted_at,
            job.id.0,
            most,
        )
        .fetch_one(&self.reads)
        .await?)
    }
}

impl FencedTransaction {
    /// One job as this transaction sees it.
    pub async fn job(&mut self, id: JobId) -> Result<Option<Job>, StorageError> {
        let row = select_by_id(id).build_query_as::<JobRow>().fetch_optional(self.connection()?).await?;
        row.map(|row| row.read(&self.vault)).transpose()
    }
}

fn select_by_id(id: JobId) -> QueryBuilder<Postgres> {
    let mut select = QueryBuilder::new(SELECT_JOB);
    select.push(" WHERE id = ").push_bind(id.0);
    select
}

fn among(ids: &[JobId], condition: &'static str) -> QueryBuilder<Postgres> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let mut select = QueryBuilder::new(SELECT_JOB);
    select.push(" WHERE ").push(condition).push("id = ANY(").push_bind(ids.clone());
    select.push(") ORDER BY array_position(").push_bind(ids).push(", id)");
    select
}
