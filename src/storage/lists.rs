//! Pages of jobs.
//!
//! What a page costs must not depend on how large the jobs are that go before it: first the ids of a page are found,
//! in an index alone unless tags are asked for, then its jobs are read. Jobs that have not ended are few among
//! millions and are found by what only they have; completed ones are all others, less those.

use sqlx::QueryBuilder;
use sqlx::postgres::Postgres;

use super::database::Database;
use super::error::StorageError;
use super::jobs::{JobRow, SELECT_JOB};
use crate::domain::job::{Job, JobFilter, JobList, JobStats, JobStatus};

/// How many jobs beyond a page are counted where the counters do not know.
const COUNTED_BEYOND: i64 = 10_000;
/// The same where tags are asked for: each of these jobs has to be looked at.
const COUNTED_BEYOND_TAGGED: i64 = 100;
/// Where a page begins behind so many jobs, it is first counted whether there are as many.
const FAR: i64 = 100_000;
/// Most jobs under way that completed ones are told apart from without a look at them.
const FEW: i64 = 5_000;
/// The priority that the index of priorities leaves out: that of most jobs.
const DEFAULT_PRIORITY: u8 = 5;

/// Whether a job is under way. Bounded, so that the planner takes it for small enough to be hashed.
const UNDER_WAY: &str = "(SELECT id FROM jobs WHERE next_retry_at IS NOT NULL \
     UNION ALL SELECT id FROM jobs WHERE ready UNION ALL SELECT job_id FROM leases \
     UNION ALL SELECT id FROM jobs WHERE driven_until IS NOT NULL LIMIT 10000)";

/// A filter, and what else decides how its jobs are found.
struct Search<'a> {
    filter: &'a JobFilter,
    /// Few enough jobs are under way.
    few_under_way: bool,
}

impl Database {
    /// A page of jobs, newest first. `total` is exact where the counters know it (no filter, or by state alone), and
    /// where the page is not full; otherwise jobs are counted up to 10,000 beyond it, 100 where tags are asked for.
    pub async fn jobs(&self, filter: &JobFilter, page: i64, page_size: i64) -> Result<JobList, StorageError> {
        let offset = (page - 1).saturating_mul(page_size);
        let counted = *filter == JobFilter { status: filter.status, ..JobFilter::default() };
        let stats = match filter.status {
            Some(JobStatus::Completed) => Some(self.stats().await?),
            _ if counted => Some(self.stats().await?),
            _ => None,
        };
        let few_under_way = stats.as_ref().is_some_and(|stats| under_way(stats) <= FEW);
        let search = Search { filter, few_under_way };
        let (jobs, total) = match stats.filter(|_| counted) {
            Some(stats) => {
                let total = filter.status.map_or(stats.total_jobs, |status| of(&stats, status));
                (self.counted_page(&search, offset, page_size, total).await?, total)
            }
            None => self.page_and_total(&search, offset, page_size).await?,
        };
        Ok(JobList { jobs, total, page, page_size, pages: (total + page_size - 1) / page_size })
    }

    async fn counted_page(
        &self,
        search: &Search<'_>,
        offset: i64,
        page_size: i64,
        total: i64,
    ) -> Result<Vec<Job>, StorageError> {
        let known = search.filter.status.is_none_or(JobStatus::is_terminal);
        // The search is over with the last of them; those that are under way may be more by now.
        let limit = if known { page_size.min(total - offset) } else { page_size };
        if limit > 0 { self.page(search, offset, limit).await } else { Ok(Vec::new()) }
    }

    async fn page_and_total(
        &self,
        search: &Search<'_>,
        offset: i64,
        page_size: i64,
    ) -> Result<(Vec<Job>, i64), StorageError> {
        if offset > FAR {
            let before = self.count(search, None, offset).await?;
            if before < offset {
                return Ok((Vec::new(), before));
            }
        }
        let jobs = self.page(search, offset, page_size).await?;
        let shown = i64::try_from(jobs.len()).unwrap_or(page_size);
        let total = match jobs.last() {
            None => self.count(search, None, offset).await?,
            Some(_) if shown < page_size => offset + shown,
            Some(last) => {
                let tagged = !search.filter.tags.is_empty();
                let most = if tagged { COUNTED_BEYOND_TAGGED } else { COUNTED_BEYOND };
                offset + shown + self.count(search, Some(last), most).await?
            }
        };
        Ok((jobs, total))
    }

    async fn page(&self, search: &Search<'_>, offset: i64, limit: i64) -> Result<Vec<Job>, StorageError> {
        let mut select = QueryBuilder::new(SELECT_JOB);
        select.push(" WHERE id = ANY(ARRAY(SELECT id FROM jobs");
        search.push(&mut select);
        select.push(" ORDER BY submitted_at DESC, id DESC LIMIT ").push_bind(limit);
        select.push(" OFFSET ").push_bind(offset);
        select.push("))");
        if search.filter.status == Some(JobStatus::Completed) {
            // Should more jobs have come under way since they were counted than are told apart.
            select.push(" AND status = 'completed'");
        }
        select.push(" ORDER BY submitted_at DESC, id DESC");
        // Planned for these very values: what is best for a frequent one is worst for a rare one.
        let rows: Vec<JobRow> = select.build_query_as().persistent(false).fetch_all(&self.reads).await?;
        rows.into_iter().map(|row| row.read(&self.vault)).collect()
    }

    /// How many jobs match, of those behind `after` in the list or of all; no more than `most` are counted.
    async fn count(&self, search: &Search<'_>, after: Option<&Job>, most: i64) -> Result<i64, StorageError> {
        let mut count = QueryBuilder::new("SELECT count(*) FROM (SELECT FROM jobs");
        search.push(&mut count);
        if let Some(job) = after {
            count.push(" AND (submitted_at, id) < (").push_bind(job.submitted_at);
            count.push(", ").push_bind(job.id.0);
            count.push(") ORDER BY submitted_at DESC, id DESC");
        }
        count.push(" LIMIT ").push_bind(most).push(") counted");
        Ok(count.build_query_scalar().persistent(false).fetch_one(&self.reads).await?)
    }
}

fn under_way(stats: &JobStats) -> i64 {
    stats.pending + stats.queued + stats.assigned + stats.running
}

fn of(stats: &JobStats, status: JobStatus) -> i64 {
    match status {
        JobStatus::Pending => stats.pending,
        JobStatus::Queued => stats.queued,
        JobStatus::Assigned => stats.assigned,
        JobStatus::Running => stats.running,
        JobStatus::Completed => stats.completed,
        JobStatus::Failed => stats.failed,
        JobStatus::Cancelled => stats.cancelled,
        JobStatus::Timeout => stats.timeout,
    }
}

impl Search<'_> {
    fn push(&self, query: &mut QueryBuilder<Postgres>) {
        let filter = self.filter;
        query.push(" WHERE TRUE");
        if let Some(status) = filter.status {
            self.push_status(query, status);
        }
        if let Some(priority) = filter.priority {
            query.push(" AND priority = ").push_bind(i32::from(priority));
            if priority != DEFAULT_PRIORITY {
                query.push(" AND priority <> ").push(i32::from(DEFAULT_PRIORITY));
            }
        }
        if let Some(model) = &filter.model_name {
            query.push(" AND model_name = ").push_bind(model.clone());
        }
        if let Some(creator) = &filter.created_by {
            query.push(" AND created_by = ").push_bind(creator.clone());
        }
        if !filter.tags.is_empty() {
            query.push(" AND tags <> '{}' AND tags @> ").push_bind(sqlx::types::Json(filter.tags.clone()));
        }
    }

    /// By what a constraint, a derived column or the leases say of all jobs in a state and of few others, so that an
    /// index finds them.
    fn push_status(&self, query: &mut QueryBuilder<Postgres>, status: JobStatus) {
        let condition = match status {
            JobStatus::Pending => " AND status = 'pending' AND next_retry_at IS NOT NULL",
            JobStatus::Queued => " AND status = 'queued' AND ready",
            JobStatus::Assigned => " AND status = 'assigned' AND id = ANY(ARRAY(SELECT job_id FROM leases))",
            JobStatus::Running => {
                " AND status = 'running' AND (driven_until IS NOT NULL OR id = ANY(ARRAY(SELECT job_id FROM leases)))"
            }
            JobStatus::Completed if self.few_under_way => {
                query.push(" AND unsuccessful = '' AND id NOT IN ");
                UNDER_WAY
            }
            JobStatus::Completed => " AND status = 'completed' AND unsuccessful = ''",
            JobStatus::Failed => " AND unsuccessful = 'failed' AND unsuccessful <> ''",
            JobStatus::Cancelled => " AND unsuccessful = 'cancelled' AND unsuccessful <> ''",
            JobStatus::Timeout => " AND unsuccessful = 'timeout' AND unsuccessful <> ''",
        };
        query.push(condition);
    }
}
