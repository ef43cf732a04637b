//! Reads, answered by the replica that is asked.

use chrono::{DateTime, Utc};

use super::error::ServiceError;
use crate::domain::execution::Execution;
use crate::domain::idempotency::IdempotencyKey;
use crate::domain::ids::{JobId, WorkerId};
use crate::domain::job::{Job, JobFilter, JobList, JobStats};
use crate::domain::pause::Paused;
use crate::domain::queue::{QueueMetrics, QueueView};
use crate::domain::validate::FieldError;
use crate::domain::worker::{Worker, WorkerList, WorkerStats, WorkerStatus};
use crate::ready_queue::{QueueError, ReadyQueue};
use crate::storage::{Database, StorageError};

type Result<T> = std::result::Result<T, ServiceError>;

/// Reads from PostgreSQL, where every acknowledged write can be seen by every replica, and from Redis what only
/// the ready queue knows.
#[derive(Clone)]
pub struct Queries {
    database: Database,
    queue: ReadyQueue,
}

impl Queries {
    /// Reads from `database` and `queue`.
    pub fn new(database: Database, queue: ReadyQueue) -> Self {
        Self { database, queue }
    }

    /// One job.
    pub async fn job(&self, id: JobId) -> Result<Job> {
        self.database.job(id).await?.ok_or_else(|| ServiceError::no_job(id))
    }

    /// These jobs, in this order.
    pub async fn jobs_of(&self, ids: &[JobId]) -> Result<Vec<Job>> {
        let jobs = self.database.jobs_of(ids).await?;
        if jobs.len() == ids.len() { Ok(jobs) } else { Err(ServiceError::Internal) }
    }

    /// Whether a key stands for jobs that are stored.
    pub async fn is_settled(&self, key: &IdempotencyKey) -> Result<bool> {
        let held = self.database.held_key(key, &[]).await?;
        Ok(held.is_some_and(|held| held.stored))
    }

    /// A page of jobs, newest first. `page` counts from 1; `page_size` is 1 to 100.
    pub async fn jobs(&self, filter: &JobFilter, page: i64, page_size: i64) -> Result<JobList> {
        Ok(self.database.jobs(filter, page, page_size).await?)
    }

    /// The attempts of a job, oldest first.
    pub async fn executions(&self, id: JobId) -> Result<Vec<Execution>> {
        let executions = self.database.executions(id).await?;
        if executions.is_empty() {
            self.job(id).await?;
        }
        Ok(executions)
    }

    /// How many queued jobs go before this one, counted up to `most`.
    pub async fn ahead_of(&self, job: &Job, most: i64) -> Result<i64> {
        Ok(self.database.ahead_of(job, most).await?)
    }

    /// Jobs by state, from counters.
    pub async fn stats(&self) -> Result<JobStats> {
        Ok(self.database.stats().await?)
    }

    /// All workers, or those in one state.
    pub async fn workers(&self, status: Option<WorkerStatus>) -> Result<WorkerList> {
        Ok(self.database.workers(status).await?)
    }

    /// Workers by state, and how much of what they can run they do run.
    pub async fn worker_stats(&self) -> Result<WorkerStats> {
        Ok(self.database.worker_stats().await?)
    }

    /// One worker.
    pub async fn worker(&self, id: WorkerId) -> Result<Worker> {
        self.database.worker(id).await?.ok_or_else(|| ServiceError::no_worker(id))
    }

    /// How many jobs wait, of one priority or of all.
    pub async fn queue_depth(&self, priority: Option<u8>) -> Result<u64> {
        let depth = self.depth().await?;
        Ok(match priority {
            Some(priority) => depth.get(usize::from(priority).wrapping_sub(1)).copied().unwrap_or(0),
            None => depth.iter().sum(),
        })
    }

    /// What waits, by priority.
    pub async fn queue(&self, paused: Paused) -> Result<QueueView> {
        let (depth, waits) =
            tokio::try_join!(self.depth(), async { Ok(self.database.oldest_waits().await?) })?;
        Ok(QueueView::new(depth, waits, paused))
    }

    /// The jobs that are to be given out next, of one priority or of all, in this order.
    pub async fn queue_peek(&self, limit: usize, priority: Option<u8>) -> Result<Vec<Job>> {
        let next = self.whole(self.queue.peek(limit, priority)).await?;
        let jobs = self.database.queued_among(&next).await;
        jobs.map_err(|error| match error {
            StorageError::PageTooLarge => {
                ServiceError::Invalid(vec![FieldError::new("limit", error.to_string())])
            }
            error => error.into(),
        })
    }

    /// The series of the queue's metrics, the oldest first: what was recorded at `since` or later, or the newest.
    pub async fn queue_metrics(&self, since: Option<DateTime<Utc>>, limit: i64) -> Result<Vec<QueueMetrics>> {
        Ok(self.database.queue_metrics(since, limit).await?)
    }

    async fn depth(&self) -> Result<[u64; 10]> {
        self.whole(self.queue.depth()).await
    }

    async fn whole<T>(&self, look: impl Future<Output = std::result::Result<T, QueueError>>) -> Result<T> {
        let found = self.queue.while_whole(look).await.map_err(unavailable)?;
        found.ok_or_else(|| ServiceError::Unavailable {
            reason: "the ready queue is being rebuilt".to_owned(),
        })
    }

    /// Whether PostgreSQL answers.
    pub async fn ping(&self) -> Result<()> {
        Ok(self.database.ping().await?)
    }
}

fn unavailable(error: QueueError) -> ServiceError {
    match error {
        QueueError::Unavailable(_) | QueueError::TooOld { .. } => {
            tracing::warn!(%error, "Redis did not answer a request.");
            ServiceError::Unavailable { reason: error.to_string() }
        }
        QueueError::Fenced { .. } => ServiceError::NoLeader,
        QueueError::Protocol(_) | QueueError::Config(_) => {
            tracing::error!(%error, "Redis refused a request that should be valid.");
            ServiceError::Internal
        }
    }
}
