//! Giving queued jobs to workers.

use chrono::{DateTime, Utc};
use uuid::Uuid;

use super::database::Database;
use super::error::StorageError;
use super::fence::{Fence, FencedTransaction};
use crate::domain::ids::{DeliveryId, JobId, LeaseId, WorkerId};
use crate::domain::payload::Payload;
use crate::domain::trace::TraceContext;
use crate::security::Column;

/// A claimed job and the worker that is to have it.
#[derive(Debug, Clone, Copy)]
pub struct Claim {
    /// The job.
    pub job_id: JobId,
    /// Who is to run it.
    pub worker_id: WorkerId,
    /// The token of the new lease.
    pub lease: LeaseId,
    /// The `PollJob` call that waits for it, if one does.
    pub delivery: Option<DeliveryId>,
}

/// Where jobs are that are to be assigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// `queued`, and claimed in the ready queue.
    Queue,
    /// `pending`, and their time has come; the ready queue never hears of them. What somebody holds is passed over.
    Backoff,
}

/// A job that was taken for a worker, with all that the worker needs.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "the columns of the specification's tables")]
pub struct Taken {
    pub lease: LeaseId,
    pub worker_id: WorkerId,
    pub job_id: JobId,
    pub attempt_number: u32,
    pub name: String,
    pub model_name: String,
    pub model_version: String,
    pub input_data: Payload,
    pub timeout_seconds: u32,
    pub wait_ms: i64,
    pub assigned_at: DateTime<Utc>,
    pub trace: Option<TraceContext>,
}

/// What Redis calls queued is queued.
#[cfg(feature = "planted-defects")]
const REDIS_TRUSTED: &str = "WITH fence AS MATERIALIZED (SELECT cortex_pass($2, $3) AS passed
    ), believed AS (
        UPDATE jobs SET status = 'queued', queued_at = coalesce(queued_at, now()), next_retry_at = NULL,
            completed_at = NULL, lease_id = NULL, lease_expires_at = NULL
        FROM fence WHERE passed AND id = ANY($1) AND status <> 'queued'
        RETURNING id
    ) DELETE FROM leases WHERE job_id = ANY(ARRAY(SELECT id FROM believed))";

#[cfg(feature = "planted-defects")]
async fn trust_redis(
    connection: &mut super::connections::Single,
    fence: Fence,
    jobs: &[Uuid],
) -> Result<(), StorageError> {
    let trusting = sqlx::query(REDIS_TRUSTED).bind(jobs).bind(fence.cluster_id.0).bind(fence.epoch.0);
    trusting.execute(connection).await?;
    Ok(())
}

impl Database {
    /// Takes those of the claimed jobs that are still where they were, each under its new lease; whose time has come
    /// is for PostgreSQL's clock to say, so none is early. Until its worker says that it runs, a lease is good for
    /// `fetch_seconds` beyond the job's timeout. Fenced, and committed by itself.
    #[expect(clippy::too_many_lines, reason = "one statement, and what is bound to it")]
    pub async fn assign_jobs(
        &self,
        fence: Fence,
        slot: i16,
        from: Origin,
        claims: &[Claim],
        fetch_seconds: i32,
    ) -> Result<Vec<Taken>, StorageError> {
        // Rows are locked in the order of their ids, so that transactions side by side cannot block each
        // other in a circle.
        let mut claims: Vec<&Claim> = claims.iter().collect();
        claims.sort_unstable_by_key(|claim| claim.job_id);
        let jobs: Vec<_> = claims.iter().map(|claim| claim.job_id.0).collect();
        let workers: Vec<_> = claims.iter().map(|claim| claim.worker_id.0).collect();
        let leases: Vec<_> = claims.iter().map(|claim| claim.lease.0).collect();
        let deliveries: Vec<_> = claims.iter().map(|claim| claim.delivery.map(|id| id.0)).collect();
        let due = from == Origin::Backoff;
        let mut connection = self.for_fenced_statement().await?;
        #[cfg(feature = "planted-defects")]
        if !due && crate::planted::planted(crate::planted::Plant::RedisTrusted) {
            trust_redis(&mut connection, fence, &jobs).await?;
        }
        let rows = sqlx::query!(
            r#"WITH fence AS MATERIALIZED (SELECT cortex_pass($7, $8) AS passed
               ), claim AS (
                   SELECT c.* FROM fence,
                       unnest(CASE WHEN passed THEN $2::uuid[] END, $3::uuid[], $4::uuid[], $5::uuid[])
                       AS c (job_id, worker_id, lease_id, delivery_id)
                   WHERE NOT $9
                       OR EXISTS (SELECT FROM jobs due WHERE due.id = c.job_id FOR UPDATE SKIP LOCKED)
               ), taken AS (
                   UPDATE jobs j SET status = 'assigned', assigned_worker_id = c.worker_id,
                       assigned_at = now(), lease_id = c.lease_id,
                       lease_expires_at = now() + make_interval(secs => j.timeout_seconds + $6::int),
                       queue_wait_time_ms = greatest(0, extract(epoch FROM
                           now() - CASE WHEN $9 THEN greatest(j.next_retry_at, j.submitted_at)
                               ELSE j.queued_at END) * 1000)::bigint,
                       queued_at = CASE WHEN $9 THEN now() ELSE j.queued_at END, next_retry_at = NULL,
                       updated_at = now()
                   FROM claim c WHERE j.id = c.job_id
                       AND j.status = CASE WHEN $9 THEN 'pending' ELSE 'queued' END
                       AND (NOT $9 OR j.next_retry_at <= now())
                   RETURNING j.id, j.lease_id, j.assigned_worker_id, j.lease_expires_at, c.delivery_id,
                       j.retry_count + 1 AS attempt_number, j.name, j.model_name, j.model_version,
                       j.input_data, j.timeout_seconds, j.queue_wait_time_ms,
                       j.assigned_at, j.trace_context
               ), leased AS (
                   INSERT INTO executions (id, job_id, worker_id, attempt_number, status, started_at,
                       lease_expires_at, delivery_id, delivered_at)
                   SELECT lease_id, id, assigned_worker_id, attempt_number, 'started', now(),
                       lease_expires_at, delivery_id, CASE WHEN delivery_id IS NOT NULL THEN now() END
                   FROM taken
                   RETURNING job_id, id
               ), live AS (INSERT INTO leases (job_id, id) SELECT job_id, id FROM leased
               ), counted AS (
                   UPDATE job_counters SET queued = queued - CASE WHEN $9 THEN 0 ELSE t.jobs END,
                       pending = pending - CASE WHEN $9 THEN t.jobs ELSE 0 END, assigned = assigned + t.jobs,
                       wait_ms = job_counters.wait_ms + t.wait_ms, waits = waits + t.jobs
                   FROM (SELECT count(*) AS jobs, coalesce(sum(queue_wait_time_ms), 0)::bigint AS wait_ms
                         FROM taken) t
                   WHERE slot = $1 AND t.jobs > 0
               )
               SELECT id AS "id!", lease_id AS "lease_id!", assigned_worker_id AS "worker_id!",
                   attempt_number AS "attempt_number!", name AS "name!", model_name AS "model_name!",
                   model_version AS "model_version!", input_data::text AS "input_data!",
                   timeout_seconds AS "timeout_seconds!", queue_wait_time_ms AS "wait_ms!",
                   assigned_at AS "assigned_at!", trace_context
               FROM taken"#,
            slot,
            &jobs,
            &workers,
            &leases,
            &deliveries as _,
            fetch_seconds,
            fence.cluster_id.0,
            fence.epoch.0,
            due,
        )
        .fetch_all(&mut connection)
        .await
        .map_err(StorageError::of_commit)?;
        Ok(rows
            .into_iter()
            .map(|row| Taken {
                lease: LeaseId(row.lease_id),
                worker_id: WorkerId(row.worker_id),
                job_id: JobId(row.id),
                attempt_number: row.attempt_number.cast_unsigned(),
                name: row.name,
                model_name: row.model_name,
                model_version: row.model_version,
                input_data: self.opened_input(row.id, row.input_data),
                timeout_seconds: row.timeout_seconds.cast_unsigned(),
                wait_ms: row.wait_ms,
                assigned_at: row.assigned_at,
                trace: row.trace_context.as_deref().and_then(TraceContext::from_text),
            })
            .collect())
    }
}

impl FencedTransaction {
    /// Notes which `PollJob` call fetched each lease. Answers those that are live. A call that was noted
    /// before and went away without the job is forgotten: the leader knows that nobody has it.
    pub async fn mark_delivered(
        &mut self,
        deliveries: &[(LeaseId, DeliveryId)],
    ) -> Result<Vec<LeaseId>, StorageError> {
        let leases: Vec<_> = deliveries.iter().map(|(lease, _)| lease.0).collect();
        let ids: Vec<_> = deliveries.iter().map(|(_, delivery)| delivery.0).collect();
        let rows = sqlx::query_scalar!(
            "UPDATE executions e SET delivery_id = d.delivery_id,
                 delivered_at = coalesce(e.delivered_at, now())
             FROM unnest($1::uuid[], $2::uuid[]) AS d (lease_id, delivery_id)
             WHERE e.id = d.lease_id AND e.status IN ('started', 'running')
             RETURNING e.id",
            &leases,
            &ids,
        )
        .fetch_all(self.connection()?)
        .await?;
        Ok(rows.into_iter().map(LeaseId).collect())
    }
}

impl Database {
    fn opened_input(&self, job: Uuid, stored: String) -> Payload {
        Payload::trusted(self.vault.open_json(job, Column::InputData, stored))
    }

    /// What the worker needs to run the job of a live lease.
    pub async fn assignment(&self, lease: LeaseId) -> Result<Option<Taken>, StorageError> {
        let row = sqlx::query!(
            r#"SELECT id, assigned_worker_id AS "worker_id!", retry_count + 1 AS "attempt_number!", name,
                   model_name, model_version, input_data::text AS "input_data!", timeout_seconds,
                   coalesce(queue_wait_time_ms, 0) AS "wait_ms!",
                   coalesce(assigned_at, updated_at) AS "assigned_at!", trace_context
               FROM jobs WHERE lease_id = $1 AND id = (SELECT job_id FROM executions WHERE id = $1)"#,
            lease.0
        )
        .fetch_optional(&self.reads)
        .await?;
        Ok(row.map(|row| Taken {
            lease,
            worker_id: WorkerId(row.worker_id),
            job_id: JobId(row.id),
            attempt_number: row.attempt_number.cast_unsigned(),
            name: row.name,
            model_name: row.model_name,
            model_version: row.model_version,
            input_data: self.opened_input(row.id, row.input_data),
            timeout_seconds: row.timeout_seconds.cast_unsigned(),
            wait_ms: row.wait_ms,
            assigned_at: row.assigned_at,
            trace: row.trace_context.as_deref().and_then(TraceContext::from_text),
        }))
    }
}
