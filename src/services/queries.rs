//! Reads, answered by the replica that is asked.

use super::error::ServiceError;
use crate::domain::execution::Execution;
use crate::domain::ids::{JobId, WorkerId};
use crate::domain::job::{Job, JobFilter, JobList, JobStats};
use crate::domain::worker::{Worker, WorkerList, WorkerStatus};
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

    /// These jobs, in this order.
    pub async fn jobs_of(&self, ids: &[JobId]) -> Result<Vec<Job>> {
        let jobs = self.database.jobs_of(ids).await?;
        if jobs.len() == ids.len() { Ok(jobs) } else { Err(ServiceError::Internal) }
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

    /// One worker.
    pub async fn worker(&self, id: WorkerId) -> Result<Worker> {
        self.database.worker(id).await?.ok_or_else(|| ServiceError::no_worker(id))
    }

    /// Whether PostgreSQL answers.
    pub async fn ping(&self) -> Result<()> {
        Ok(self.database.ping().await?)
    }
}
