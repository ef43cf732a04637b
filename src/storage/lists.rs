//! Pages of jobs.
//!
//! What a page costs must not depend on how large the jobs are that go before it: first the ids of a page are found,
//! in indexes alone, then its jobs are read. Jobs that have not ended are few among millions and are found by what only
//! they have; completed ones are all others, less those. Tags have a table in the order of lists, which finds the jobs of
//! a rare one; those of a frequent one, where something else is asked for, are found by that, in whose index the tags stand.

use futures::TryStreamExt;
use sqlx::postgres::Postgres;
use sqlx::{AssertSqlSafe, Connection, Either, QueryBuilder, Row};
use uuid::Uuid;

use super::database::Database;
use super::error::StorageError;
use super::jobs::{JobRow, SELECT_JOB};
use super::tags::{short, tag_id};
use crate::domain::job::{JobFilter, JobList, JobStats, JobStatus};

/// How many jobs beyond a page are counted where the counters do not know.
const COUNTED_BEYOND: i64 = 10_000;
/// The same where more than one thing is asked for: to find those that have all, others are passed.
const COUNTED_BEYOND_OF_SEVERAL: i64 = 1_000;
/// Most jobs under way that completed ones are told apart from without a look at them.
const FEW: i64 = 5_000;
/// Most jobs that ended otherwise that completed ones of a tag are told apart from in the same way: all of them are read.
const FEW_UNSUCCESSFUL: i64 = 50_000;
/// The priority that the index of priorities leaves out: that of most jobs.
const DEFAULT_PRIORITY: u8 = 5;
/// Most tags that are looked for in the table of tags; of more, the rarest are, and jobs that have these are looked at.
const JOINED_TAGS: usize = 3;
/// Jobs of a tag that are counted to find out which tags are rare. One with so many is not.
const RARE: i64 = 10_000;
/// The furthest that a cursor is moved.
const FURTHEST: i64 = i32::MAX as i64;

/// The jobs that are under way. Bounded, so that the planner takes them for few enough to be hashed.
const UNDER_WAY: &str = "(SELECT id FROM jobs WHERE next_retry_at IS NOT NULL \
     UNION ALL SELECT id FROM jobs WHERE ready UNION ALL SELECT job_id FROM leases \
     UNION ALL SELECT id FROM jobs WHERE driven_until IS NOT NULL LIMIT 10000)";

/// A filter, and what else decides how its jobs are found.
struct Search<'a> {
    filter: &'a JobFilter,
    /// How many jobs are under way, where completed ones are asked for.
    under_way: i64,
    /// How many ended otherwise, where completed ones are asked for.
    unsuccessful: i64,
    /// The tags that are looked for in their table.
    joined_tags: Vec<Uuid>,
}

impl Database {
    /// A page of jobs, newest first. `total` is exact where the counters know it (no filter, or by state alone), and
    /// where the page is not full; otherwise jobs are counted up to 10,000 beyond it, 1,000 where more than one thing
    /// is asked for.
    pub async fn jobs(&self, filter: &JobFilter, page: i64, page_size: i64) -> Result<JobList, StorageError> {
        let offset = (page - 1).saturating_mul(page_size);
        let counted = *filter == JobFilter { status: filter.status, ..JobFilter::default() };
        let stats = match filter.status {
            Some(JobStatus::Completed) => Some(self.stats().await?),
            _ if counted => Some(self.stats().await?),
            _ => None,
        };
        let mut search = Search {
            filter,
            under_way: stats.as_ref().map_or(0, under_way),
            unsuccessful: stats.as_ref().map_or(0, |stats| stats.failed + stats.cancelled + stats.timeout),
            joined_tags: self.tags_to_join(filter).await?,
        };
        let stats = stats.filter(|_| counted);
        let (rows, total) = loop {
            let (ids, total) = match &stats {
                Some(stats) => {
                    let total = filter.status.map_or(stats.total_jobs, |status| of(stats, status));
                    // The search is over with the last of them; those that are under way may be more by now.
                    let known = filter.status.is_none_or(JobStatus::is_terminal);
                    let limit = if known { page_size.min(total - offset) } else { page_size };
                    (self.page(&search, offset, limit).await?, total)
                }
                None => self.page_and_total(&search, offset, page_size).await?,
            };
            let found = ids.len();
            let rows = self.listed(filter, ids).await?;
            // Jobs have come under way since they were counted, or old ones have gone.
            if rows.len() == found || search.under_way > 0 {
                break (rows, total);
            }
            search.under_way = 1;
        };
        let jobs = rows.into_iter().map(|row| row.read(&self.vault)).collect::<Result<_, _>>()?;
        Ok(JobList { jobs, total, page, page_size, pages: (total + page_size - 1) / page_size })
    }

    /// The jobs of a page, but for those that it is not about after all.
    async fn listed(&self, filter: &JobFilter, ids: Vec<Uuid>) -> Result<Vec<JobRow>, StorageError> {
        let mut select = QueryBuilder::new(SELECT_JOB);
        select.push(" WHERE id = ANY(").push_bind(ids).push(")");
        if filter.status == Some(JobStatus::Completed) {
            // Should more jobs have come under way since they were counted than are told apart.
            select.push(" AND status = 'completed'");
        }
        if !filter.tags.is_empty() {
            // Two tags may have the same short name.
            select.push(" AND tags @> ").push_bind(sqlx::types::Json(filter.tags.clone()));
        }
        select.push(" ORDER BY submitted_at DESC, id DESC");
        self.page_rows(select).await
    }

    async fn page(&self, search: &Search<'_>, offset: i64, limit: i64) -> Result<Vec<Uuid>, StorageError> {
        if limit <= 0 {
            return Ok(Vec::new());
        }
        let mut select = QueryBuilder::new("");
        search.push(&mut select);
        select.push(" LIMIT ").push_bind(limit).push(" OFFSET ").push_bind(offset);
        // Planned for these very values: what is best for a frequent one is worst for a rare one.
        Ok(select.build_query_scalar().persistent(false).fetch_all(&self.reads).await?)
    }

    /// The ids of a page, and how many jobs there are before it, in it, and beyond it as far as they are counted:
    /// in one go, so that none is looked for twice.
    async fn page_and_total(
        &self,
        search: &Search<'_>,
        offset: i64,
        page_size: i64,
    ) -> Result<(Vec<Uuid>, i64), StorageError> {
        let most = search.counted_beyond();
        let mut declare = QueryBuilder::new("DECLARE list NO SCROLL CURSOR FOR ");
        search.push(&mut declare);
        declare.push(" LIMIT ").push_bind(offset.saturating_add(page_size + most));
        let walk = match offset {
            0 => format!("FETCH {page_size} FROM list; MOVE {most} IN list"),
            1..=FURTHEST => {
                format!("MOVE {offset} IN list; FETCH {page_size} FROM list; MOVE {most} IN list")
            }
            _ => "MOVE ALL IN list".to_owned(),
        };
        let mut connection = self.reads.acquire().await?;
        let begin = self.reads.opening("BEGIN READ ONLY");
        // Dropping it ends it: there is nothing to commit.
        let mut transaction = connection.begin_with(AssertSqlSafe(begin)).await?;
        // Planned for these very values, as above.
        declare.build().persistent(false).execute(self.reads.session(&mut transaction)).await?;
        let (mut ids, mut total) = (Vec::new(), 0);
        let mut steps = sqlx::raw_sql(AssertSqlSafe(walk)).fetch_many(&mut *transaction);
        while let Some(step) = steps.try_next().await? {
            match step {
                Either::Left(passed) => total += passed.rows_affected(),
                Either::Right(row) => ids.push(row.try_get(0)?),
            }
        }
        Ok((ids, total.cast_signed()))
    }

    /// All tags of a filter if they are few, otherwise the rarest; none if all are frequent and another index has them.
    async fn tags_to_join(&self, filter: &JobFilter) -> Result<Vec<Uuid>, StorageError> {
        let tags: Vec<Uuid> = filter.tags.iter().map(|(key, value)| tag_id(key, value)).collect();
        let elsewhere = has_an_index_with_tags(filter);
        if tags.is_empty() || tags.len() <= JOINED_TAGS && !elsewhere {
            return Ok(tags);
        }
        let found = sqlx::query!(
            r#"SELECT asked AS "tag!",
                   (SELECT count(*) FROM (SELECT FROM job_tags WHERE tag = asked LIMIT $2) found) AS "jobs!"
               FROM unnest($1::uuid[]) AS asked ORDER BY 2"#,
            &tags,
            RARE,
        )
        .fetch_all(&self.reads)
        .await?;
        let wanted = found.into_iter().filter(|row| !elsewhere || row.jobs < RARE);
        Ok(wanted.take(JOINED_TAGS).map(|row| row.tag).collect())
    }
}

fn under_way(stats: &JobStats) -> i64 {
    stats.pending + stats.queued + stats.assigned + stats.running
}

/// Whether something is asked for that has an index in which the tags stand.
fn has_an_index_with_tags(filter: &JobFilter) -> bool {
    use JobStatus::{Cancelled, Failed, Timeout};
    filter.model_name.is_some()
        || filter.created_by.is_some()
        || filter.priority.is_some_and(|priority| priority != DEFAULT_PRIORITY)
        || matches!(filter.status, Some(Failed | Cancelled | Timeout))
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
    fn counted_beyond(&self) -> i64 {
        let JobFilter { status, priority, model_name, created_by, tags } = self.filter;
        let fields = [status.is_some(), priority.is_some(), model_name.is_some(), created_by.is_some()]
            .map(usize::from);
        let asked_for = fields.iter().sum::<usize>() + tags.len();
        if asked_for > 1 { COUNTED_BEYOND_OF_SEVERAL } else { COUNTED_BEYOND }
    }

    /// Selects the ids of the list in its order.
    fn push(&self, query: &mut QueryBuilder<Postgres>) {
        let every_tag = self.joined_tags.len() == self.filter.tags.len();
        let (mut time, mut id) = ("jobs.submitted_at".to_owned(), "jobs.id".to_owned());
        if self.joined_tags.is_empty() {
            query.push("SELECT id FROM jobs");
        } else {
            (time, id) = ("tag_0.submitted_at".to_owned(), "tag_0.job_id".to_owned());
            query.push("SELECT tag_0.job_id FROM job_tags tag_0");
            let mut join = |table: &str, name: &str, column: &str| {
                // The id as a range: who takes it for independent of the time expects but one job, and walks all.
                query.push(format!(
                    " JOIN {table} {name} ON {name}.submitted_at = {time} AND {name}.{column} BETWEEN {id} AND {id}"
                ));
            };
            for number in 1..self.joined_tags.len() {
                join("job_tags", &format!("tag_{number}"), "job_id");
            }
            if !every_tag || !self.is_answered_by_tags() {
                join("jobs", "jobs", "id");
            }
        }
        query.push(" WHERE TRUE");
        for (number, tag) in self.joined_tags.iter().enumerate() {
            query.push(format!(" AND tag_{number}.tag = ")).push_bind(*tag);
        }
        if !every_tag {
            self.push_short_tags(query, usize::MAX);
        }
        if self.is_answered_by_tags() {
            self.push_completed_by_tags(query, &time, &id);
        } else {
            self.push_fields(query);
        }
        query.push(format!(" ORDER BY {time} DESC, {id} DESC"));
    }

    /// Whether the tables of tags and of ids say all that is asked for.
    fn is_answered_by_tags(&self) -> bool {
        let JobFilter { status, tags, .. } = self.filter;
        let few = self.under_way <= FEW && self.unsuccessful <= FEW_UNSUCCESSFUL;
        let completed = few && *status == Some(JobStatus::Completed);
        let by_tags_alone = JobFilter { status: *status, tags: tags.clone(), ..JobFilter::default() };
        !self.joined_tags.is_empty() && *self.filter == by_tags_alone && (status.is_none() || completed)
    }

    /// Completed jobs are all but those that ended otherwise, which are read whole and merged along the time, and those under
    /// way.
    fn push_completed_by_tags(&self, query: &mut QueryBuilder<Postgres>, time: &str, id: &str) {
        if self.filter.status.is_some() {
            query.push(
                " AND NOT EXISTS (SELECT FROM (SELECT submitted_at, id FROM jobs WHERE unsuccessful <> ''",
            );
            // One tag makes them fewer; with more, the planner would expect hardly any.
            self.push_short_tags(query, 1);
            // Without an offset each job would be looked up, which for those before a deep page takes longer.
            query.push(format!(
                " OFFSET 0) other \
                 WHERE other.submitted_at = {time} AND other.id = {id})"
            ));
            self.push_not_under_way(query, id);
        }
    }

    fn push_not_under_way(&self, query: &mut QueryBuilder<Postgres>, id: &str) {
        if self.under_way > 0 {
            query.push(format!(" AND {id} NOT IN {UNDER_WAY}"));
        }
    }

    /// So many of the tags, as they stand in the indexes of other things.
    fn push_short_tags(&self, query: &mut QueryBuilder<Postgres>, most: usize) {
        for (key, value) in self.filter.tags.iter().take(most) {
            query.push(" AND ").push_bind(short(tag_id(key, value))).push(" = ANY(short_tags)");
        }
    }

    fn push_fields(&self, query: &mut QueryBuilder<Postgres>) {
        let filter = self.filter;
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
        if let Some(status) = filter.status {
            self.push_status(query, status);
        }
    }

    /// By what a constraint, a derived column or the leases say of all jobs in a state and of few others, so that an
    /// index finds them.
    fn push_status(&self, query: &mut QueryBuilder<Postgres>, status: JobStatus) {
        let condition = match status {
            JobStatus::Pending => " AND status = 'pending' AND next_retry_at IS NOT NULL",
            JobStatus::Queued => " AND status = 'queued' AND ready",
            JobStatus::Assigned => {
                " AND status = 'assigned' AND jobs.id = ANY(ARRAY(SELECT job_id FROM leases))"
            }
            JobStatus::Running => {
                " AND status = 'running' AND (driven_until IS NOT NULL OR id = ANY(ARRAY(SELECT job_id FROM leases)))"
            }
            JobStatus::Completed if self.under_way <= FEW => {
                query.push(" AND unsuccessful = ''");
                return self.push_not_under_way(query, "id");
            }
            JobStatus::Completed => " AND status = 'completed' AND unsuccessful = ''",
            JobStatus::Failed => " AND unsuccessful = 'failed' AND unsuccessful <> ''",
            JobStatus::Cancelled => " AND unsuccessful = 'cancelled' AND unsuccessful <> ''",
            JobStatus::Timeout => " AND unsuccessful = 'timeout' AND unsuccessful <> ''",
        };
        query.push(condition);
    }
}
