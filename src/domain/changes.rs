//! Changes of jobs' states in the order in which a leader committed them, for those who want to follow them.
//!
//! A leader numbers the changes that it makes, and only the newest are kept. Whoever reads shows how far it has come; where
//! that is no longer known, because another leader numbers now or too much has happened since, it is told so
//! instead of missing something.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::ids::{Epoch, JobId, WorkerId};
use super::job::{Job, JobStatus};

/// Changes that are kept.
pub const KEPT: usize = 16_384;

/// A job has come into a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobChange {
    /// Which job.
    pub job_id: JobId,
    /// The state.
    pub status: JobStatus,
    /// The worker that has the job, or had it to the end.
    pub worker_id: Option<WorkerId>,
    /// When.
    pub at: DateTime<Utc>,
}

impl JobChange {
    /// Whether it tells something new to somebody who knows `known` of the job; a change may be read that a look
    /// at the job has shown before.
    pub fn is_news_after(&self, known: &Self) -> bool {
        self.status != known.status && known.status.may_become(self.status) && self.at >= known.at
    }
}

impl From<&Job> for JobChange {
    fn from(job: &Job) -> Self {
        Self { job_id: job.id, status: job.status, worker_id: job.assigned_worker_id, at: job.updated_at }
    }
}

/// How far somebody has come: up to and including a change of a leader. Written as `epoch-number`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cursor {
    /// The leadership that numbers.
    pub epoch: Epoch,
    /// The last change that is known, or the place before the first one.
    pub number: u64,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.epoch, self.number)
    }
}

impl FromStr for Cursor {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |(epoch, number): (&str, &str)| {
            Some(Self { epoch: Epoch(epoch.parse().ok()?), number: number.parse().ok()? })
        };
        text.split_once('-').and_then(parse).ok_or_else(|| "must be the id of an event".to_owned())
    }
}

/// The newest changes of one leadership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangeLog {
    /// The place before the oldest change that is kept.
    start: Cursor,
    changes: VecDeque<JobChange>,
}

impl ChangeLog {
    /// An empty one, whose first change comes after `start`.
    pub fn after(start: Cursor) -> Self {
        Self { start, changes: VecDeque::new() }
    }

    /// The place before the oldest change that is kept.
    pub fn start(&self) -> Cursor {
        self.start
    }

    /// The newest change.
    pub fn head(&self) -> Cursor {
        Cursor { number: self.start.number + self.changes.len() as u64, ..self.start }
    }

    /// Adds changes; old ones make room.
    pub fn extend(&mut self, changes: impl IntoIterator<Item = JobChange>) {
        for change in changes {
            if self.changes.len() >= KEPT {
                self.changes.pop_front();
                self.start.number += 1;
            }
            self.changes.push_back(change);
        }
    }

    /// Forgets everything. Nobody who was told of an earlier change is at the place where it goes on.
    pub fn restart(&mut self) {
        self.start.number = self.head().number + 1;
        self.changes.clear();
    }

    /// Whether nothing is missing after that place.
    pub fn reaches(&self, after: Cursor) -> bool {
        after.epoch == self.start.epoch && (self.start.number..=self.head().number).contains(&after.number)
    }

    /// The changes after that place, each with its own, at most `most`; `None` if some of them are gone.
    pub fn read(&self, after: Cursor, most: usize) -> Option<Vec<(Cursor, JobChange)>> {
        if !self.reaches(after) {
            return None;
        }
        let known = usize::try_from(after.number - self.start.number).unwrap_or(usize::MAX);
        let numbers = (after.number + 1..).map(|number| Cursor { number, ..after });
        Some(numbers.zip(self.changes.iter().skip(known).copied()).take(most).collect())
    }
}

#[cfg(test)]
#[path = "changes_tests.rs"]
mod tests;
