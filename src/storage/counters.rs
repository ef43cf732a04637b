//! Jobs by state, kept in the transactions that change them.

use super::connections::Session;
use super::database::Database;
use super::error::StorageError;
use super::fence::FencedTransaction;
use crate::domain::job::{JobStats, JobStatus};

/// What a transaction changes in the counters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Deltas {
    by_status: [i64; JobStatus::ALL.len()],
    execution_ms: i64,
    executions: i64,
}

impl Deltas {
    /// A job went from one state to another.
    pub fn moved(&mut self, from: JobStatus, to: JobStatus) {
        self.by_status[from as usize] -= 1;
        self.by_status[to as usize] += 1;
    }

    /// Jobs in a state are no more.
    pub fn removed(&mut self, from: JobStatus, jobs: i64) {
        self.by_status[from as usize] -= jobs;
    }

    /// A job was completed after running for `ms` milliseconds.
    pub fn ran(&mut self, ms: i64) {
        self.execution_ms += ms;
        self.executions += 1;
    }

    fn of(&self, status: JobStatus) -> i64 {
        self.by_status[status as usize]
    }
}

impl FencedTransaction {
    /// Adds `deltas` to the counters of `slot`, 0 to 31; writers side by side use different slots.
    pub async fn count(&mut self, slot: i16, deltas: &Deltas) -> Result<(), StorageError> {
        if *deltas == Deltas::default() {
            return Ok(());
        }
        add(self.connection()?, slot, deltas).await
    }
}

async fn add(session: Session<'_>, slot: i16, deltas: &Deltas) -> Result<(), StorageError> {
    sqlx::query!(
        "UPDATE job_counters SET pending = pending + $2, queued = queued + $3, assigned = assigned + $4,
             running = running + $5, completed = completed + $6, failed = failed + $7,
             cancelled = cancelled + $8, timeout = timeout + $9, execution_ms = execution_ms + $10,
             executions = executions + $11
         WHERE slot = $1",
        slot,
        deltas.of(JobStatus::Pending),
        deltas.of(JobStatus::Queued),
        deltas.of(JobStatus::Assigned),
        deltas.of(JobStatus::Running),
        deltas.of(JobStatus::Completed),
        deltas.of(JobStatus::Failed),
        deltas.of(JobStatus::Cancelled),
        deltas.of(JobStatus::Timeout),
        deltas.execution_ms,
        deltas.executions,
    )
    .execute(session)
    .await?;
    Ok(())
}

impl Database {
    /// Jobs by state and the averages, in constant time.
    pub async fn stats(&self) -> Result<JobStats, StorageError> {
        let row = sqlx::query!(
            r#"SELECT sum(pending)::bigint AS "pending!", sum(queued)::bigint AS "queued!",
                   sum(assigned)::bigint AS "assigned!", sum(running)::bigint AS "running!",
                   sum(completed)::bigint AS "completed!", sum(failed)::bigint AS "failed!",
                   sum(cancelled)::bigint AS "cancelled!", sum(timeout)::bigint AS "timeout!",
                   sum(execution_ms)::float8 / nullif(sum(executions), 0)::float8 AS execution_ms,
                   sum(wait_ms)::float8 / nullif(sum(waits), 0)::float8 AS wait_ms
               FROM job_counters"#
        )
        .fetch_one(&self.reads)
        .await?;
        let ended = row.completed + row.failed + row.timeout;
        #[expect(clippy::cast_precision_loss, reason = "a ratio of counts")]
        let success_rate = (ended > 0).then(|| row.completed as f64 / ended as f64);
        Ok(JobStats {
            total_jobs: row.pending + row.queued + row.assigned + row.running + row.cancelled + ended,
            pending: row.pending,
            queued: row.queued,
            assigned: row.assigned,
            running: row.running,
            completed: row.completed,
            failed: row.failed,
            cancelled: row.cancelled,
            timeout: row.timeout,
            average_execution_time_ms: row.execution_ms,
            average_queue_time_ms: row.wait_ms,
            success_rate,
        })
    }
}
