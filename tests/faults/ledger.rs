//! What workers did, in their own words.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cortex_client::{AssignedJob, CancellationToken, Handler, JobFailure};
use serde_json::{Value, json};
use uuid::Uuid;

/// One start of a job.
#[derive(Debug, Clone)]
pub struct Run {
    pub job: Uuid,
    pub token: Uuid,
    pub attempt: i32,
    /// Whether the work was done to its end.
    pub ended: bool,
}

/// All starts, in their order.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<Vec<Run>>>);

impl Ledger {
    /// All that was written so far.
    pub fn runs(&self) -> Vec<Run> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Run>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A handler that writes the ledger.
pub struct Recorder {
    pub ledger: Ledger,
    /// How long the work takes.
    pub takes: Duration,
}

impl Handler for Recorder {
    async fn run(&self, job: AssignedJob, cancel: CancellationToken) -> Result<Value, JobFailure> {
        let line = {
            let mut runs = self.ledger.lock();
            runs.push(Run {
                job: job.id.parse().unwrap(),
                token: job.execution_id.parse().unwrap(),
                attempt: job.attempt,
                ended: false,
            });
            runs.len() - 1
        };
        tokio::select! {
            () = tokio::time::sleep(self.takes) => {}
            () = cancel.cancelled() => return Err(JobFailure::new("it was taken away")),
        }
        self.ledger.lock()[line].ended = true;
        Ok(json!({}))
    }
}
