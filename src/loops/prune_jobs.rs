//! Deletes jobs that ended long ago.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::{Loop, LoopError, TIDY_AFTER};
use crate::services::leader::{Leader, Pruning};

/// One sweep over the old jobs after the other.
pub(super) struct PruneJobs {
    /// `retention.finished_jobs`.
    age: Duration,
    memory: Pruning,
}

impl PruneJobs {
    /// Deletes jobs that ended more than `age` ago.
    pub(super) fn of(age: Duration) -> Self {
        Self { age, memory: Pruning::default() }
    }
}

impl Loop for PruneJobs {
    const NAME: &'static str = "prune_jobs";

    fn period(&self) -> Duration {
        Duration::from_secs(600)
    }

    fn first(&self) -> Duration {
        TIDY_AFTER
    }

    fn nudge<'a>(&self, _: &'a Leader) -> Option<&'a Notify> {
        None
    }

    async fn run(&mut self, leader: &Arc<Leader>) -> Result<Option<Duration>, LoopError> {
        Ok(leader.prune_jobs(self.age, &mut self.memory).await?)
    }
}
