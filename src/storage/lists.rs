//! Pages of jobs.
//!
//! What a page costs must not depend on how large the jobs are that go before it: first the ids of a page are found,
//! then its jobs are read. Jobs that have not ended are few among millions and are found by what only they have.
//! Other filters walk from the newest job on until the page is full.

use sqlx::QueryBuilder;
use sqlx::postgres::Postgres;

use super::database::Database;
use super::error::StorageError;
use super::jobs::{JobRow, SELECT_JOB};
use crate::domain::job::{Job, JobFilter, JobList, JobStats, JobStatus};

/// How many jobs beyond a page are counted where the counters do not know.
const COUNTED_BEYOND: i64 = 10_000;

/// How many jobs match.
struct Total {
    jobs: i64,
    /// Whether the counters say so, without a look at the jobs.
    by_counters: bool,
}

impl Database {
    /// A page of jobs, newest first. `total` is exact where the counters know it (no filter, or by state alone);
    /// otherwise jobs are counted up to 10,000 beyond the end of the page: all of
    /// them where the page lies behind the last job.
    pub async fn jobs(&self, filter: &JobFilter, page: i64, page_size: i64) -> Result<JobList, StorageError> {
        let offset = (page - 1).saturating_mul(page_size);
        let total = self.count_jobs(filter, offset.saturating_add(page_size)).await?;
        let ended = filter.status.is_some_and(JobStatus::is_terminal);
        // Where few jobs have ended so, the search is over with the last of them.
        let limit = if ended || !total.by_counters { page_size.min(total.jobs - offset) } else { page_size };
        let jobs = if limit > 0 { self.page(filter, offset, limit).await? } else { Vec::new() };
        let total = total.jobs;
        Ok(JobList { jobs, total, page, page_size, pages: (total + page_size - 1) / page_size })
    }

    async fn page(&self, filter: &JobFilter, offset: i64, limit: i64) -> Result<Vec<Job>, StorageError> {
        let mut select = QueryBuilder::new(SELECT_JOB);
        select.push(" WHERE id = ANY(ARRAY(SELECT id FROM jobs");
        push_filter(&mut select, filter);
        select.push(" ORDER BY submitted_at DESC, id DESC LIMIT ").push_bind(limit);
        select.push(" OFFSET ").push_bind(offset);
        select.push(")) ORDER BY submitted_at DESC, id DESC");
        let rows: Vec<JobRow> = select.build_query_as().fetch_all(&self.reads).await?;
        rows.into_iter().map(|row| row.read(&self.vault)).collect()
    }

    async fn count_jobs(&self, filter: &JobFilter, until: i64) -> Result<Total, StorageError> {
        let by_status = JobFilter { status: filter.status, ..JobFilter::default() };
        if *filter == by_status {
            let stats = self.stats().await?;
            let jobs = filter.status.map_or(stats.total_jobs, |status| of(&stats, status));
            return Ok(Total { jobs, by_counters: true });
        }
        let mut count = QueryBuilder::new("SELECT count(*) FROM (SELECT FROM jobs");
        push_filter(&mut count, filter);
        count.push(" LIMIT ").push_bind(until.saturating_add(COUNTED_BEYOND)).push(") counted");
        let jobs = count.build_query_scalar().fetch_one(&self.reads).await?;
        Ok(Total { jobs, by_counters: false })
    }
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

fn push_filter(query: &mut QueryBuilder<Postgres>, filter: &JobFilter) {
    query.push(" WHERE TRUE");
    if let Some(status) = filter.status {
        query.push(" AND status = ").push_bind(status.as_str());
        query.push(by_small_index(status));
    }
    if let Some(priority) = filter.priority {
        query.push(" AND priority = ").push_bind(i32::from(priority));
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

/// What a constraint, or the leases, say of all jobs in a state and of few others, so that an index finds them.
fn by_small_index(status: JobStatus) -> &'static str {
    match status {
        JobStatus::Pending => " AND next_retry_at IS NOT NULL",
        JobStatus::Queued => " AND ready",
        JobStatus::Assigned => " AND id = ANY(ARRAY(SELECT job_id FROM leases))",
        JobStatus::Running => " AND (driven_until IS NOT NULL OR id = ANY(ARRAY(SELECT job_id FROM leases)))",
        JobStatus::Completed | JobStatus::Failed | JobStatus::Cancelled | JobStatus::Timeout => "",
    }
}
