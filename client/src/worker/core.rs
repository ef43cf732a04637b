//! What the parts of a running worker share.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;
use tracing::error;

use super::{
    WorkerError,
    held::HeldJobs,
    link::{Connection, Failure, Link, Remedy},
    session::Session,
};
use crate::backoff::Backoff;

/// The deadline of every call that is no poll and no heartbeat.
pub(super) const CALL_DEADLINE: Duration = Duration::from_secs(5);

/// The shared state of one worker.
pub(super) struct Core {
    pub(super) link: Link,
    pub(super) session: Session,
    pub(super) held: Arc<HeldJobs>,
    pub(super) heartbeat_period: Duration,
    pub(super) poll_wait: Duration,
    /// Fetch nothing more.
    pub(super) draining: CancellationToken,
    /// Cancel the handlers.
    pub(super) stopping: CancellationToken,
    /// Stop reporting.
    pub(super) giving_up: CancellationToken,
    /// How many jobs could not be reported.
    pub(super) unreported: AtomicUsize,
    fatal: Mutex<Option<WorkerError>>,
}

impl Core {
    pub(super) fn new(link: Link, session: Session, heartbeat_period: Duration, poll_wait: Duration) -> Self {
        Self {
            link,
            session,
            held: Arc::default(),
            heartbeat_period,
            poll_wait,
            draining: CancellationToken::new(),
            stopping: CancellationToken::new(),
            giving_up: CancellationToken::new(),
            unreported: AtomicUsize::new(0),
            fatal: Mutex::new(None),
        }
    }

    /// Leaves the connection if need be and waits before the next attempt. Who
    /// was only swept along by another call's failure goes on at once.
    pub(super) async fn recover(&self, connection: &Connection, failure: &Failure, backoff: &mut Backoff) {
        self.link.leave(connection, failure);
        if !matches!(failure, Failure::Left) {
            backoff.pause().await;
        }
    }

    /// As [`recover`](Self::recover), and registers anew if the server does not
    /// know this worker. `registration` is the one that the failed call used.
    pub(super) async fn recover_session(
        &self,
        connection: &Connection,
        registration: u64,
        failure: &Failure,
        backoff: &mut Backoff,
    ) {
        match failure.remedy() {
            Remedy::Unknown => {
                if let Err(refusal) = self.session.renew(&self.link, registration).await {
                    self.fail(refusal);
                }
                // Bounds the pace of a server that forgets at once.
                backoff.pause().await;
            }
            Remedy::Never | Remedy::Stale => {
                error!(%failure, "the server refuses this worker's calls");
                backoff.pause().await;
            }
            Remedy::Elsewhere | Remedy::Later => self.recover(connection, failure, backoff).await,
        }
    }

    /// Ends the worker: it drains and returns this error.
    fn fail(&self, reason: WorkerError) {
        let mut fatal = self.fatal.lock().unwrap_or_else(PoisonError::into_inner);
        fatal.get_or_insert(reason);
        self.draining.cancel();
    }

    /// How the run ended.
    pub(super) fn conclusion(&self) -> Result<(), WorkerError> {
        let mut fatal = self.fatal.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = fatal.take() {
            return Err(reason);
        }
        match self.unreported.load(Ordering::Relaxed) {
            0 => Ok(()),
            jobs => Err(WorkerError::Unreported { jobs }),
        }
    }
}
