//! The series `queue_metrics`: how the queue fared, a row at a time.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::database::Database;
use super::error::StorageError;
use super::fence::FencedTransaction;
use crate::domain::queue::QueueMetrics;

/// Sums since the beginning, whose growth between two rows gives averages and throughput.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the columns of job_counters")]
pub struct Totals {
    pub wait_ms: i64,
    pub waits: i64,
    pub execution_ms: i64,
    pub executions: i64,
}

/// A row that is to be recorded.
#[derive(Debug, Clone, Default, PartialEq)]
#[expect(missing_docs, reason = "the columns of the specification's table")]
pub struct NewQueueMetrics {
    /// Jobs in the ready queue by priority: index 0 is priority 1.
    pub depth: [i32; 10],
    pub pending_jobs: i32,
    pub running_jobs: i32,
    pub total_workers: i32,
    pub idle_workers: i32,
    pub busy_workers: i32,
    pub average_wait_time_ms: Option<i32>,
    pub average_execution_time_ms: Option<i32>,
    pub jobs_per_minute: Option<f64>,
}

impl Database {
    /// What all jobs have waited and run, so far.
    pub async fn totals(&self) -> Result<Totals, StorageError> {
        Ok(sqlx::query_as!(
            Totals,
            r#"SELECT sum(wait_ms)::bigint AS "wait_ms!", sum(waits)::bigint AS "waits!",
                   sum(execution_ms)::bigint AS "execution_ms!", sum(executions)::bigint AS "executions!"
               FROM job_counters"#
        )
        .fetch_one(&self.reads)
        .await?)
    }

    /// Rows of the series, the oldest first: the first `limit` that were recorded at `since` or later, or the
    /// last `limit` of all.
    pub async fn queue_metrics(
        &self,
        since: Option<DateTime<Utc>>,
        limit: i64,
    ) -> Result<Vec<QueueMetrics>, StorageError> {
        // Without a beginning the order is turned twice: the last rows, and then these from the oldest on.
        Ok(sqlx::query_as!(
            QueueMetrics,
            r#"SELECT id AS "id!", queue_depth AS "queue_depth!", pending_jobs AS "pending_jobs!",
                   running_jobs AS "running_jobs!", priority_1_count AS "priority_1_count!",
                   priority_2_count AS "priority_2_count!", priority_3_count AS "priority_3_count!",
                   priority_4_count AS "priority_4_count!", priority_5_count AS "priority_5_count!",
                   priority_6_count AS "priority_6_count!", priority_7_count AS "priority_7_count!",
                   priority_8_count AS "priority_8_count!", priority_9_count AS "priority_9_count!",
                   priority_10_count AS "priority_10_count!", total_workers AS "total_workers!",
                   idle_workers AS "idle_workers!", busy_workers AS "busy_workers!", average_wait_time_ms,
                   average_execution_time_ms, jobs_per_minute::float8 AS jobs_per_minute,
                   recorded_at AS "recorded_at!"
               FROM (
                   (SELECT * FROM queue_metrics WHERE recorded_at >= $1
                    ORDER BY recorded_at, id LIMIT $2)
                   UNION ALL
                   (SELECT * FROM queue_metrics WHERE $1::timestamptz IS NULL
                    ORDER BY recorded_at DESC, id DESC LIMIT $2)
               ) rows
               ORDER BY recorded_at, id"#,
            since,
            limit,
        )
        .fetch_all(&self.reads)
        .await?)
    }
}

impl FencedTransaction {
    /// Adds a row to the series.
    pub async fn record_queue_metrics(&mut self, row: &NewQueueMetrics) -> Result<(), StorageError> {
        sqlx::query!(
            "INSERT INTO queue_metrics (queue_depth, priority_1_count, priority_2_count, priority_3_count,
                 priority_4_count, priority_5_count, priority_6_count, priority_7_count, priority_8_count,
                 priority_9_count, priority_10_count, pending_jobs, running_jobs, total_workers, idle_workers,
                 busy_workers, average_wait_time_ms, average_execution_time_ms, jobs_per_minute)
             SELECT $1, d[1], d[2], d[3], d[4], d[5], d[6], d[7], d[8], d[9], d[10], $3, $4, $5, $6, $7, $8, $9,
                 $10::float8::numeric
             FROM (SELECT $2::int[]) AS depth (d)",
            row.depth.iter().fold(0_i32, |sum, jobs| sum.saturating_add(*jobs)),
            &row.depth,
            row.pending_jobs,
            row.running_jobs,
            row.total_workers,
            row.idle_workers,
            row.busy_workers,
            row.average_wait_time_ms,
            row.average_execution_time_ms,
            row.jobs_per_minute,
        )
        .execute(self.connection()?)
        .await?;
        Ok(())
    }

    /// Deletes at most `limit` rows that are older than `age`, the oldest first. Answers how many went.
    pub async fn prune_queue_metrics(&mut self, age: Duration, limit: i64) -> Result<u64, StorageError> {
        let gone = sqlx::query!(
            "DELETE FROM queue_metrics WHERE id = ANY(ARRAY(
                 SELECT id FROM queue_metrics WHERE recorded_at < now() - make_interval(secs => $1)
                 ORDER BY recorded_at LIMIT $2))",
            age.as_secs_f64(),
            limit,
        )
        .execute(self.connection()?)
        .await?;
        Ok(gone.rows_affected())
    }
}
