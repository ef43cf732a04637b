//! Records how the queue fares.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::{Loop, LoopError};
use crate::services::leader::{Leader, Recording};

/// A row of `queue_metrics` at every interval; the first one of a leadership at once.
pub(super) struct RecordQueueMetrics {
    /// `queue.metrics_interval`.
    interval: Duration,
    memory: Recording,
}

impl RecordQueueMetrics {
    /// Records a row every `interval`.
    pub(super) fn every(interval: Duration) -> Self {
        Self { interval, memory: Recording::default() }
    }
}

impl Loop for RecordQueueMetrics {
    const NAME: &'static str = "record_queue_metrics";

    fn period(&self) -> Duration {
        self.interval
    }

    fn nudge<'a>(&self, _: &'a Leader) -> Option<&'a Notify> {
        None
    }

    async fn run(&mut self, leader: &Arc<Leader>) -> Result<Option<Duration>, LoopError> {
        Ok(leader.record_queue_metrics(&mut self.memory).await?)
    }
}
