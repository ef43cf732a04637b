//! Deletes jobs that ended long ago.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::{Loop, LoopError};
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

    /// From one sweep to the next; no job stays longer than a tenth beyond its time on that account.
    fn period(&self) -> Duration {
        (self.age / 10).clamp(Duration::from_secs(1), Duration::from_secs(3600))
    }

    fn nudge<'a>(&self, _: &'a Leader) -> Option<&'a Notify> {
        None
    }

    async fn run(&mut self, leader: &Arc<Leader>) -> Result<Option<Duration>, LoopError> {
        Ok(leader.prune_jobs(self.age, &mut self.memory).await?)
    }
}
