//! Finds whoever leads and has each command carried out there, once as far as anybody can tell.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::codec;
use super::config::ForwardConfig;
use super::link::Link;
use super::outbox::{Refused, Reply};
use super::route::Route;
use super::watch;
use super::wire::{Lane, MAX_ITEM, MAX_MESSAGE};
use crate::domain::ambient::Ambient;
use crate::domain::job::JobStatus;
use crate::domain::transition::JobEvent;
use crate::domain::validate::FieldError;
use crate::security::Caller;
use crate::services::command::{Answer, Applied, Command, Commands, Deliver, Outlet};
use crate::services::error::{Conflict, ServiceError};
use crate::services::sessions::Sessions;
use crate::telemetry::Tracer;
use crate::telemetry::traces::{self, Span, SpanKind};

/// Shortest pause before a command is tried again by the same route, in milliseconds.
const SHORTEST_PAUSE_MS: f64 = 5.0;
/// Longest such pause, in milliseconds.
const LONGEST_PAUSE_MS: f64 = 25.0;

/// Carries out commands wherever the leader is.
pub struct Router {
    route: watch::Receiver<Route>,
    config: Arc<ForwardConfig>,
    ambient: Arc<dyn Ambient>,
    /// The link to the last leader elsewhere.
    link: Mutex<Option<Arc<Link>>>,
    /// The sessions of this replica's workers.
    sessions: Arc<Sessions>,
    /// Counts how often the way to the leader has changed or broken.
    way: watch::Sender<u64>,
    tracer: Tracer,
}

/// What came of one attempt.
enum Attempt {
    /// The leader has decided.
    Settled(Result<Answer, ServiceError>),
    /// It was certainly not carried out.
    NotDone,
    /// It may have been carried out.
    Unknown,
}

impl Attempt {
    fn explain(&self, span: &mut Span) {
        match self {
            Self::Settled(Ok(_)) => {}
            Self::Settled(Err(error)) => span.fail(error.to_string()),
            Self::NotDone => span.fail("not_done"),
            Self::Unknown => span.fail("outcome_unknown"),
        }
    }
}

impl Router {
    /// A router that follows `route`.
    pub fn new(
        route: watch::Receiver<Route>,
        config: ForwardConfig,
        ambient: Arc<dyn Ambient>,
        sessions: Arc<Sessions>,
    ) -> Self {
        let (link, way) = (Mutex::new(None), watch::Sender::new(1));
        Self { route, config: Arc::new(config), ambient, link, sessions, way, tracer: Tracer::off() }
    }

    /// The same, which notes how commands are carried where they are a part of a trace.
    pub fn with_tracer(self, tracer: Tracer) -> Self {
        Self { tracer, ..self }
    }

    /// Where commands go, and how often the way there has changed or broken.
    pub(super) fn ways(&self) -> (watch::Receiver<Route>, &watch::Sender<u64>) {
        (self.route.clone(), &self.way)
    }

    /// Commands that wait for a leader elsewhere, sent or not.
    pub fn calls(&self) -> usize {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.as_ref().map_or(0, |link| link.calls())
    }

    /// Tries until somebody has decided, the time is up, or a copy that must not be repeated is lost.
    async fn carry(&self, by: Caller, mut command: Command) -> Result<Answer, ServiceError> {
        let patience = Patience::new(&command, self.config.timeout);
        let mut route = self.route.clone();
        // Whether an earlier copy may have been carried out.
        let mut in_doubt = false;
        while let Some(target) = patience.route(&mut route).await {
            patience.shorten(&mut command);
            match self.attempt(&target, &by, &mut command, &patience).await {
                Attempt::Settled(Err(error)) if in_doubt => match after_doubt(&command, error) {
                    Attempt::Settled(outcome) => return outcome,
                    Attempt::NotDone | Attempt::Unknown => {}
                },
                Attempt::Settled(outcome) => return outcome,
                Attempt::NotDone => {}
                Attempt::Unknown if command.repeatable() => in_doubt = true,
                Attempt::Unknown => return Err(ServiceError::OutcomeUnknown),
            }
            if !patience.pause(&mut route, self.ambient.unit()).await {
                break;
            }
        }
        Err(if in_doubt { ServiceError::OutcomeUnknown } else { ServiceError::NoLeader })
    }

    async fn attempt(
        &self,
        target: &Route,
        by: &Caller,
        command: &mut Command,
        patience: &Patience,
    ) -> Attempt {
        if let Command::Attach(attach) = command
            && !self.sessions.renew(attach)
        {
            return Attempt::Settled(Err(ServiceError::NoLeader));
        }
        match target {
            Route::Here(commands) => {
                let mut command = command.clone();
                if let Command::Attach(attach) = &mut command {
                    attach.outlet = Outlet::Here(Arc::clone(&self.sessions) as Arc<dyn Deliver>);
                }
                judge(commands.execute(by.clone(), command).await)
            }
            Route::There { peer, .. } => {
                let mut span = self.tracer.here("forward.command.carry", SpanKind::Client);
                let own = span.as_ref().map(|span| span.context().clone());
                let trace = own.or_else(traces::current);
                let bytes = match codec::encode_order(by, trace.as_ref(), command) {
                    Ok(bytes) if bytes.len() > MAX_ITEM => {
                        return Attempt::Settled(Err(too_large()));
                    }
                    Ok(bytes) => bytes,
                    Err(error) => return Attempt::Settled(Err(error)),
                };
                let answer_by = patience.answer_by(self.config.answer_timeout);
                let link = self.link_to(peer);
                // Apart, so that whoever leads does not carry it along with every command.
                let call = Box::pin(link.call(Lane::of(command), bytes, patience.deadline, answer_by)).await;
                let attempt = match call {
                    Ok(Reply::Answered(bytes)) => judge(codec::decode_outcome(&bytes)),
                    Ok(Reply::NotSent) | Err(Refused::Closed) => Attempt::NotDone,
                    Ok(Reply::Unknown) => Attempt::Unknown,
                    Err(Refused::Full) => Attempt::Settled(Err(ServiceError::Overloaded)),
                };
                if let Some(span) = &mut span {
                    span.set("cortex.command", command.name());
                    span.set("server.address", peer.clone());
                    attempt.explain(span);
                }
                attempt
            }
            Route::Nowhere => Attempt::NotDone,
        }
    }

    fn link_to(&self, peer: &str) -> Arc<Link> {
        let mut current = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        match &*current {
            Some(link) if link.serves(peer) => Arc::clone(link),
            _ => {
                let link = Link::open(
                    peer.to_owned(),
                    self.route.clone(),
                    &self.config,
                    Arc::clone(&self.sessions) as Arc<dyn Deliver>,
                    self.way.clone(),
                );
                let link = Arc::new(link);
                *current = Some(Arc::clone(&link));
                link
            }
        }
    }
}

impl Commands for Router {
    fn execute(&self, by: Caller, command: Command) -> BoxFuture<'_, Result<Answer, ServiceError>> {
        self.carry(by, command).boxed()
    }

    fn way(&self) -> u64 {
        *self.way.borrow()
    }
}

/// What an outcome means for the command.
fn judge(outcome: Result<Answer, ServiceError>) -> Attempt {
    match outcome {
        Err(ServiceError::NoLeader) => Attempt::NotDone,
        Err(ServiceError::OutcomeUnknown) => Attempt::Unknown,
        outcome => Attempt::Settled(outcome),
    }
}

/// What an error means when an earlier copy may have been carried out. That nothing was done is true of
/// the last copy only. A job that is found cancelled is what a cancellation wanted, whoever did it; the
/// answer then has no job to show.
fn after_doubt(command: &Command, error: ServiceError) -> Attempt {
    match (command, error) {
        (
            Command::ApplyEvent(_, JobEvent::Cancel),
            ServiceError::Conflict(Conflict::State { from: JobStatus::Cancelled, .. }),
        ) => Attempt::Settled(Ok(Answer::ApplyEvent(Applied { repeated: true, job: None }))),
        (_, error) if error.retryable() => Attempt::NotDone,
        (_, error) => Attempt::Settled(Err(error)),
    }
}

fn too_large() -> ServiceError {
    let limit = MAX_MESSAGE >> 20;
    ServiceError::Invalid(vec![FieldError::new("body", format!("must be smaller than {limit} MiB"))])
}

/// How long a caller waits.
struct Patience {
    /// Nothing is begun after it.
    deadline: Instant,
    /// Until when a long poll waits.
    poll_until: Option<Instant>,
}

impl Patience {
    fn new(command: &Command, timeout: Duration) -> Self {
        let now = Instant::now();
        let poll_until = match command {
            Command::PollJob(poll) => Some(now + poll.wait),
            Command::ReadChanges(wanted) => Some(now + wanted.wait),
            Command::SubmitJobs(_)
            | Command::SubmitOnce(_)
            | Command::ApplyEvent(..)
            | Command::Outlook(_)
            | Command::RegisterWorker(_)
            | Command::Heartbeat(_)
            | Command::Attach(_)
            | Command::Hear(_)
            | Command::Detach(..)
            | Command::Control(_)
            | Command::ClearQueue(_)
            | Command::DrainWorker(_)
            | Command::RemoveWorker(_) => None,
        };
        Self { deadline: poll_until.unwrap_or(now) + timeout, poll_until }
    }

    /// Asks for no more than what is left of a long poll's wait.
    fn shorten(&self, command: &mut Command) {
        if let (Command::PollJob(poll), Some(until)) = (command, self.poll_until) {
            poll.wait = until.saturating_duration_since(Instant::now());
        }
    }

    /// Until when an attempt that begins now may take.
    fn answer_by(&self, answer_timeout: Duration) -> Instant {
        let now = Instant::now();
        self.poll_until.map_or(now, |until| until.max(now)) + answer_timeout
    }

    /// The route, as soon as a leader is known; nothing when the time is up or the process ends.
    async fn route(&self, route: &mut watch::Receiver<Route>) -> Option<Route> {
        let known = async { route.wait_for(Route::is_known).await.map(|route| route.clone()) };
        timeout_at(self.deadline, known).await.ok()?.ok()
    }

    /// Waits for another route, or a little while; `false` when the time is up.
    async fn pause(&self, route: &mut watch::Receiver<Route>, unit: f64) -> bool {
        let pause = SHORTEST_PAUSE_MS + unit * (LONGEST_PAUSE_MS - SHORTEST_PAUSE_MS);
        let until = Instant::now() + Duration::from_secs_f64(pause / 1_000.0);
        tokio::select! {
            biased;
            changed = route.changed() => changed.is_ok(),
            () = sleep_until(until.min(self.deadline)) => Instant::now() < self.deadline,
        }
    }
}
