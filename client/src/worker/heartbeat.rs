//! Heartbeats: they keep the worker's leases, tell it which jobs were taken
//! away, and are the first to notice a replica that froze.

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tracing::warn;

use super::{core::Core, process::ProcessUsage, report::Lease};
use crate::{
    backoff::Backoff,
    proto::{HeartbeatRequest, HeartbeatResponse},
};

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
    let mut rejections = Rejections::default();
    loop {
        ticks.tick().await;
        while !beat(&core, &mut usage, &mut backoff, &mut rejections).await {}
        backoff.reset();
    }
}

/// Sends one heartbeat and acts on its answer. Answers whether it was answered.
async fn beat(
    core: &Arc<Core>,
    usage: &mut ProcessUsage,
    backoff: &mut Backoff,
    rejections: &mut Rejections,
) -> bool {
    let connection = core.link.current();
    let registered = core.session.current();
    let held = core.held.snapshot();
    let jobs = held.job_ids();
    // Draining, the worker claims to be full, so that it is given nothing more.
    let count = if core.draining.is_cancelled() {
        jobs.len().max(core.slots)
    } else {
        jobs.len()
    };
    let request = HeartbeatRequest {
        worker_id: registered.worker_id.to_string(),
        status: if count == 0 { "idle" } else { "busy" }.to_owned(),
        current_job_count: i32::try_from(count).unwrap_or(i32::MAX),
        current_jobs: jobs,
        metrics: usage.sample(),
    };
    let answer = connection
        .call(DEADLINE, request, |mut client, request| async move {
            client.heartbeat(request).await
        })
        .await;
    match answer {
        Ok(answer) => {
            core.held.lose(&held, &answer.cancelled_jobs);
            if !answer.acknowledged {
                warn!("a heartbeat was not acknowledged");
            }
            if core.draining.is_cancelled() {
                rejections.give_back(core, answer);
            }
            true
        }
        Err(failure) => {
            core.recover_session(&connection, registered.number, &failure, backoff)
                .await;
            false
        }
    }
}

/// Jobs that were assigned to a draining worker and will not be fetched.
#[derive(Default)]
struct Rejections {
    known: HashSet<String>,
    under_way: JoinSet<()>,
}

impl Rejections {
    /// Rejects every job that waits for this worker, each once: what the server
    /// assigns again it will take back when it is not fetched.
    fn give_back(&mut self, core: &Arc<Core>, answer: HeartbeatResponse) {
        while self.under_way.try_join_next().is_some() {}
        for job_id in answer.pending_jobs {
            if core.held.contains(&job_id) || !self.known.insert(job_id.clone()) {
                continue;
            }
            let core = Arc::clone(core);
            self.under_way.spawn(async move {
                // The lease token only comes with a fetch.
                let lease = Lease {
                    job_id,
                    execution_id: String::new(),
                    attempt: 0,
                };
                core.reject(&lease).await;
            });
        }
    }
}
