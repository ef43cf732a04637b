//! Storing submissions, hundreds in one transaction.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use chrono::{DateTime, Utc};
use prometheus::Histogram;
use tokio::sync::oneshot;

use super::feed::FeedItem;
use super::{Core, Leader, SUBMISSION_SLOTS};
use crate::domain::ids::JobId;
use crate::domain::job::NewJob;
use crate::ready_queue::Entry;
use crate::services::batcher::{Batcher, Limits, Stage};
use crate::services::command::Accepted;
use crate::services::crash;
use crate::services::error::ServiceError;
use crate::storage::StorageError;

type Reply = oneshot::Sender<Result<Vec<Accepted>, ServiceError>>;
/// When each job was first submitted, and whether that was now.
type Stored = HashMap<JobId, (DateTime<Utc>, bool)>;

/// One caller's jobs.
pub(super) struct Submission {
    jobs: Vec<NewJob>,
    reply: Reply,
}

impl Leader {
    /// Stores jobs, all or none. They are answered as accepted; by then they are on their way into the
    /// ready queue.
    pub(super) async fn submit(&self, jobs: Vec<NewJob>) -> Result<Vec<Accepted>, ServiceError> {
        self.core.check_room(jobs.len())?;
        let bytes = jobs.iter().map(size).sum();
        let (reply, answer) = oneshot::channel();
        self.submissions.push(Submission { jobs, reply }, bytes)?;
        answer.await.unwrap_or(Err(ServiceError::OutcomeUnknown))
    }
}

/// About how many bytes a job takes.
fn size(job: &NewJob) -> usize {
    let texts = [&job.input_data, &job.metadata, &job.tags].map(|payload| payload.as_str().len());
    512 + texts.iter().sum::<usize>()
}

pub(super) fn start(core: &Arc<Core>, stage: &Stage, sizes: &Histogram) -> Batcher<Submission> {
    let core = Arc::clone(core);
    Batcher::start(stage, Limits::default(), &SUBMISSION_SLOTS, sizes, move |slot, batch| {
        let core = Arc::clone(&core);
        async move { core.store_submissions(slot, batch).await }
    })
}

impl Core {
    /// Whether `more` jobs may wait.
    fn check_room(&self, more: usize) -> Result<(), ServiceError> {
        let waiting = u64::try_from(self.waiting.load(Ordering::Relaxed)).unwrap_or(0);
        let limit = self.parts.max_queue_size;
        if limit > 0 && waiting.saturating_add(more as u64) > limit {
            return Err(ServiceError::QueueFull { limit });
        }
        Ok(())
    }

    async fn store_submissions(&self, slot: i16, batch: Vec<Submission>) {
        let jobs: Vec<&NewJob> = batch.iter().flat_map(|submission| &submission.jobs).collect();
        match self.insert(slot, &jobs).await {
            Ok(stored) => {
                crash::point("submitted");
                batch.into_iter().for_each(|submission| self.accept(submission, &stored));
                self.nudges.schedule.notify_one();
            }
            // Checked values that PostgreSQL refuses all the same must not fail their neighbours.
            Err(StorageError::Rejected(_)) if batch.len() > 1 => {
                for submission in batch {
                    let jobs: Vec<&NewJob> = submission.jobs.iter().collect();
                    match self.insert(slot, &jobs).await {
                        Ok(stored) => self.accept(submission, &stored),
                        Err(error) => drop(submission.reply.send(Err(error.into()))),
                    }
                }
            }
            Err(error) => {
                let error = ServiceError::from(error);
                for submission in batch {
                    drop(submission.reply.send(Err(error.clone())));
                }
            }
        }
    }

    async fn insert(&self, slot: i16, jobs: &[&NewJob]) -> Result<Stored, StorageError> {
        self.transaction("submit_jobs", || async {
            let mut transaction = self.begin().await?;
            let stored = transaction.insert_jobs(slot, jobs).await?;
            transaction
                .commit()
                .await
                .map(|()| stored.into_iter().map(|(id, at, new)| (id, (at, new))).collect())
        })
        .await
    }

    /// After the commit: puts the jobs into the ready queue and answers the caller.
    fn accept(&self, submission: Submission, stored: &Stored) {
        let mut accepted = Vec::with_capacity(submission.jobs.len());
        for job in submission.jobs {
            // Missing: another transaction stores the same id at this moment.
            let Some(&(submitted_at, new)) = stored.get(&job.id) else {
                drop(submission.reply.send(Err(ServiceError::OutcomeUnknown)));
                return;
            };
            if new {
                let (job_id, shape, priority) = (job.id, job.shape.clone(), job.priority);
                self.feed(FeedItem::Add(Entry { job_id, shape, priority, submitted_at }));
                self.parts.metrics.jobs_queued.inc();
                self.waiting.fetch_add(1, Ordering::Relaxed);
            }
            accepted.push(Accepted { submitted_at, assigned_to: None });
        }
        drop(submission.reply.send(Ok(accepted)));
    }
}
