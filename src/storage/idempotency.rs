//! Idempotency keys, and the jobs that they stand for.

use std::collections::HashMap;

use uuid::Uuid;

use super::database::Database;
use super::error::StorageError;
use super::fence::{Fence, FencedTransaction};
use crate::domain::idempotency::IdempotencyKey;
use crate::domain::ids::JobId;

/// A key, and the submission that it shall stand for unless it stands for another one.
#[derive(Debug, Clone, Copy)]
pub struct KeyClaim<'a> {
    /// The key.
    pub key: &'a IdempotencyKey,
    /// What tells the submission from others.
    pub fingerprint: &'a [u8],
    /// The jobs of the submission, which are stored afterwards.
    pub jobs: &'a [JobId],
}

/// What a key stood for before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeldKey {
    /// The jobs of that submission.
    pub jobs: Vec<JobId>,
    /// Whether the submissions are the same.
    pub same: bool,
    /// Whether all of those jobs were stored.
    pub stored: bool,
}

impl HeldKey {
    /// Whether it stands for the submission that it was compared with, which has so many jobs.
    pub fn stands_for(&self, jobs: usize) -> bool {
        self.same && self.jobs.len() == jobs
    }
}

impl Database {
    /// Has keys, of which no two may be the same, stand for these submissions. Answers, claim by claim, what a key
    /// stood for in the last 24 h; it goes on standing for that. For one committer at a time. Fenced, and committed
    /// by itself.
    pub async fn claim_keys(
        &self,
        fence: Fence,
        claims: &[KeyClaim<'_>],
    ) -> Result<Vec<Option<HeldKey>>, StorageError> {
        let ids =
            |claim: &KeyClaim<'_>| claim.jobs.iter().map(JobId::to_string).collect::<Vec<_>>().join(",");
        let mut connection = self.for_fenced_statement().await?;
        let rows = sqlx::query!(
            r#"WITH fence AS MATERIALIZED (SELECT cortex_pass($1, $2) AS passed
               ), wanted AS (
                   SELECT w.* FROM fence, unnest(CASE WHEN passed THEN $3::text[] END, $4::text[], $5::bytea[], $6::text[])
                       WITH ORDINALITY AS w (scope, key, fingerprint, job_ids, ordinal)
               ), claimed AS (
                   -- Arrays of arrays would all have to be of one length.
                   INSERT INTO idempotency_keys AS k (scope, key, fingerprint, job_ids, created_at)
                   SELECT scope, key, fingerprint, string_to_array(job_ids, ',')::uuid[], clock_timestamp() FROM wanted
                   ON CONFLICT (scope, key) DO UPDATE SET fingerprint = EXCLUDED.fingerprint,
                       job_ids = EXCLUDED.job_ids, created_at = EXCLUDED.created_at
                   WHERE k.created_at < now() - interval '24 hours'
                   RETURNING scope, key
               )
               SELECT w.ordinal AS "ordinal!", k.job_ids AS "job_ids!", k.fingerprint = w.fingerprint AS "same!",
                   (SELECT count(*) FROM jobs WHERE id = ANY(k.job_ids)) = cardinality(k.job_ids) AS "stored!"
               FROM wanted w JOIN idempotency_keys k USING (scope, key)
               WHERE NOT EXISTS (SELECT FROM claimed c WHERE c.scope = w.scope AND c.key = w.key)"#,
            fence.cluster_id.0,
            fence.epoch.0,
            &claims.iter().map(|claim| claim.key.scope.as_str()).collect::<Vec<_>>() as _,
            &claims.iter().map(|claim| claim.key.key.as_str()).collect::<Vec<_>>() as _,
            &claims.iter().map(|claim| claim.fingerprint).collect::<Vec<_>>() as _,
            &claims.iter().map(ids).collect::<Vec<_>>(),
        )
        .fetch_all(&mut connection)
        .await
        .map_err(StorageError::of_commit)?;
        let jobs = |ids: Vec<Uuid>| ids.into_iter().map(JobId).collect();
        let mut held: HashMap<i64, HeldKey> = rows
            .into_iter()
            .map(|row| (row.ordinal, HeldKey { jobs: jobs(row.job_ids), same: row.same, stored: row.stored }))
            .collect();
        Ok((1..).zip(claims).map(|(ordinal, _)| held.remove(&ordinal)).collect())
    }
}

impl Database {
    /// What a key stands for now, if for anything.
    pub async fn held_key(
        &self,
        key: &IdempotencyKey,
        fingerprint: &[u8],
    ) -> Result<Option<HeldKey>, StorageError> {
        let row = sqlx::query!(
            r#"SELECT k.job_ids, k.fingerprint = $3 AS "same!",
                   (SELECT count(*) FROM jobs WHERE id = ANY(k.job_ids)) = cardinality(k.job_ids) AS "stored!"
               FROM idempotency_keys k
               WHERE scope = $1 AND key = $2 AND created_at >= now() - interval '24 hours'"#,
            key.scope,
            key.key,
            fingerprint,
        )
        .fetch_optional(&self.reads)
        .await?;
        Ok(row.map(|row| HeldKey {
            jobs: row.job_ids.into_iter().map(JobId).collect(),
            same: row.same,
            stored: row.stored,
        }))
    }
}

impl FencedTransaction {
    /// Forgets keys that count no more, at most `limit`. Answers how many.
    pub async fn forget_keys(&mut self, limit: i64) -> Result<u64, StorageError> {
        let gone = sqlx::query!(
            "DELETE FROM idempotency_keys WHERE ctid = ANY(ARRAY(
                 SELECT ctid FROM idempotency_keys WHERE created_at < now() - interval '24 hours'
                 ORDER BY created_at LIMIT $1 FOR UPDATE))",
            limit
        )
        .execute(self.connection()?)
        .await?;
        Ok(gone.rows_affected())
    }
}
