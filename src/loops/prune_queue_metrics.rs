//! Deletes old rows of the queue's metrics.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::{Loop, LoopError, TIDY_AFTER};
use crate::services::leader::Leader;

/// One page after the other, until none is left.
pub(super) struct PruneQueueMetrics {
    /// `retention.queue_metrics`.
    pub(super) age: Duration,
}

impl Loop for PruneQueueMetrics {
    const NAME: &'static str = "prune_queue_metrics";

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
        Ok(leader.prune_queue_metrics(self.age).await?)
    }
}
