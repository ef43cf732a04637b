//! Makes the ready queue hold what PostgreSQL says it should.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::{Loop, LoopError};
use crate::services::leader::{Leader, Reconciliation};

/// Looks for a lost generation, left claims and differing counts.
pub(super) struct ReconcileQueue {
    pub(super) memory: Reconciliation,
}

impl Loop for ReconcileQueue {
    const NAME: &'static str = "reconcile_queue";

    fn period(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn nudge<'a>(&self, leader: &'a Leader) -> Option<&'a Notify> {
        Some(&leader.nudges().reconcile)
    }

    async fn run(&mut self, leader: &Arc<Leader>) -> Result<Option<Duration>, LoopError> {
        leader.reconcile_queue(&mut self.memory).await?;
        Ok(None)
    }
}
