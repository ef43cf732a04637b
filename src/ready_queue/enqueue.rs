//! Putting jobs in and taking them out by id.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::domain::ids::{Epoch, JobId};
use crate::domain::matching::Shape;

use super::connection::{CHUNK, ReadyQueue};
use super::error::QueueError;
use super::score::Score;
use super::scripts;

/// A job that is ready to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The job.
    pub job_id: JobId,
    /// What it asks of a worker.
    pub shape: Shape,
    /// 1 to 10, 10 the most urgent.
    pub priority: u8,
    /// When it was submitted; counts to the millisecond.
    pub submitted_at: DateTime<Utc>,
}

impl ReadyQueue {
    /// Adds jobs and answers how many were not waiting before.
    ///
    /// A job that waits already keeps its place. A claim of the same job is dropped: the job is queued
    /// again. A job whose priority or shape changed must be removed first. Sent in batches of 1000 jobs;
    /// after an error some batches may be in place, and the call can be repeated.
    ///
    /// # Errors
    /// [`QueueError::Fenced`], or Redis failed.
    pub async fn enqueue(&self, epoch: Epoch, entries: &[Entry]) -> Result<usize, QueueError> {
        let mut added = 0;
        for chunk in entries.chunks(CHUNK) {
            let mut groups: BTreeMap<(&Shape, u8), Vec<(Score, JobId)>> = BTreeMap::new();
            for entry in chunk {
                let score = Score::pack(entry.priority, entry.submitted_at);
                groups.entry((&entry.shape, score.priority())).or_default().push((score, entry.job_id));
            }
            let mut call = self.fenced(&scripts::ENQUEUE, epoch);
            for ((shape, priority), mut jobs) in groups {
                jobs.sort_unstable();
                call.arg(shape.to_string()).arg(priority).arg(jobs.len());
                for (score, id) in jobs {
                    call.arg(score.as_argument()).arg(id.to_string());
                }
            }
            added += self.script::<usize>(&call).await?;
        }
        Ok(added)
    }

    /// Takes jobs out, waiting or claimed, and answers how many there were. Sent in batches of 1000.
    ///
    /// # Errors
    /// [`QueueError::Fenced`], or Redis failed.
    pub async fn remove(&self, epoch: Epoch, jobs: &[(JobId, Shape)]) -> Result<usize, QueueError> {
        let mut removed = 0;
        for chunk in jobs.chunks(CHUNK) {
            let mut call = self.fenced(&scripts::REMOVE, epoch);
            for (shape, indexes) in by_shape(chunk) {
                call.arg(shape.to_string()).arg(indexes.len());
                for index in indexes {
                    call.arg(chunk[index].0.to_string());
                }
            }
            removed += self.script::<usize>(&call).await?;
        }
        Ok(removed)
    }
}

/// The positions of the jobs of each shape.
pub(super) fn by_shape(jobs: &[(JobId, Shape)]) -> BTreeMap<&Shape, Vec<usize>> {
    let mut indexes: BTreeMap<&Shape, Vec<usize>> = BTreeMap::new();
    for (index, (_, shape)) in jobs.iter().enumerate() {
        indexes.entry(shape).or_default().push(index);
    }
    indexes
}
