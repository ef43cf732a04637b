//! The leader's loops: one file each, and what runs them.
//!
//! A loop is idempotent and takes no input. Its period is the safety net; a nudge hastens it. A run that
//! fails is logged and tried again soon. Without a fresh quorum nothing new is begun.

mod forget_keys;
mod promote_retries;
mod prune_jobs;
mod prune_queue_metrics;
mod reap_leases;
mod reconcile_queue;
mod record_queue_metrics;
mod record_vitals;
mod schedule_jobs;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::services::leader::{Leader, Reconciliation, RoundError, UpkeepError, UsageGauges};
use crate::telemetry::Metrics;

/// Pause after a run that failed.
const AFTER_FAILURE: Duration = Duration::from_millis(250);

/// A leader that has just taken over has more urgent things to do than to tidy up.
const TIDY_AFTER: Duration = Duration::from_secs(3);

/// Why a run failed; it is run again.
#[derive(Debug, thiserror::Error)]
enum LoopError {
    #[error(transparent)]
    Upkeep(#[from] UpkeepError),
    #[error(transparent)]
    Round(#[from] RoundError),
}

/// Something that the leader does again and again.
trait Loop: Send + 'static {
    /// verb_noun, as in metrics and logs.
    const NAME: &'static str;

    /// Longest pause between two runs.
    fn period(&self) -> Duration;

    /// Pause before the first run.
    fn first(&self) -> Duration {
        Duration::ZERO
    }

    /// What hastens the next run.
    fn nudge<'a>(&self, leader: &'a Leader) -> Option<&'a Notify>;

    /// One run. Answers how long to pause at most, if that is shorter than the period.
    fn run(
        &mut self,
        leader: &Arc<Leader>,
    ) -> impl Future<Output = Result<Option<Duration>, LoopError>> + Send;
}

/// What all loops are given.
#[derive(Clone)]
pub struct Surroundings {
    /// The leader they serve.
    pub leader: Arc<Leader>,
    /// Whether the quorum was heard from lately.
    pub acting: watch::Receiver<bool>,
    /// Ends them between two runs.
    pub stop: CancellationToken,
    /// Where runs are counted.
    pub metrics: Arc<Metrics>,
    /// `scheduler.poll_interval`.
    pub poll_interval: Duration,
    /// `scheduler.enabled`.
    pub scheduling: bool,
    /// `retention.finished_jobs`.
    pub retention: Option<Duration>,
    /// `queue.metrics_interval`.
    pub metrics_interval: Option<Duration>,
    /// `retention.queue_metrics`.
    pub metrics_retention: Option<Duration>,
}

/// Starts every loop.
pub fn start(surroundings: &Surroundings, tasks: &TaskTracker) {
    if surroundings.scheduling {
        let period = surroundings.poll_interval;
        tasks.spawn(drive(schedule_jobs::ScheduleJobs { period }, surroundings.clone()));
    }
    tasks.spawn(drive(promote_retries::PromoteRetries, surroundings.clone()));
    tasks.spawn(drive(reap_leases::ReapLeases, surroundings.clone()));
    let memory = Reconciliation::new(Arc::clone(&surroundings.metrics));
    tasks.spawn(drive(reconcile_queue::ReconcileQueue { memory }, surroundings.clone()));
    let gauges = UsageGauges::new(Arc::clone(&surroundings.metrics));
    tasks.spawn(drive(record_vitals::RecordVitals { gauges }, surroundings.clone()));
    tasks.spawn(drive(forget_keys::ForgetKeys, surroundings.clone()));
    if let Some(age) = surroundings.retention {
        tasks.spawn(drive(prune_jobs::PruneJobs::of(age), surroundings.clone()));
    }
    if let Some(interval) = surroundings.metrics_interval {
        let record = record_queue_metrics::RecordQueueMetrics::every(interval);
        tasks.spawn(drive(record, surroundings.clone()));
    }
    if let Some(age) = surroundings.metrics_retention {
        tasks.spawn(drive(prune_queue_metrics::PruneQueueMetrics { age }, surroundings.clone()));
    }
}

async fn drive<L: Loop>(mut this: L, mut around: Surroundings) {
    let mut pause = this.first();
    let mut failing = false;
    loop {
        tokio::select! {
            biased;
            () = around.stop.cancelled() => return,
            () = nudged(this.nudge(&around.leader)) => {}
            () = tokio::time::sleep(pause) => {}
        }
        tokio::select! {
            biased;
            () = around.stop.cancelled() => return,
            acting = around.acting.wait_for(|acting| *acting) => if acting.is_err() { return },
        }
        let result = this.run(&around.leader).await;
        let label = if result.is_ok() { "ok" } else { "error" };
        around.metrics.loop_runs.with_label_values(&[L::NAME, label]).inc();
        match result {
            Ok(next) => {
                pause = next.map_or(this.period(), |next| next.min(this.period()));
                failing = false;
            }
            Err(error) => {
                // Once per outage: the metric counts the rest.
                if !failing {
                    tracing::warn!(name = L::NAME, %error, "A loop of the leader failed; it is run again.");
                }
                pause = AFTER_FAILURE;
                failing = true;
            }
        }
    }
}

async fn nudged(nudge: Option<&Notify>) {
    match nudge {
        Some(nudge) => nudge.notified().await,
        None => std::future::pending().await,
    }
}
