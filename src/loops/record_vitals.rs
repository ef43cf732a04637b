//! Tells PostgreSQL which workers were heard, and shows how they fare.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::{Loop, LoopError};
use crate::services::leader::{Leader, UsageGauges};

/// Heartbeats live in the leader's memory and reach PostgreSQL in batches.
pub(super) struct RecordVitals {
    pub(super) gauges: UsageGauges,
}

impl Loop for RecordVitals {
    const NAME: &'static str = "record_vitals";

    fn period(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn nudge<'a>(&self, _: &'a Leader) -> Option<&'a Notify> {
        None
    }

    async fn run(&mut self, leader: &Arc<Leader>) -> Result<Option<Duration>, LoopError> {
        leader.record_vitals(&mut self.gauges).await?;
        Ok(None)
    }
}
