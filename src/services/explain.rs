//! Why a job is where it is: the job and its place from PostgreSQL, who could take it from the leader.

use serde_json::{Map, Value};

use super::command::{Answer, Command};
use super::error::ServiceError;
use super::facade::Services;
use crate::domain::explain::{Explanation, Outlook, Position};
use crate::domain::ids::JobId;
use crate::domain::job::{Job, JobStatus};
use crate::domain::matching::Shape;
use crate::domain::validate::Validator;

/// Most jobs ahead of one that are counted.
const MOST_AHEAD: i64 = 10_000;

impl Services {
    /// Explains a job. While nobody leads, the explanation says so.
    pub async fn explain_job(&self, id: JobId) -> Result<Explanation, ServiceError> {
        let job = self.queries.job(id).await?;
        let attempts = self.queries.executions(id).await?;
        let queue = match job.status {
            JobStatus::Queued => Some(self.position(&job).await?),
            _ => None,
        };
        let outlook = match job.status {
            JobStatus::Pending | JobStatus::Queued => self.outlook(&job).await?,
            _ => None,
        };
        Ok(Explanation::of(&job, attempts, queue, outlook, self.ambient.now()))
    }

    async fn position(&self, job: &Job) -> Result<Position, ServiceError> {
        let ahead = self.queries.ahead_of(job, MOST_AHEAD + 1).await?;
        Ok(Position { ahead: ahead.min(MOST_AHEAD), at_least: ahead > MOST_AHEAD })
    }

    async fn outlook(&self, job: &Job) -> Result<Option<Outlook>, ServiceError> {
        let metadata: Map<String, Value> = serde_json::from_str(job.metadata.as_str()).unwrap_or_default();
        let shape = Shape::of_job(&job.model_name, &metadata, &mut Validator::default());
        match self.execute(Command::Outlook(shape)).await {
            Ok(Answer::Outlook(outlook)) => Ok(Some(outlook)),
            Ok(_) => Err(ServiceError::Internal),
            Err(error) if error.retryable() => Ok(None),
            Err(error) => Err(error),
        }
    }
}
