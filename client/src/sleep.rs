//! A handler that only takes time: for demonstrations and measurements.

use std::time::Duration;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::worker::{AssignedJob, Handler, JobFailure};

/// Sleeps for `duration` and answers `{"slept_ms": N}`.
#[derive(Debug, Clone, Copy)]
pub struct SleepHandler {
    /// How long each job takes; zero answers at once.
    pub duration: Duration,
}

impl Handler for SleepHandler {
    async fn run(&self, _job: AssignedJob, cancel: CancellationToken) -> Result<Value, JobFailure> {
        if !self.duration.is_zero() {
            tokio::select! {
                () = tokio::time::sleep(self.duration) => {}
                () = cancel.cancelled() => {
                    return Err(JobFailure::new("stopped while sleeping").with_code("cancelled"));
                }
            }
        }
        let slept_ms = u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX);
        Ok(json!({ "slept_ms": slept_ms }))
    }
}
