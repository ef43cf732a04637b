//! A worker's life: register, work, drain.

use std::{sync::Arc, time::Duration};

use futures::future::join_all;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{
    Handler, WorkerError,
    builder::Settings,
    core::Core,
    heartbeat::send_heartbeats,
    link::Link,
    poll::poll_jobs,
    session::{self, Session},
};

/// One poll after the other fills this many slots fast enough; more slots get a
/// second poller.
const SLOTS_PER_POLLER: usize = 8;
const MOST_POLLERS: usize = 2;

/// How long completions are still sent after the last handler had to end.
const FINAL_REPORTS: Duration = Duration::from_secs(5);

/// Runs a worker; see `Worker::run`.
pub(super) async fn run<H: Handler>(
    mut settings: Settings,
    handler: H,
    shutdown: CancellationToken,
) -> Result<(), WorkerError> {
    let (registration, _identity) = session::describe(&mut settings).await?;
    let link = Link::new(&settings.endpoints, settings.token.as_deref())?;
    let session = tokio::select! {
        session = Session::open(&link, registration) => session?,
        () = shutdown.cancelled() => return Ok(()),
        () = settings.abort.cancelled() => return Ok(()),
    };
    let core = Arc::new(Core::new(link, session, settings.heartbeat_period, settings.poll_wait));
    let wind_up_time = handler.wind_up_time();
    let handler = Arc::new(handler);
    let slots = Arc::new(Semaphore::new(settings.slots));
    let pollers = settings.slots.div_ceil(SLOTS_PER_POLLER).min(MOST_POLLERS);
    let polling = join_all(
        (0..pollers).map(|_| poll_jobs(Arc::clone(&core), Arc::clone(&handler), Arc::clone(&slots))),
    );
    // Only the polling ends by itself: when the worker drains and the last job
    // has ended. Nothing is spawned that outlives it.
    tokio::select! {
        _ = polling => {}
        () = send_heartbeats(Arc::clone(&core)) => {}
        () = drain_in_time(&core, &settings, &shutdown, wind_up_time) => {}
    }
    info!("the worker has stopped");
    core.conclusion()
}

/// Starts the drain when it is time to, and sees to it that it ends: first the
/// handlers are cancelled, then the reports are given up.
async fn drain_in_time(
    core: &Core,
    settings: &Settings,
    shutdown: &CancellationToken,
    wind_up_time: Duration,
) {
    tokio::select! {
        () = shutdown.cancelled() => info!("draining"),
        () = settings.abort.cancelled() => info!("stopping"),
        () = core.draining.cancelled() => warn!("draining, because the server refuses this worker"),
    }
    core.draining.cancel();
    tokio::select! {
        () = tokio::time::sleep(settings.drain_deadline) => {
            warn!("the drain deadline has passed, the running jobs are stopped");
        }
        () = settings.abort.cancelled() => {}
    }
    core.stopping.cancel();
    tokio::time::sleep(wind_up_time + FINAL_REPORTS).await;
    core.giving_up.cancel();
    // The reports see the token and end, and with them the polling.
    std::future::pending().await
}
