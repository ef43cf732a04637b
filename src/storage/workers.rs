//! Workers: registration, signs of life, tallies.

use std::time::Duration;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::database::Database;
use super::error::StorageError;
use super::fence::FencedTransaction;
use super::transitions::parse;
use crate::domain::execution::Usage;
use crate::domain::ids::WorkerId;
use crate::domain::payload::Payload;
use crate::domain::worker::{NewWorker, Worker, WorkerList, WorkerStatus};

/// What the leader knows of a live worker and PostgreSQL is told from time to time.
#[derive(Debug, Clone)]
pub struct Vitals {
    /// Who.
    pub worker_id: WorkerId,
    /// As placement sees it.
    pub status: WorkerStatus,
    /// Live leases.
    pub current_job_count: u32,
    /// How long ago it was last heard.
    pub silent_for: Duration,
    /// What it last said of its machine.
    pub usage: Usage,
}

/// What finished attempts add to a worker's tally.
#[derive(Debug, Clone, Copy, Default)]
pub struct WorkerTally {
    /// Attempts that ended well.
    pub completed: i32,
    /// Attempts that ended badly.
    pub failed: i32,
    /// Run time of the completed ones, in milliseconds.
    pub execution_ms: i64,
}

struct WorkerRow {
    id: Uuid,
    name: String,
    hostname: String,
    ip_address: String,
    port: i32,
    status: String,
    capabilities: String,
    max_concurrent_jobs: i32,
    current_job_count: i32,
    total_jobs_completed: i32,
    total_jobs_failed: i32,
    average_execution_time_ms: Option<i64>,
    last_heartbeat: DateTime<Utc>,
    heartbeat_interval_seconds: i32,
    consecutive_failures: i32,
    version: Option<String>,
    owner: Option<String>,
    metadata: String,
    registered_at: DateTime<Utc>,
    last_active_at: DateTime<Utc>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
}

impl TryFrom<WorkerRow> for Worker {
    type Error = StorageError;

    fn try_from(row: WorkerRow) -> Result<Self, StorageError> {
        Ok(Self {
            id: WorkerId(row.id),
            status: parse(&row.status)?,
            name: row.name,
            hostname: row.hostname,
            ip_address: row.ip_address,
            port: u16::try_from(row.port).unwrap_or_default(),
            capabilities: Payload::trusted(row.capabilities),
            max_concurrent_jobs: row.max_concurrent_jobs.cast_unsigned(),
            current_job_count: row.current_job_count.into(),
            total_jobs_completed: row.total_jobs_completed.into(),
            total_jobs_failed: row.total_jobs_failed.into(),
            average_execution_time_ms: row.average_execution_time_ms,
            last_heartbeat: row.last_heartbeat,
            heartbeat_interval_seconds: row.heartbeat_interval_seconds.cast_unsigned(),
            consecutive_failures: row.consecutive_failures.into(),
            version: row.version,
            owner: row.owner,
            metadata: Payload::trusted(row.metadata),
            registered_at: row.registered_at,
            last_active_at: row.last_active_at,
            created_at: row.created_at,
            updated_at: row.updated_at,
        })
    }
}

impl FencedTransaction {
    /// Registers a worker. A known hostname and port keep their id; `true` says that they were new.
    pub async fn register_worker(&mut self, new: &NewWorker) -> Result<(Worker, bool), StorageError> {
        let row = sqlx::query!(
            r#"INSERT INTO workers (id, name, hostname, ip_address, port, capabilities, max_concurrent_jobs,
                   heartbeat_interval_seconds, version)
               VALUES ($1, $2, $3, $4::text::inet, $5, $6::text::jsonb, $7, $8, $9)
               ON CONFLICT (hostname, port) DO UPDATE SET name = EXCLUDED.name,
                   ip_address = EXCLUDED.ip_address, capabilities = EXCLUDED.capabilities,
                   max_concurrent_jobs = EXCLUDED.max_concurrent_jobs,
                   heartbeat_interval_seconds = EXCLUDED.heartbeat_interval_seconds,
                   version = EXCLUDED.version, status = 'idle', consecutive_failures = 0,
                   last_heartbeat = now(), last_active_at = now(), registered_at = now(), updated_at = now()
               RETURNING id, id = $1 AS "created!""#,
            new.id.0,
            new.name,
            new.hostname,
            new.ip_address.to_string(),
            i32::from(new.port),
            new.capabilities.as_str(),
            new.max_concurrent_jobs.cast_signed(),
            new.heartbeat_interval_seconds.cast_signed(),
            new.version,
        )
        .fetch_one(self.connection()?)
        .await?;
        let worker = select(self.connection()?, Some(row.id), None).await?.pop();
        let worker = worker.ok_or(StorageError::Unexpected(sqlx::Error::RowNotFound))?;
        Ok((worker, row.created))
    }

    /// Notes whose a worker is, unless it is somebody's already. Answers whose it is now.
    pub async fn own_worker(
        &mut self,
        id: WorkerId,
        owner: Option<&str>,
    ) -> Result<Option<String>, StorageError> {
        let row = sqlx::query_scalar!(
            "UPDATE workers SET owner = coalesce(owner, $2) WHERE id = $1 RETURNING owner",
            id.0,
            owner,
        );
        Ok(row.fetch_one(self.connection()?).await?)
    }

    /// Notes signs of life.
    pub async fn write_vitals(&mut self, vitals: &[Vitals]) -> Result<(), StorageError> {
        let ids: Vec<_> = vitals.iter().map(|v| v.worker_id.0).collect();
        let statuses: Vec<_> = vitals.iter().map(|v| v.status.as_str()).collect();
        let counts: Vec<_> = vitals.iter().map(|v| v.current_job_count.cast_signed()).collect();
        let silences: Vec<_> = vitals.iter().map(|v| v.silent_for.as_secs_f64()).collect();
        let usages: Vec<_> = vitals
            .iter()
            .map(|v| serde_json::to_string(&v.usage).unwrap_or_else(|_| "{}".to_owned()))
            .collect();
        sqlx::query!(
            "WITH locked AS (
                 SELECT id FROM workers WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE
             )
             UPDATE workers w SET status = v.status, current_job_count = v.current_job_count,
                 last_heartbeat = greatest(w.last_heartbeat, now() - make_interval(secs => v.silent_for)),
                 metadata = coalesce(w.metadata, '{}') || jsonb_strip_nulls(v.usage::jsonb),
                 last_active_at = CASE WHEN v.current_job_count > 0 THEN now() ELSE w.last_active_at END,
                 updated_at = now()
             FROM unnest($1::uuid[], $2::text[], $3::int[], $4::float8[], $5::text[])
                 AS v (id, status, current_job_count, silent_for, usage) JOIN locked USING (id)
             WHERE w.id = v.id",
            &ids,
            &statuses as _,
            &counts,
            &silences,
            &usages as _,
        )
        .execute(self.connection()?)
        .await?;
        Ok(())
    }

    /// Marks workers offline that the database, too, has not heard of for their limit, in seconds.
    /// Answers which; the database's clock decides.
    pub async fn mark_offline(&mut self, silent: &[(WorkerId, f64)]) -> Result<Vec<WorkerId>, StorageError> {
        let ids: Vec<_> = silent.iter().map(|(id, _)| id.0).collect();
        let limits: Vec<_> = silent.iter().map(|(_, limit)| *limit).collect();
        let rows = sqlx::query_scalar!(
            "WITH locked AS (
                 SELECT id FROM workers WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE
             )
             UPDATE workers w SET status = 'offline', current_job_count = 0, updated_at = now()
             FROM unnest($1::uuid[], $2::float8[]) AS s (id, silent_limit) JOIN locked USING (id)
             WHERE w.id = s.id AND w.last_heartbeat <= now() - make_interval(secs => s.silent_limit)
             RETURNING w.id",
            &ids,
            &limits,
        )
        .fetch_all(self.connection()?)
        .await?;
        Ok(rows.into_iter().map(WorkerId).collect())
    }

    /// Adds finished attempts to workers' tallies. Rows are locked in the order of their ids.
    pub async fn tally_workers(&mut self, tallies: &[(WorkerId, WorkerTally)]) -> Result<(), StorageError> {
        if tallies.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = tallies.iter().map(|(id, _)| id.0).collect();
        let completed: Vec<_> = tallies.iter().map(|(_, tally)| tally.completed).collect();
        let failed: Vec<_> = tallies.iter().map(|(_, tally)| tally.failed).collect();
        let execution_ms: Vec<_> = tallies.iter().map(|(_, tally)| tally.execution_ms).collect();
        sqlx::query!(
            "WITH tally AS (
                 SELECT * FROM unnest($1::uuid[], $2::int[], $3::int[], $4::bigint[])
                     AS t (id, completed, failed, execution_ms)
             ), locked AS (
                 SELECT id FROM workers WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE
             )
             UPDATE workers w SET total_jobs_completed = w.total_jobs_completed + t.completed,
                 total_jobs_failed = w.total_jobs_failed + t.failed,
                 average_execution_time_ms = CASE WHEN t.completed = 0 THEN w.average_execution_time_ms ELSE
                     (coalesce(w.average_execution_time_ms, 0) * w.total_jobs_completed::bigint
                      + t.execution_ms) / (w.total_jobs_completed + t.completed) END,
                 consecutive_failures =
                     CASE WHEN t.completed > 0 THEN 0 ELSE w.consecutive_failures + t.failed END,
                 last_active_at = now(), updated_at = now()
             FROM tally t JOIN locked USING (id)
             WHERE w.id = t.id",
            &ids,
            &completed,
            &failed,
            &execution_ms,
        )
        .execute(self.connection()?)
        .await?;
        Ok(())
    }
}

impl Database {
    /// All workers, or those in one state, by name.
    pub async fn workers(&self, status: Option<WorkerStatus>) -> Result<WorkerList, StorageError> {
        let mut connection = self.reads.acquire().await?;
        let workers = select(&mut connection, None, status).await?;
        Ok(WorkerList { total: i64::try_from(workers.len()).unwrap_or(i64::MAX), workers })
    }

    /// One worker.
    pub async fn worker(&self, id: WorkerId) -> Result<Option<Worker>, StorageError> {
        let mut connection = self.reads.acquire().await?;
        Ok(select(&mut connection, Some(id.0), None).await?.pop())
    }

    /// The database's time.
    pub async fn now(&self) -> Result<DateTime<Utc>, StorageError> {
        Ok(sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(&self.reads).await?)
    }
}

async fn select(
    connection: &mut sqlx::PgConnection,
    id: Option<Uuid>,
    status: Option<WorkerStatus>,
) -> Result<Vec<Worker>, StorageError> {
    let rows = sqlx::query_as!(
        WorkerRow,
        r#"SELECT id, name, hostname, host(ip_address) AS "ip_address!", port, status,
               capabilities::text AS "capabilities!", max_concurrent_jobs, current_job_count,
               total_jobs_completed, total_jobs_failed, average_execution_time_ms, last_heartbeat,
               heartbeat_interval_seconds, consecutive_failures, version, owner,
               coalesce(metadata, '{}')::text AS "metadata!", registered_at, last_active_at, created_at,
               updated_at
           FROM workers
           WHERE ($1::uuid IS NULL OR id = $1) AND ($2::text IS NULL OR status = $2)
           ORDER BY name, id"#,
        id,
        status.map(WorkerStatus::as_str),
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(Worker::try_from).collect()
}
