//! A worker's life: open a session, work, open the next one when it breaks, drain.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};
use tracing::{debug, error, info, warn};

use super::builder::Settings;
use super::job::{Doing, run_job};
use super::link::Link;
use super::outbox::{Outbox, Taken};
use super::process::ProcessUsage;
use super::{AssignedJob, Handler, WorkerError, registration};
use crate::backoff::Backoff;
use crate::proto::{PollJobResponse, SessionHeartbeat, SessionResponse, WorkerRegistration};

/// How long a replica may take to open a session.
const OPENING: Duration = Duration::from_secs(5);
/// How long completions are still sent after the last handler had to end.
const FINAL_REPORTS: Duration = Duration::from_secs(5);
/// How long a replica may take to let a drained worker go.
const FAREWELL: Duration = Duration::from_secs(1);
/// Most models that a heartbeat names.
const MOST_MODELS: usize = 100;

/// Runs a worker; see `Worker::run`.
pub(super) async fn run<H: Handler>(
    mut settings: Settings,
    handler: H,
    shutdown: CancellationToken,
) -> Result<(), WorkerError> {
    let (registration, _identity) = registration::describe(&mut settings).await?;
    let link = Link::new(&settings.endpoints, settings.token.as_deref())?;
    let wind_up_time = handler.wind_up_time();
    let doing = Arc::new(Doing {
        handler,
        outbox: Arc::default(),
        slots: Arc::new(Semaphore::new(settings.slots)),
        stopping: CancellationToken::new(),
    });
    let mut life = Life {
        doing: Arc::clone(&doing),
        link,
        registration,
        slots: u32::try_from(settings.slots).unwrap_or(1),
        heartbeat_period: settings.heartbeat_period,
        usage: ProcessUsage::default(),
        draining: false,
        jobs: JoinSet::new(),
    };
    let draining = CancellationToken::new();
    // Only the life ends by itself: when the worker drains and its last job is reported, or is refused.
    // Nothing is spawned that outlives it.
    let outcome = tokio::select! {
        outcome = life.live(&draining) => outcome,
        () = drain_in_time(&draining, &doing.stopping, &settings, &shutdown, wind_up_time) => Ok(()),
    };
    info!("the worker has stopped");
    let unreported = doing.outbox.unreported();
    doing.tell(doing.outbox.forget());
    outcome?;
    match unreported {
        0 => Ok(()),
        jobs => {
            error!(jobs, "the end of jobs could not be reported before the worker stopped");
            Err(WorkerError::Unreported { jobs })
        }
    }
}

/// Starts the drain when it is time to, and ends when it has taken too long: first the handlers are
/// cancelled, then the reports are given up.
async fn drain_in_time(
    draining: &CancellationToken,
    stopping: &CancellationToken,
    settings: &Settings,
    shutdown: &CancellationToken,
    wind_up_time: Duration,
) {
    tokio::select! {
        () = shutdown.cancelled() => info!("draining"),
        () = settings.abort.cancelled() => info!("stopping"),
        () = draining.cancelled() => warn!("draining, because the server refuses this worker"),
    }
    draining.cancel();
    tokio::select! {
        () = sleep(settings.drain_deadline) => {
            warn!("the drain deadline has passed, the running jobs are stopped");
        }
        () = settings.abort.cancelled() => {}
    }
    stopping.cancel();
    sleep(wind_up_time + FINAL_REPORTS).await;
}

struct Life<H> {
    doing: Arc<Doing<H>>,
    link: Link,
    registration: WorkerRegistration,
    slots: u32,
    heartbeat_period: Duration,
    usage: ProcessUsage,
    draining: bool,
    jobs: JoinSet<()>,
}

/// Why a session ended.
enum Break {
    /// The worker has drained.
    Done,
    /// The server does not know this worker.
    Unknown,
    /// The server does not want this worker.
    Refused(Status),
    /// A message was larger than the server takes.
    TooLarge(Status),
    /// The replica, or the way to it.
    Broken(Status),
}

/// Ends the stream when the session is over.
struct End(Arc<Outbox>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl<H: Handler> Life<H> {
    /// Opens one session after the other until the worker has drained.
    async fn live(&mut self, draining: &CancellationToken) -> Result<(), WorkerError> {
        let mut backoff = Backoff::default();
        let mut refused = None;
        loop {
            match self.session(draining, &mut backoff).await {
                Break::Done => return refused.map_or(Ok(()), Err),
                Break::Unknown => {
                    warn!("the server does not know this worker, registering anew");
                    self.doing.tell(self.outbox().forget());
                }
                Break::Refused(status) => {
                    error!(code = ?status.code(), message = status.message(), "the server refuses this worker");
                    if !self.outbox().is_registered() {
                        refused = Some(WorkerError::Refused(status.message().to_owned()));
                        draining.cancel();
                    }
                }
                Break::TooLarge(status) => {
                    error!(reason = status.message(), "the server does not take a report of this size");
                    self.doing.tell(self.outbox().too_large(status.message()));
                }
                Break::Broken(status) => {
                    warn!(from = %self.link.endpoint(), cause = %cause(&status), "a session ended, moving on to the next replica");
                    self.link.move_on();
                }
            }
            if self.pause(draining, &mut backoff).await {
                return refused.map_or(Ok(()), Err);
            }
        }
    }

    /// Waits before the next session. Answers whether there is no need for one.
    async fn pause(&mut self, draining: &CancellationToken, backoff: &mut Backoff) -> bool {
        let pause = backoff.pause();
        tokio::pin!(pause);
        loop {
            self.note_drain(draining);
            if self.draining && self.outbox().held() == 0 {
                return true;
            }
            tokio::select! {
                () = &mut pause => return false,
                () = draining.cancelled(), if !self.draining => {}
                () = self.doing.outbox.changed.notified() => {}
            }
        }
    }

    /// One session, from its opening to its end.
    async fn session(&mut self, draining: &CancellationToken, backoff: &mut Backoff) -> Break {
        self.note_drain(draining);
        let heartbeat = self.heartbeat();
        let outgoing = self.outbox().begin(&self.registration, self.slots, heartbeat);
        // However this ends: a stream that is only dropped may stay open for as long as nothing is sent on it.
        let _end = End(Arc::clone(self.outbox()));
        let opened = tokio::select! {
            opened = timeout(OPENING, self.link.open(outgoing)) => opened,
            // Nothing is held that would have to be reported. If the replica answers soon it is told, too.
            () = cancelled_for(draining, FAREWELL), if self.outbox().held() == 0 => return Break::Done,
        };
        let mut inbound = match opened {
            Ok(Ok(inbound)) => inbound,
            Ok(Err(status)) => return judge(status),
            Err(_) => return Break::Broken(Status::deadline_exceeded("the session was not opened in time")),
        };
        let first = match timeout(OPENING, inbound.message()).await {
            Ok(Ok(Some(first))) => first,
            Ok(Ok(None)) | Err(_) => return Break::Broken(Status::unavailable("no greeting came")),
            Ok(Err(status)) => return judge(status),
        };
        if !self.outbox().is_registered() {
            info!(worker_id = %first.worker_id, "registered");
        }
        self.outbox().set_worker_id(first.worker_id.clone());
        self.take_in(first);
        self.converse(draining, &mut inbound, backoff).await
    }

    async fn converse(
        &mut self,
        draining: &CancellationToken,
        inbound: &mut Streaming<SessionResponse>,
        backoff: &mut Backoff,
    ) -> Break {
        let mut beats = interval(self.heartbeat_period);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beats.tick().await;
        let mut again: Option<Instant> = None;
        loop {
            if self.outbox().is_done() {
                return self.take_leave(inbound).await;
            }
            let start = self.outbox().next_start();
            tokio::select! {
                message = inbound.message() => match message {
                    Ok(Some(message)) => {
                        if self.take_in(message) {
                            let wait = backoff.next(&mut crate::random::generator());
                            again.get_or_insert(Instant::now() + wait);
                        } else {
                            backoff.reset();
                        }
                    }
                    Ok(None) => return Break::Broken(Status::unavailable("the replica has ended the session")),
                    Err(status) => return judge(status),
                },
                _ = beats.tick() => {
                    let heartbeat = self.heartbeat();
                    self.outbox().beat(heartbeat);
                }
                () = due(start) => self.outbox().report_starts(Instant::now()),
                () = due(again) => {
                    again = None;
                    self.outbox().send_postponed();
                }
                () = draining.cancelled(), if !self.draining => self.note_drain(draining),
                () = self.doing.outbox.changed.notified() => {}
                Some(_) = self.jobs.join_next() => {}
            }
        }
    }

    /// Ends the stream and waits until the replica has heard it to its end. A job that was on its way
    /// meanwhile is given back on another session.
    async fn take_leave(&mut self, inbound: &mut Streaming<SessionResponse>) -> Break {
        self.outbox().end();
        let rest = timeout(FAREWELL, async {
            while let Ok(Some(message)) = inbound.message().await {
                self.take_in(message);
            }
        });
        if rest.await.is_err() {
            debug!("the replica did not end the session in time");
        }
        match self.outbox().held() {
            0 => Break::Done,
            _ => Break::Broken(Status::aborted("a job came while the worker left")),
        }
    }

    /// Acts on what the replica said. Answers whether reports have to be sent again.
    fn take_in(&mut self, message: SessionResponse) -> bool {
        for assignment in message.assignments {
            self.begin(assignment);
        }
        if !message.acknowledged.is_empty() {
            self.doing.tell(self.outbox().acknowledged(&message.acknowledged));
        }
        let mut postponed = false;
        for refusal in message.refused {
            match Code::from(refusal.code) {
                Code::FailedPrecondition | Code::NotFound => {
                    info!(reason = refusal.message, "a report was refused, its job is dropped");
                    self.doing.tell(self.outbox().dropped(refusal.id, refusal.message));
                }
                Code::InvalidArgument | Code::OutOfRange => {
                    error!(reason = refusal.message, "the server cannot take a report");
                    self.doing.tell(self.outbox().unacceptable(refusal.id, refusal.message));
                }
                code => {
                    debug!(?code, reason = refusal.message, "a report was not taken, it is sent again");
                    self.outbox().postpone(refusal.id);
                    postponed = true;
                }
            }
        }
        if message.draining {
            info!("an operator drains this worker: it gets nothing new until it registers again");
        }
        for lease in message.ended {
            self.outbox().lost(&lease.execution_id);
        }
        postponed
    }

    fn begin(&mut self, assignment: PollJobResponse) {
        let Some(job) = AssignedJob::from_answer(assignment) else { return };
        let lease: Arc<str> = job.execution_id.as_str().into();
        match self.outbox().take(&lease, &job.id, job.attempt) {
            Taken::Run(lost) => {
                self.jobs.spawn(run_job(Arc::clone(&self.doing), job, lease, lost));
            }
            Taken::Again => debug!(job_id = %job.id, "a job came that is held already"),
            Taken::HandedBack => debug!(job_id = %job.id, "gave a job back"),
        }
    }

    fn note_drain(&mut self, draining: &CancellationToken) {
        if draining.is_cancelled() && !self.draining {
            self.draining = true;
            self.outbox().drain();
            // At once, so that nothing more is assigned.
            let heartbeat = self.heartbeat();
            self.outbox().beat(heartbeat);
        }
    }

    fn heartbeat(&mut self) -> SessionHeartbeat {
        let status = match (self.draining, self.outbox().held()) {
            (true, _) => "offline",
            (false, 0) => "idle",
            (false, _) => "busy",
        };
        let mut loaded_models = self.doing.handler.loaded_models();
        loaded_models.truncate(MOST_MODELS);
        SessionHeartbeat { status: status.to_owned(), metrics: self.usage.sample(), loaded_models }
    }

    fn outbox(&self) -> &Arc<Outbox> {
        &self.doing.outbox
    }
}

/// What the end of a session means.
fn judge(status: Status) -> Break {
    match status.code() {
        Code::NotFound => Break::Unknown,
        Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented => {
            Break::Refused(status)
        }
        Code::OutOfRange => Break::TooLarge(status),
        _ => Break::Broken(status),
    }
}

/// The innermost cause says most.
fn cause(status: &Status) -> String {
    let mut cause: &dyn std::error::Error = status;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

async fn cancelled_for(token: &CancellationToken, time: Duration) {
    token.cancelled().await;
    sleep(time).await;
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
