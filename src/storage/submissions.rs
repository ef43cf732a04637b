//! Storing submissions, many in one statement.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

use chrono::{DateTime, TimeDelta, Utc};
use sqlx::error::DatabaseError;
use uuid::Uuid;

use super::assignments::Claim;
use super::database::Database;
use super::error::StorageError;
use super::fence::Fence;
use super::tags::{short, tag_ids};
use crate::domain::ids::{JobId, WorkerId};
use crate::domain::job::{MAX_TAGS, NewJob};
use crate::domain::payload::Payload;
use crate::domain::trace::TraceContext;
use crate::security::Column;

/// The constraint that a second job of the same id breaks, as PostgreSQL has named it.
const ONE_JOB_OF_AN_ID: &str = "jobs_pkey";

/// Why jobs were not stored.
enum Refused {
    /// One of them is there already. Nothing was done.
    Known(sqlx::Error),
    Failed(StorageError),
}

/// A job to store, and the lease under which a worker takes it at once, if one does.
#[derive(Debug, Clone, Copy)]
pub struct Insertion<'a> {
    /// The job.
    pub job: &'a NewJob,
    /// Who takes it, under which lease; nobody where it has a time to wait for.
    pub claim: Option<Claim>,
    /// The trace that it belongs to.
    pub trace: Option<&'a TraceContext>,
}

/// What became of an [`Insertion`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inserted {
    /// When the job was first stored.
    pub submitted_at: DateTime<Utc>,
    /// Whether that was now; if not, nothing was changed and no lease was granted.
    pub new: bool,
    /// Who holds the job since its submission.
    pub assigned_to: Option<WorkerId>,
}

impl Database {
    /// Stores jobs, at least one, all or none: as `assigned` where a worker takes them, as `pending` where they have
    /// a time to wait for, and as `queued` otherwise.
    /// A job whose id is there already is left alone, so a submission that is sent twice is stored once. Answers
    /// in the order of the jobs. Until its worker says that it runs, a lease is good for `fetch_seconds` beyond
    /// the job's timeout. Fenced, and committed by itself.
    pub async fn insert_jobs(
        &self,
        fence: Fence,
        slot: i16,
        jobs: &[Insertion<'_>],
        fetch_seconds: i32,
    ) -> Result<Vec<Inserted>, StorageError> {
        match self.insert_new_jobs(fence, slot, jobs, fetch_seconds).await {
            Ok(first) => Ok(all_new(jobs, first).collect()),
            Err(Refused::Known(_)) => self.insert_missing_jobs(fence, slot, jobs, fetch_seconds).await,
            Err(Refused::Failed(error)) => Err(error),
        }
    }

    /// The slow way, for when some jobs are there already.
    async fn insert_missing_jobs(
        &self,
        fence: Fence,
        slot: i16,
        jobs: &[Insertion<'_>],
        fetch_seconds: i32,
    ) -> Result<Vec<Inserted>, StorageError> {
        let mut stored = self.stored_jobs(jobs).await?;
        let mut known: HashSet<JobId> = stored.keys().copied().collect();
        let missing: Vec<Insertion<'_>> =
            jobs.iter().filter(|row| known.insert(row.job.id)).copied().collect();
        if !missing.is_empty() {
            let first = match self.insert_new_jobs(fence, slot, &missing, fetch_seconds).await {
                Ok(first) => first,
                // Another transaction was faster; next time its job is known.
                Err(Refused::Known(error)) => return Err(StorageError::Unavailable(error)),
                Err(Refused::Failed(error)) => return Err(error),
            };
            stored.extend(missing.iter().map(|row| row.job.id).zip(all_new(&missing, first)));
        }
        let answer = |row: &Insertion<'_>| {
            let job = stored.get_mut(&row.job.id)?;
            let answer = *job;
            // Another copy of it in the same batch.
            job.new = false;
            Some(answer)
        };
        Ok(jobs.iter().filter_map(answer).collect())
    }

    /// Stores jobs none of which may be there, and answers when the first of them was stored; each is dated a
    /// microsecond after the one before it, so that the order in which they came is kept.
    #[expect(clippy::too_many_lines, reason = "one statement, and what is bound to it")]
    async fn insert_new_jobs(
        &self,
        fence: Fence,
        slot: i16,
        jobs: &[Insertion<'_>],
        fetch_seconds: i32,
    ) -> Result<DateTime<Utc>, Refused> {
        let column = Columns(jobs);
        let tags = column.tags();
        let inputs = self.sealed_inputs(jobs).map_err(Refused::Failed)?;
        let mut connection = self.for_fenced_statement().await.map_err(Refused::Failed)?;
        let first = sqlx::query_scalar!(
            r#"WITH fence AS MATERIALIZED (SELECT cortex_pass($18, $19) AS passed, clock_timestamp() AS moment
               ), submission AS (
                   SELECT s.*, fence.moment + s.ordinal * interval '1 microsecond' AS at
                   FROM fence,
                       unnest(CASE WHEN passed THEN $2::uuid[] END, $3::text[], $4::text[], $5::text[], $6::int[], $7::int[],
                               $8::int[], $9::text[], $10::text[], $11::text[], $12::text[], $13::uuid[],
                               $14::uuid[], $20::timestamptz[], $21::text[], $25::text[]) WITH ORDINALITY
                       AS s (id, name, model_name, model_version, priority, max_retries, timeout_seconds,
                             input_data, tags, metadata, created_by, lease_id, worker_id, run_at, trace, short_tags,
                             ordinal)
               ), stored AS (
                   INSERT INTO jobs (id, name, model_name, model_version, status, priority, max_retries,
                       timeout_seconds, input_data, tags, metadata, created_by, submitted_at, queued_at,
                       created_at, updated_at, assigned_worker_id, assigned_at, lease_id, lease_expires_at,
                       queue_wait_time_ms, next_retry_at, trace_context, short_tags)
                   SELECT id, name, model_name, model_version,
                       CASE WHEN lease_id IS NOT NULL THEN 'assigned' WHEN run_at IS NOT NULL THEN 'pending'
                           ELSE 'queued' END, priority, max_retries,
                       timeout_seconds, input_data::jsonb, coalesce(tags::jsonb, '{}'),
                       coalesce(metadata::jsonb, '{}'), created_by, at, CASE WHEN run_at IS NULL THEN at END, at, at,
                       worker_id,
                       CASE WHEN lease_id IS NOT NULL THEN at END, lease_id,
                       CASE WHEN lease_id IS NOT NULL
                           THEN at + make_interval(secs => timeout_seconds + $16::int) END,
                       CASE WHEN lease_id IS NOT NULL THEN 0 END, run_at, trace, short_tags::bigint[]
                   FROM submission
                   RETURNING id, submitted_at, lease_id, assigned_worker_id, lease_expires_at, next_retry_at
               ), tagged AS (
                   INSERT INTO job_tags (tag, submitted_at, job_id)
                   SELECT t.tag, fence.moment + t.ordinal * interval '1 microsecond', t.job_id
                   FROM fence, unnest(CASE WHEN passed THEN $22::uuid[] END, $23::uuid[], $24::bigint[])
                       AS t (tag, job_id, ordinal)
               ), leased AS (
                   INSERT INTO executions (id, job_id, worker_id, attempt_number, status, started_at,
                       lease_expires_at, delivery_id, delivered_at, created_at)
                   SELECT lease_id, id, assigned_worker_id, 1, 'started', submitted_at, lease_expires_at,
                       delivery_id, CASE WHEN delivery_id IS NOT NULL THEN submitted_at END, submitted_at
                   FROM (SELECT *, CASE WHEN $17::bool
                             THEN ($15::uuid[])[array_position($13::uuid[], lease_id)] END AS delivery_id
                         FROM stored WHERE lease_id IS NOT NULL) s
                   RETURNING job_id, id
               ), live AS (INSERT INTO leases (job_id, id) SELECT job_id, id FROM leased
               ), counts AS (
                   SELECT count(*) AS all_jobs, count(lease_id) AS assigned, count(next_retry_at) AS pending,
                       min(submitted_at) AS first
                   FROM stored
               ), counted AS (
                   UPDATE job_counters SET queued = queued + c.all_jobs - c.assigned - c.pending,
                       pending = job_counters.pending + c.pending, assigned = job_counters.assigned + c.assigned, waits = waits + c.assigned
                   FROM counts c WHERE slot = $1
               )
               SELECT first AS "first!" FROM counts"#,
            slot,
            &column.of(|job| job.id.0),
            &column.of(|job| job.name.as_str()) as _,
            &column.of(|job| job.model_name.as_str()) as _,
            &column.of(|job| job.model_version.as_str()) as _,
            &column.of(|job| i32::from(job.priority)),
            &column.of(|job| job.max_retries.cast_signed()),
            &column.of(|job| job.timeout_seconds.cast_signed()),
            &inputs.iter().map(Cow::as_ref).collect::<Vec<&str>>() as _,
            &column.of(|job| unless_empty(&job.tags)) as _,
            &column.of(|job| unless_empty(&job.metadata)) as _,
            &column.of(|job| job.created_by.as_deref()) as _,
            &column.of_claim(|claim| Some(claim.lease.0)) as _,
            &column.of_claim(|claim| Some(claim.worker_id.0)) as _,
            &column.of_claim(|claim| claim.delivery.map(|delivery| delivery.0)) as _,
            fetch_seconds,
            jobs.iter().any(|row| row.claim.is_some_and(|claim| claim.delivery.is_some())),
            fence.cluster_id.0,
            fence.epoch.0,
            &column.of_run_at() as _,
            &column.of_trace() as _,
            &tags.ids,
            &tags.jobs,
            &tags.ordinals,
            &tags.short as _,
        )
        .fetch_one(&mut connection)
        .await;
        first.map_err(refused)
    }

    fn sealed_inputs<'a>(&self, jobs: &[Insertion<'a>]) -> Result<Vec<Cow<'a, str>>, StorageError> {
        let seal = |row: &Insertion<'a>| {
            let (id, input) = (row.job.id.0, row.job.input_data.as_str());
            Ok(self.vault.seal_json(id, Column::InputData, input)?)
        };
        jobs.iter().map(seal).collect()
    }

    /// Those of the jobs that are there, as they were stored.
    async fn stored_jobs(&self, jobs: &[Insertion<'_>]) -> Result<HashMap<JobId, Inserted>, StorageError> {
        let rows = sqlx::query!(
            r#"SELECT id, submitted_at,
                   CASE WHEN status = 'assigned' AND retry_count = 0 THEN assigned_worker_id END AS worker
               FROM jobs WHERE id = ANY($1)"#,
            &Columns(jobs).of(|job| job.id.0),
        )
        .fetch_all(&self.writes)
        .await?;
        let stored = |submitted_at, worker: Option<Uuid>| Inserted {
            submitted_at,
            new: false,
            assigned_to: worker.map(WorkerId),
        };
        Ok(rows.into_iter().map(|row| (JobId(row.id), stored(row.submitted_at, row.worker))).collect())
    }
}

/// Why a statement stored nothing.
fn refused(error: sqlx::Error) -> Refused {
    match error.as_database_error().and_then(DatabaseError::constraint) {
        Some(ONE_JOB_OF_AN_ID) => Refused::Known(error),
        _ => Refused::Failed(StorageError::of_commit(error)),
    }
}

/// All were new: each was stored a microsecond after the one before it.
fn all_new(jobs: &[Insertion<'_>], first: DateTime<Utc>) -> impl Iterator<Item = Inserted> {
    (0..).zip(jobs).map(move |(index, row)| Inserted {
        submitted_at: first + TimeDelta::microseconds(index),
        new: true,
        assigned_to: row.claim.map(|claim| claim.worker_id),
    })
}

/// Most jobs have no tags and no metadata: then there is nothing to be sent and read again.
fn unless_empty(payload: &Payload) -> Option<&str> {
    (payload.as_str() != "{}").then_some(payload.as_str())
}

/// The rows of the jobs' tags, column by column.
#[derive(Default)]
struct Tags {
    ids: Vec<Uuid>,
    jobs: Vec<Uuid>,
    /// The jobs' places, from 1.
    ordinals: Vec<i64>,
    /// For each job an array of their short names, as PostgreSQL writes one. Up to the last that has tags: what is missing
    /// stands for nulls.
    short: Vec<Option<String>>,
}

/// The rows to store, column by column; nothing of the jobs is copied that can be borrowed.
struct Columns<'a>(&'a [Insertion<'a>]);

impl<'a> Columns<'a> {
    fn of<C>(&self, value: impl Fn(&'a NewJob) -> C) -> Vec<C> {
        self.0.iter().map(|row| value(row.job)).collect()
    }

    /// Shorter than the other columns, which stands for nulls, where no job has a time to wait for.
    fn of_run_at(&self) -> Vec<Option<DateTime<Utc>>> {
        if self.0.iter().any(|row| row.job.run_at.is_some()) { self.of(|job| job.run_at) } else { Vec::new() }
    }

    /// Shorter than the other columns, too, where no job is traced.
    fn of_trace(&self) -> Vec<Option<String>> {
        let traced = self.0.iter().any(|row| row.trace.is_some());
        let rows = self.0.iter().filter(|_| traced);
        rows.map(|row| row.trace.map(TraceContext::to_text)).collect()
    }

    fn tags(&self) -> Tags {
        let mut tags = Tags::default();
        for (place, (ordinal, row)) in (1..).zip(self.0).enumerate() {
            let ids = tag_ids(&row.job.tags);
            if !ids.is_empty() {
                // A follower of an older version may let more through than have room in an index.
                let names: Vec<String> = ids.iter().take(MAX_TAGS).map(|id| short(*id).to_string()).collect();
                tags.short.resize(place, None);
                tags.short.push(Some(format!("{{{}}}", names.join(","))));
            }
            for id in ids {
                tags.ids.push(id);
                tags.jobs.push(row.job.id.0);
                tags.ordinals.push(ordinal);
            }
        }
        tags
    }

    fn of_claim<C>(&self, value: impl Fn(Claim) -> Option<C>) -> Vec<Option<C>> {
        self.0.iter().map(|row| value(row.claim?)).collect()
    }
}
