//! The leases in force, as a new leader finds them.
//!
//! `leases` follows from `jobs.lease_id` and is written by the statements that change it. It can lag behind only
//! where a replica has written that does not know the table, as during an upgrade. It is nearly empty whenever it
//! is analyzed, whatever it will hold: rows are found by `= ANY(ARRAY(...))`, which no estimate can turn into a
//! join that begins with the table.

use super::database::Database;
use super::error::StorageError;
use super::fence::Fence;
use crate::domain::ids::{DeliveryId, JobId, LeaseId, WorkerId};

/// A lease as a new leader finds it.
#[derive(Debug, Clone, Copy)]
pub struct LiveLease {
    /// The token.
    pub lease: LeaseId,
    /// The job.
    pub job_id: JobId,
    /// Who holds it.
    pub worker_id: WorkerId,
    /// Whether the worker said that it runs.
    pub running: bool,
    /// The call that fetched the job.
    pub delivery: Option<DeliveryId>,
    /// How long an attempt may run.
    pub timeout_seconds: u32,
    /// How long the lease is still good, in seconds; negative once it has run out.
    pub expires_in: f64,
}

impl Database {
    /// All live leases, for a leader that has just taken over: nobody else writes. Rows of `leases` that are
    /// missing or left over are set right first, which reads all jobs.
    pub async fn take_over_leases(&self, fence: Fence) -> Result<Vec<LiveLease>, StorageError> {
        let expected = sqlx::query!(
            r#"SELECT (SELECT sum(assigned + running)::bigint FROM job_counters)
                   - (SELECT count(*) FROM jobs WHERE driven_until IS NOT NULL) AS "live!",
                   (SELECT count(*) FROM leases) AS "rows!""#
        );
        let expected = async { Ok(expected.fetch_one(&self.reads).await?) };
        let (found, expected) = tokio::try_join!(self.live_leases(), expected)?;
        let agrees = |count: i64| usize::try_from(count) == Ok(found.len());
        if agrees(expected.live) && agrees(expected.rows) {
            return Ok(found);
        }
        tracing::warn!(
            found = found.len(),
            expected.live,
            expected.rows,
            "The table of leases is set right."
        );
        self.mend_leases(fence).await?;
        self.live_leases().await
    }

    async fn live_leases(&self) -> Result<Vec<LiveLease>, StorageError> {
        let rows = sqlx::query!(
            r#"SELECT e.id, e.job_id, e.worker_id, j.status = 'running' AS "running!", e.delivery_id,
                   j.timeout_seconds, extract(epoch FROM j.lease_expires_at - now())::float8 AS "expires_in!"
               FROM leases l JOIN jobs j ON j.id = l.job_id AND j.lease_id = l.id
                   JOIN executions e ON e.id = l.id"#
        )
        .fetch_all(&self.reads)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| LiveLease {
                lease: LeaseId(row.id),
                job_id: JobId(row.job_id),
                worker_id: WorkerId(row.worker_id),
                running: row.running,
                delivery: row.delivery_id.map(DeliveryId),
                timeout_seconds: row.timeout_seconds.cast_unsigned(),
                expires_in: row.expires_in,
            })
            .collect())
    }

    async fn mend_leases(&self, fence: Fence) -> Result<(), StorageError> {
        let mut transaction = self.begin(fence).await?;
        // All jobs are read, in whatever time that takes.
        sqlx::raw_sql(
            "SET LOCAL statement_timeout = 0; SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on",
        )
        .execute(transaction.connection()?)
        .await?;
        sqlx::query!(
            "DELETE FROM leases l
             WHERE NOT EXISTS (SELECT FROM jobs j WHERE j.id = l.job_id AND j.lease_id = l.id)"
        )
        .execute(transaction.connection()?)
        .await?;
        sqlx::query!(
            "INSERT INTO leases (job_id, id) SELECT id, lease_id FROM jobs WHERE lease_id IS NOT NULL
             ON CONFLICT (job_id) DO NOTHING"
        )
        .execute(transaction.connection()?)
        .await?;
        transaction.commit().await
    }
}
