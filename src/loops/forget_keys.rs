//! Forgets idempotency keys that are older than a day.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;

use super::{Loop, LoopError, TIDY_AFTER};
use crate::services::leader::Leader;

/// One page after the other, until none is left.
pub(super) struct ForgetKeys;

impl Loop for ForgetKeys {
    const NAME: &'static str = "forget_keys";

    fn period(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn first(&self) -> Duration {
        TIDY_AFTER
    }

    fn nudge<'a>(&self, _: &'a Leader) -> Option<&'a Notify> {
        None
    }

    async fn run(&mut self, leader: &Arc<Leader>) -> Result<Option<Duration>, LoopError> {
        Ok(leader.forget_keys().await?)
    }
}
