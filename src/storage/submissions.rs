//! Storing submissions, many in one statement.

use chrono::{DateTime, Utc};

use super::error::StorageError;
use super::fence::FencedTransaction;
use crate::domain::ids::JobId;
use crate::domain::job::NewJob;

impl FencedTransaction {
    /// Stores jobs as `queued`. A job whose id is there already is left alone, so a submission that is
    /// sent twice is stored once. Answers when each job was first submitted, and whether that was now, in
    /// no particular order.
    pub async fn insert_jobs(
        &mut self,
        slot: i16,
        jobs: &[&NewJob],
    ) -> Result<Vec<(JobId, DateTime<Utc>, bool)>, StorageError> {
        let ids: Vec<_> = jobs.iter().map(|job| job.id.0).collect();
        let names: Vec<_> = jobs.iter().map(|job| job.name.as_str()).collect();
        let models: Vec<_> = jobs.iter().map(|job| job.model_name.as_str()).collect();
        let versions: Vec<_> = jobs.iter().map(|job| job.model_version.as_str()).collect();
        let priorities: Vec<_> = jobs.iter().map(|job| i32::from(job.priority)).collect();
        let retries: Vec<_> = jobs.iter().map(|job| job.max_retries.cast_signed()).collect();
        let timeouts: Vec<_> = jobs.iter().map(|job| job.timeout_seconds.cast_signed()).collect();
        let inputs: Vec<_> = jobs.iter().map(|job| job.input_data.as_str()).collect();
        let tags: Vec<_> = jobs.iter().map(|job| job.tags.as_str()).collect();
        let metadata: Vec<_> = jobs.iter().map(|job| job.metadata.as_str()).collect();
        let creators: Vec<_> = jobs.iter().map(|job| job.created_by.as_deref()).collect();
        let rows = sqlx::query!(
            r#"WITH submission AS (
                   SELECT s.*, clock_timestamp() AS moment
                   FROM unnest($2::uuid[], $3::text[], $4::text[], $5::text[], $6::int[], $7::int[],
                               $8::int[], $9::text[], $10::text[], $11::text[], $12::text[])
                       AS s (id, name, model_name, model_version, priority, max_retries, timeout_seconds,
                             input_data, tags, metadata, created_by)
               ), stored AS (
                   INSERT INTO jobs (id, name, model_name, model_version, status, priority, max_retries,
                       timeout_seconds, input_data, tags, metadata, created_by, submitted_at, queued_at,
                       created_at, updated_at)
                   SELECT id, name, model_name, model_version, 'queued', priority, max_retries,
                       timeout_seconds, input_data::jsonb, tags::jsonb, metadata::jsonb, created_by, moment,
                       moment, moment, moment
                   FROM submission
                   ON CONFLICT (id) DO NOTHING
                   RETURNING id, submitted_at
               ), counted AS (
                   UPDATE job_counters SET queued = queued + (SELECT count(*) FROM stored) WHERE slot = $1
               )
               SELECT id AS "id!", submitted_at AS "submitted_at!", TRUE AS "new!" FROM stored
               UNION ALL
               SELECT id, submitted_at, FALSE FROM jobs WHERE id = ANY($2)"#,
            slot,
            &ids,
            &names as _,
            &models as _,
            &versions as _,
            &priorities,
            &retries,
            &timeouts,
            &inputs as _,
            &tags as _,
            &metadata as _,
            &creators as _,
        )
        .fetch_all(self.connection()?)
        .await?;
        Ok(rows.into_iter().map(|row| (JobId(row.id), row.submitted_at, row.new)).collect())
    }
}
