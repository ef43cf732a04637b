//! Gives jobs whose time has come to workers, or puts them into the ready queue.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::{Loop, LoopError};
use crate::services::leader::Leader;

/// Sleeps until the next retry is due; the database's clock says whether it is.
pub(super) struct PromoteRetries;

impl Loop for PromoteRetries {
    const NAME: &'static str = "promote_retries";

    fn period(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn nudge<'a>(&self, leader: &'a Leader) -> Option<&'a Notify> {
        Some(&leader.nudges().promote)
    }

    async fn run(&mut self, leader: &Arc<Leader>) -> Result<Option<Duration>, LoopError> {
        Ok(leader.promote_retries().await?)
    }
}
