//! Ends attempts that ran too long, takes back jobs that nobody fetched, gives up silent workers, tries again
//! those that have rested from failing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::{Loop, LoopError};
use crate::services::leader::Leader;

/// Deadlines are in whole seconds, and so is the scan period.
pub(super) struct ReapLeases;

impl Loop for ReapLeases {
    const NAME: &'static str = "reap_leases";

    fn period(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn nudge<'a>(&self, _: &'a Leader) -> Option<&'a Notify> {
        None
    }

    async fn run(&mut self, leader: &Arc<Leader>) -> Result<Option<Duration>, LoopError> {
        leader.reap_leases().await?;
        Ok(None)
    }
}
