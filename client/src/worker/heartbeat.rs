//! Heartbeats: they keep the worker's leases, tell it which jobs were taken
//! away, and are the first to notice a replica that froze.

use std::{sync::Arc, time::Duration};

use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

use super::{core::Core, process::ProcessUsage};
use crate::{backoff::Backoff, proto::HeartbeatRequest};

/// Shorter than other calls' deadlines, because everything else moves to the
/// next replica with a failed heartbeat.
const DEADLINE: Duration = Duration::from_secs(2);

/// Sends heartbeats for ever. A failed one is repeated after the backoff
/// instead of the full period.
pub(super) async fn send_heartbeats(core: Arc<Core>) {
    let mut usage = ProcessUsage::default();
    let mut backoff = Backoff::default();
    let mut ticks = interval(core.heartbeat_period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut leaving = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            // At once, so that nothing more is assigned.
            () = core.draining.cancelled(), if !leaving => leaving = true,
        }
        while !beat(&core, &mut usage, &mut backoff).await {}
        backoff.reset();
    }
}

/// Sends one heartbeat and acts on its answer. Answers whether it was answered.
async fn beat(core: &Arc<Core>, usage: &mut ProcessUsage, backoff: &mut Backoff) -> bool {
    let connection = core.link.current();
    let registered = core.session.current();
    let held = core.held.snapshot();
    let jobs = held.job_ids();
    // A worker that leaves is given nothing more, and what it has not fetched
    // goes to others.
    let status = match (core.draining.is_cancelled(), jobs.is_empty()) {
        (true, _) => "offline",
        (false, true) => "idle",
        (false, false) => "busy",
    };
    let request = HeartbeatRequest {
        worker_id: registered.worker_id.to_string(),
        status: status.to_owned(),
        current_job_count: i32::try_from(jobs.len()).unwrap_or(i32::MAX),
        current_jobs: jobs,
        metrics: usage.sample(),
        loaded_models: Vec::new(),
    };
    let answer = connection
        .call(DEADLINE, request, |mut client, request| async move { client.heartbeat(request).await })
        .await;
    match answer {
        Ok(answer) => {
            core.held.lose(&held, &answer.cancelled_jobs);
            if !answer.acknowledged {
                warn!("a heartbeat was not acknowledged");
            }
            true
        }
        Err(failure) => {
            core.recover_session(&connection, registered.number, &failure, backoff).await;
            false
        }
    }
}
