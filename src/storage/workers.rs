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
use crate::domain::worker::{NewWorker, Worker, WorkerList, WorkerStats, WorkerStatus};

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
    /// What else it last said of itself; `None` if it has said nothing yet, and what is stored stands.
    pub metadata: Option<Payload>,
}

/// What finished attempts add to a worker's tally.
#[derive(Debug, Clone, Copy, Default)]
pub struct WorkerTally {
    /// Attempts that ended well.
    pub completed: i32,
    /// Attempts that ended badly.
    pub failed: i32,
    /// Those of them that speak against the worker: all but the ones with which it was lost, for which its
    /// silence answers.
    pub blamed: i32,
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
    draining: bool,
    removed_at: Option<DateTime<Utc>>,
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
            draining: row.draining,
            removed_at: row.removed_at,
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
    /// Registers a worker. A known hostname and port keep their id; `true` says that they were new. What was
    /// reported before stays beside what is declared now.
    pub async fn register_worker(&mut self, new: &NewWorker) -> Result<(Worker, bool), StorageError> {
        let row = sqlx::query!(
            r#"INSERT INTO workers (id, name, hostname, ip_address, port, capabilities, max_concurrent_jobs,
                   heartbeat_interval_seconds, version, declared_metadata, metadata)
               VALUES ($1, $2, $3, $4::text::inet, $5, $6::text::jsonb, $7, $8, $9, $10::text::jsonb,
                   $10::text::jsonb)
               ON CONFLICT (hostname, port) DO UPDATE SET name = EXCLUDED.name,
                   ip_address = EXCLUDED.ip_address, capabilities = EXCLUDED.capabilities,
                   max_concurrent_jobs = EXCLUDED.max_concurrent_jobs,
                   heartbeat_interval_seconds = EXCLUDED.heartbeat_interval_seconds,
                   version = EXCLUDED.version, status = 'idle', consecutive_failures = 0,
                   draining = FALSE, removed_at = NULL, declared_metadata = EXCLUDED.declared_metadata,
                   metadata = EXCLUDED.declared_metadata || (coalesce(workers.metadata, '{}')
                       - ARRAY(SELECT jsonb_object_keys(workers.declared_metadata))),
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
            new.metadata.as_str(),
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

    /// Notes that a worker is to get nothing new. Answers the worker, changed only if it is in service.
    pub async fn drain_worker(&mut self, id: WorkerId) -> Result<Option<Worker>, StorageError> {
        sqlx::query!(
            "UPDATE workers SET draining = TRUE, updated_at = now()
             WHERE id = $1 AND NOT draining AND removed_at IS NULL",
            id.0
        )
        .execute(self.connection()?)
        .await?;
        Ok(select(self.connection()?, Some(id.0), None).await?.pop())
    }

    /// Takes a worker out of service; its row stays, because its executions name it. Answers whether there is
    /// such a worker.
    pub async fn remove_worker(&mut self, id: WorkerId) -> Result<bool, StorageError> {
        let found = sqlx::query!(
            "UPDATE workers SET status = 'offline', current_job_count = 0,
                 removed_at = coalesce(removed_at, now()), updated_at = now()
             WHERE id = $1",
            id.0
        )
        .execute(self.connection()?)
        .await?;
        Ok(found.rows_affected() > 0)
    }

    /// Notes signs of life. One that was read before its worker was removed comes too late.
    pub async fn write_vitals(&mut self, vitals: &[Vitals]) -> Result<(), StorageError> {
        let ids: Vec<_> = vitals.iter().map(|v| v.worker_id.0).collect();
        let statuses: Vec<_> = vitals.iter().map(|v| v.status.as_str()).collect();
        let counts: Vec<_> = vitals.iter().map(|v| v.current_job_count.cast_signed()).collect();
        let silences: Vec<_> = vitals.iter().map(|v| v.silent_for.as_secs_f64()).collect();
        let metadata: Vec<_> = vitals.iter().map(|v| v.metadata.as_ref().map(Payload::as_str)).collect();
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
                 metadata = CASE WHEN v.metadata IS NULL THEN w.metadata
                     ELSE w.declared_metadata || v.metadata::jsonb || jsonb_strip_nulls(v.usage::jsonb) END,
                 last_active_at = CASE WHEN v.current_job_count > 0 THEN now() ELSE w.last_active_at END,
                 updated_at = now()
             FROM unnest($1::uuid[], $2::text[], $3::int[], $4::float8[], $5::text[], $6::text[])
                 AS v (id, status, current_job_count, silent_for, usage, metadata) JOIN locked USING (id)
             WHERE w.id = v.id AND w.removed_at IS NULL",
            &ids,
            &statuses as _,
            &counts,
            &silences,
            &usages as _,
            &metadata as _,
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
        let blamed: Vec<_> = tallies.iter().map(|(_, tally)| tally.blamed).collect();
        let execution_ms: Vec<_> = tallies.iter().map(|(_, tally)| tally.execution_ms).collect();
        sqlx::query!(
            "WITH tally AS (
                 SELECT * FROM unnest($1::uuid[], $2::int[], $3::int[], $4::int[], $5::bigint[])
                     AS t (id, completed, failed, blamed, execution_ms)
             ), locked AS (
                 SELECT id FROM workers WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE
             )
             UPDATE workers w SET total_jobs_completed = w.total_jobs_completed + t.completed,
                 total_jobs_failed = w.total_jobs_failed + t.failed,
                 execution_ms = w.execution_ms + t.execution_ms, executions = w.executions + t.completed,
                 average_execution_time_ms = CASE WHEN t.completed = 0 THEN w.average_execution_time_ms ELSE
                     (w.execution_ms + t.execution_ms) / (w.executions + t.completed) END,
                 consecutive_failures =
                     CASE WHEN t.completed > 0 THEN 0 ELSE w.consecutive_failures + t.blamed END,
                 last_active_at = now(), updated_at = now()
             FROM tally t JOIN locked USING (id)
             WHERE w.id = t.id",
            &ids,
            &completed,
            &failed,
            &blamed,
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
        let workers = select(&self.reads, None, status).await?;
        Ok(WorkerList { total: i64::try_from(workers.len()).unwrap_or(i64::MAX), workers })
    }

    /// One worker.
    pub async fn worker(&self, id: WorkerId) -> Result<Option<Worker>, StorageError> {
        Ok(select(&self.reads, Some(id.0), None).await?.pop())
    }

    /// Workers by state, and how much of what they can run they do run.
    pub async fn worker_stats(&self) -> Result<WorkerStats, StorageError> {
        let row = sqlx::query!(
            r#"SELECT count(*) AS "total!", count(*) FILTER (WHERE status = 'idle') AS "idle!",
                   count(*) FILTER (WHERE status = 'busy') AS "busy!",
                   count(*) FILTER (WHERE status = 'offline') AS "offline!",
                   count(*) FILTER (WHERE status = 'unhealthy') AS "unhealthy!",
                   coalesce(sum(max_concurrent_jobs) FILTER (WHERE status <> 'offline'), 0) AS "capacity!",
                   coalesce(sum(current_job_count) FILTER (WHERE status <> 'offline'), 0) AS "held!"
               FROM workers"#
        )
        .fetch_one(&self.reads)
        .await?;
        #[expect(clippy::cast_precision_loss, reason = "a ratio of counts")]
        let percent = if row.capacity > 0 { 100.0 * row.held as f64 / row.capacity as f64 } else { 0.0 };
        Ok(WorkerStats {
            total_workers: row.total,
            idle_workers: row.idle,
            busy_workers: row.busy,
            offline_workers: row.offline,
            unhealthy_workers: row.unhealthy,
            total_capacity: row.capacity,
            current_utilization: row.held,
            utilization_percent: percent,
        })
    }

    /// The database's time.
    pub async fn now(&self) -> Result<DateTime<Utc>, StorageError> {
        Ok(sqlx::query_scalar!(r#"SELECT now() AS "now!""#).fetch_one(&self.reads).await?)
    }
}

async fn select(
    on: impl sqlx::PgExecutor<'_>,
    id: Option<Uuid>,
    status: Option<WorkerStatus>,
) -> Result<Vec<Worker>, StorageError> {
    let rows = sqlx::query_as!(
        WorkerRow,
        r#"SELECT id, name, hostname, host(ip_address) AS "ip_address!", port, status, draining,
               removed_at, capabilities::text AS "capabilities!", max_concurrent_jobs, current_job_count,
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
    .fetch_all(on)
    .await?;
    rows.into_iter().map(Worker::try_from).collect()
}
