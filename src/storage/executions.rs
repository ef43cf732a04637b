//! Attempts, for reading.

use super::database::Database;
use super::error::StorageError;
use super::transitions::parse;
use crate::domain::execution::Execution;
use crate::domain::ids::{JobId, LeaseId, WorkerId};
use crate::domain::payload::Payload;
use crate::security::Column;

impl Database {
    /// The attempts of a job, oldest first.
    pub async fn executions(&self, job: JobId) -> Result<Vec<Execution>, StorageError> {
        let rows = sqlx::query!(
            r#"SELECT id, job_id, worker_id, attempt_number, status, started_at, completed_at, duration_ms,
                   output_data::text AS output_data, error_message, error_stack, error_code,
                   cpu_usage_percent::float8 AS cpu_usage_percent, memory_usage_mb,
                   gpu_usage_percent::float8 AS gpu_usage_percent, log_file_path,
                   coalesce(metadata, '{}')::text AS "metadata!", created_at
               FROM executions WHERE job_id = $1 ORDER BY created_at, id"#,
            job.0
        )
        .fetch_all(&self.reads)
        .await?;
        rows.into_iter()
            .map(|row| {
                let text = |column, stored| self.vault.open_text(row.job_id, column, stored);
                let output = |stored| self.vault.open_json(row.job_id, Column::OutputData, stored);
                Ok(Execution {
                    id: LeaseId(row.id),
                    job_id: JobId(row.job_id),
                    worker_id: WorkerId(row.worker_id),
                    attempt_number: row.attempt_number.cast_unsigned(),
                    status: parse(&row.status)?,
                    started_at: row.started_at,
                    completed_at: row.completed_at,
                    duration_ms: row.duration_ms,
                    output_data: row.output_data.map(|stored| Payload::trusted(output(stored))),
                    error_message: row.error_message.map(|stored| text(Column::ErrorMessage, stored)),
                    error_stack: row.error_stack.map(|stored| text(Column::ErrorStack, stored)),
                    error_code: row.error_code,
                    cpu_usage_percent: row.cpu_usage_percent,
                    memory_usage_mb: row.memory_usage_mb.map(i64::from),
                    gpu_usage_percent: row.gpu_usage_percent,
                    log_file_path: row.log_file_path,
                    metadata: Payload::trusted(row.metadata),
                    created_at: row.created_at,
                })
            })
            .collect()
    }
}
