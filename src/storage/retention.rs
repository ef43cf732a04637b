//! Jobs that ended long ago go, with their executions.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::counters::Deltas;
use super::database::Database;
use super::error::StorageError;
use super::fence::FencedTransaction;
use super::transitions::parse;
use crate::domain::ids::JobId;

/// A job of before, as a sweep over the oldest ones sees it.
#[derive(Debug, Clone, Copy)]
pub struct OldJob {
    /// Which.
    pub id: JobId,
    /// When it was submitted, by which they are ordered.
    pub submitted_at: DateTime<Utc>,
    /// Whether it ended long enough ago, and no idempotency key names it.
    pub ended: bool,
}

impl Database {
    /// A page of the jobs that were submitted more than `age` ago, the oldest first, after `after`.
    pub async fn old_jobs(
        &self,
        age: Duration,
        after: Option<&OldJob>,
        limit: i64,
    ) -> Result<Vec<OldJob>, StorageError> {
        let rows = sqlx::query!(
            r#"WITH page AS MATERIALIZED (
                   SELECT id, submitted_at, coalesce(completed_at < now() - make_interval(secs => $1), FALSE) AS ended
                   FROM jobs
                   WHERE submitted_at < now() - make_interval(secs => $1)
                       AND (submitted_at, id) > ($2::timestamptz, $3::uuid)
                   ORDER BY submitted_at, id LIMIT $4
               ), named AS (
                   -- All of the page at once: a look for each job would read the list of new keys each time, or all keys.
                   SELECT unnest(job_ids) AS id FROM idempotency_keys
                   WHERE job_ids && ARRAY(SELECT id FROM page WHERE ended)
               )
               SELECT id AS "id!", submitted_at AS "submitted_at!",
                   ended AND id NOT IN (SELECT id FROM named) AS "ended!"
               FROM page ORDER BY submitted_at, id"#,
            age.as_secs_f64(),
            after.map_or(DateTime::UNIX_EPOCH, |job| job.submitted_at),
            after.map_or(uuid::Uuid::nil(), |job| job.id.0),
            limit,
        )
        .fetch_all(&self.reads)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| OldJob { id: JobId(row.id), submitted_at: row.submitted_at, ended: row.ended })
            .collect())
    }
}

impl FencedTransaction {
    /// Deletes those of the jobs that ended more than `age` ago, with their executions, and takes them out of the
    /// counters of `slot`. One that was tried again meanwhile stays, and so does one that an idempotency key names:
    /// its submission would otherwise count as not yet done. Answers how many went.
    pub async fn delete_ended(
        &mut self,
        slot: i16,
        jobs: &[JobId],
        age: Duration,
    ) -> Result<u64, StorageError> {
        let ids: Vec<_> = jobs.iter().map(|id| id.0).collect();
        let rows = sqlx::query!(
            r#"WITH named AS MATERIALIZED (
                   SELECT unnest(job_ids) AS id FROM idempotency_keys WHERE job_ids && $1
               ), locked AS (
                   -- In the order of their ids, as everywhere, against circles of locks.
                   SELECT id FROM jobs
                   WHERE id = ANY($1) AND completed_at < now() - make_interval(secs => $2)
                       AND id NOT IN (SELECT id FROM named)
                   ORDER BY id FOR UPDATE
               ), gone AS (
                   DELETE FROM jobs WHERE id = ANY(ARRAY(SELECT id FROM locked)) RETURNING id, status
               ), ended AS (DELETE FROM executions WHERE job_id = ANY(ARRAY(SELECT id FROM gone)))
               SELECT status, count(*) AS "jobs!" FROM gone GROUP BY status"#,
            &ids,
            age.as_secs_f64(),
        )
        .fetch_all(self.connection()?)
        .await?;
        let mut deltas = Deltas::default();
        let mut gone = 0;
        for row in rows {
            deltas.removed(parse(&row.status)?, row.jobs);
            gone += row.jobs.unsigned_abs();
        }
        self.count(slot, &deltas).await?;
        Ok(gone)
    }
}
