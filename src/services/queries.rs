//! Reads, answered by the replica that is asked.

use super::error::ServiceError;
use crate::domain::execution::Execution;
use crate::domain::ids::{JobId, WorkerId};
use crate::domain::job::{Job, JobFilter, JobList, JobStats};
use crate::domain::worker::{Worker, WorkerList, WorkerStats, WorkerStatus};
use crate::storage::Database;

type Result<T> = std::result::Result<T, ServiceError>;

/// Reads from PostgreSQL, where every acknowledged write can be seen by every replica.
#[derive(Clone)]
pub struct Queries {
    database: Database,
}

impl Queries {
    /// Reads from `database`.
    pub fn new(database: Database) -> Self {
        Self { database }
    }

    /// One job.
    pub async fn job(&self, id: JobId) -> Result<Job> {
        self.database.job(id).await?.ok_or_else(|| ServiceError::no_job(id))
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

    /// Whether PostgreSQL answers.
    pub async fn ping(&self) -> Result<()> {
        Ok(self.database.ping().await?)
    }
}
