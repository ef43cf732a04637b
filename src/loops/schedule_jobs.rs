//! Gives waiting jobs to free workers.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::{Loop, LoopError};
use crate::services::leader::Leader;

/// Woken by submissions, freed slots, due retries and new workers.
pub(super) struct ScheduleJobs {
    /// `scheduler.poll_interval`.
    pub(super) period: Duration,
}

impl Loop for ScheduleJobs {
    const NAME: &'static str = "schedule_jobs";

    fn period(&self) -> Duration {
        self.period
    }

    fn nudge<'a>(&self, leader: &'a Leader) -> Option<&'a Notify> {
        Some(&leader.nudges().schedule)
    }

    async fn run(&mut self, leader: &Arc<Leader>) -> Result<Option<Duration>, LoopError> {
        let assigned = leader.schedule_round().await?;
        // There may be more: slots or jobs beyond one round.
        Ok((assigned > 0).then_some(Duration::ZERO))
    }
}
