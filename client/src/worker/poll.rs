//! Fetching jobs.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinSet,
    time::Instant,
};
use tracing::debug;

use super::{AssignedJob, Handler, core::Core, held::HeldJob, job::run_job, report::Lease};
use crate::{backoff::Backoff, proto::PollJobRequest};

/// What a poll may take beyond the time that the server may hold it.
const POLL_MARGIN: Duration = Duration::from_secs(5);

/// A server that does not hold polls is asked this often at the most.
const SHORTEST_POLL: Duration = Duration::from_millis(100);

/// Fetches and starts jobs, one after the other, until the worker drains; ends
/// when the jobs have ended that it started. Dropping it stops them.
pub(super) async fn poll_jobs<H: Handler>(core: Arc<Core>, handler: Arc<H>, slots: Arc<Semaphore>) {
    let mut running = JoinSet::new();
    while let Some(slot) = free_slot(&core, &slots).await {
        let Some((job, held)) = next_job(&core).await else {
            break;
        };
        if core.draining.is_cancelled() {
            core.reject(&Lease::of(&job)).await;
            break;
        }
        debug!(job_id = %job.id, execution_id = %job.execution_id, "fetched a job");
        running.spawn(run_job(Arc::clone(&core), Arc::clone(&handler), job, held, slot));
        while running.try_join_next().is_some() {}
    }
    while running.join_next().await.is_some() {}
}

/// A free slot, or `None` when the worker drains.
async fn free_slot(core: &Core, slots: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    tokio::select! {
        biased;
        () = core.draining.cancelled() => None,
        slot = Arc::clone(slots).acquire_owned() => slot.ok(),
    }
}

/// Polls until there is a job, or the worker drains. A poll that is under way
/// when the drain begins is waited for: its answer may carry a job.
async fn next_job(core: &Core) -> Option<(AssignedJob, HeldJob)> {
    let mut backoff = Backoff::default();
    while !core.draining.is_cancelled() {
        let connection = core.link.current();
        let registered = core.session.current();
        let asked = Instant::now();
        let request = PollJobRequest {
            worker_id: registered.worker_id.to_string(),
            // At most 30,000, as the builder has checked.
            wait_ms: i32::try_from(core.poll_wait.as_millis()).unwrap_or(0),
        };
        let answer = connection
            .call(core.poll_wait + POLL_MARGIN, request, |mut client, request| async move {
                client.poll_job(request).await
            })
            .await;
        match answer.map(AssignedJob::from_answer) {
            Ok(Some(job)) => {
                let held = core.held.hold(&job.id);
                return Some((job, held));
            }
            Ok(None) => {
                backoff.reset();
                let rest = SHORTEST_POLL.saturating_sub(asked.elapsed());
                unless_draining(core, tokio::time::sleep(rest)).await;
            }
            Err(failure) => {
                debug!(%failure, "a poll failed");
                let recovery = core.recover_session(&connection, registered.number, &failure, &mut backoff);
                unless_draining(core, recovery).await;
            }
        }
    }
    None
}

async fn unless_draining(core: &Core, wait: impl Future<Output = ()>) {
    tokio::select! {
        () = wait => {}
        () = core.draining.cancelled() => {}
    }
}
