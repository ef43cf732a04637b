//! A worker's session: its stream of messages in, the stream of batches out.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use cortex_client::proto::session_report::Report;
use cortex_client::proto::{
    HeldLease, SessionHeartbeat, SessionOpening, SessionRefusal, SessionReport, SessionRequest,
    SessionResponse,
};
use futures::stream::FuturesUnordered;
use futures::{Stream, StreamExt};
use tokio::time::timeout;
use tonic::{Code, Request, Status, Streaming};

use super::jobs::{good_until, invalid, shown};
use super::parse;
use crate::api::convert;
use crate::api::gate::GoodUntil;
use crate::api::problem::status;
use crate::domain::ids::{JobId, LeaseId, WorkerId};
use crate::domain::transition::JobEvent;
use crate::domain::validate::{FieldError, Validator};
use crate::domain::worker::WorkerStatus;
use crate::services::command::Pulse;
use crate::services::error::{Conflict, ServiceError};
use crate::services::facade::Services;
use crate::services::sessions::{Batch, Closing, Session};

/// How long the first message may take.
const OPENING_WITHIN: Duration = Duration::from_secs(10);
/// Most messages of a session that are carried out at a time; beyond that nothing more is read.
const MESSAGES_IN_FLIGHT: usize = 32;
/// Most reports of one message, and most leases of an opening.
const MAX_REPORTS: usize = 1_000;
/// Each report, the lease that it ends, and what came of it.
type Heard = Vec<(u64, Option<LeaseId>, Result<(), ServiceError>)>;

/// A worker that is registered already, and the leases that it holds.
type Resumed = (WorkerId, Vec<(JobId, LeaseId)>);

/// Opens a session: reads the first message, registers or recognises the worker, attaches it to the leader.
pub(super) async fn open(
    services: &Services,
    request: Request<Streaming<SessionRequest>>,
) -> Result<SessionStream, Status> {
    let good = good_until(&request)?;
    let peer = request.remote_addr().map(|address| address.ip());
    let mut inbound = request.into_inner();
    let first = timeout(OPENING_WITHIN, inbound.message()).await;
    let first = first.map_err(|_| Status::deadline_exceeded("no opening came within 10 s"))??;
    let mut first = first.ok_or_else(|| refused("opening", "is missing: the stream ended without it"))?;
    let opening = first.opening.take();
    let opening = opening.ok_or_else(|| refused("opening", "is required in the first message"))?;
    let (worker_id, held) = match read_opening(&opening).map_err(invalid)? {
        Some(resumed) => resumed,
        None => {
            let registration = opening.registration.unwrap_or_default();
            let draft = parse::registration(registration, peer).map_err(invalid)?;
            (services.register_worker(draft).await.map_err(status)?.0.id, Vec::new())
        }
    };
    let opened = services.open_session(worker_id, held, std::mem::take(&mut first.credits)).await;
    let session = opened.map_err(status)?;
    let reader = Reader { services: services.clone(), session: Arc::clone(&session) };
    tokio::spawn(reader.read(first, inbound, good));
    Ok(SessionStream { services: services.clone(), session, greeted: false })
}

/// The worker that goes on with an earlier registration, and what it holds; nothing if it registers.
fn read_opening(opening: &SessionOpening) -> Result<Option<Resumed>, Vec<FieldError>> {
    let mut v = Validator::default();
    match (&opening.registration, opening.worker_id.is_empty()) {
        (Some(_), true) => return Ok(None),
        (None, false) => {}
        (Some(_), false) | (None, true) => v.reject("opening", "must have one of registration, worker_id"),
    }
    let worker_id = convert::id(&mut v, "opening.worker_id", &opening.worker_id);
    if opening.held.len() > MAX_REPORTS {
        v.reject("opening.held", format!("may name at most {MAX_REPORTS} leases"));
    }
    let lease = |held: &HeldLease| Some((held.job_id.parse().ok()?, held.execution_id.parse().ok()?));
    let held: Option<Vec<_>> = opening.held.iter().map(lease).collect();
    if held.is_none() {
        v.reject("opening.held", "must be UUIDs");
    }
    v.finish(Some(worker_id.zip(held)))
}

fn refused(field: &str, message: &str) -> Status {
    invalid(vec![FieldError::new(field, message)])
}

/// Takes in what the worker says.
struct Reader {
    services: Services,
    session: Arc<Session>,
}

impl Reader {
    /// Reads until the stream ends, on whichever side. Messages are begun in their order, and answered as
    /// they are done.
    async fn read(self, first: SessionRequest, mut inbound: Streaming<SessionRequest>, good: GoodUntil) {
        let mut expired = pin!(good.expired());
        let mut under_way = FuturesUnordered::new();
        under_way.push(self.hear(first));
        loop {
            tokio::select! {
                biased;
                () = self.session.closed() => return,
                () = &mut expired => {
                    // Not left to the stream: its client need not take another message, and it would never end.
                    self.services.end_session(Arc::clone(&self.session), Closing::Expired);
                    break;
                }
                Some(()) = under_way.next() => {}
                () = self.session.drained(), if !self.session.has_room() => {}
                message = inbound.message(),
                    if under_way.len() < MESSAGES_IN_FLIGHT && self.session.has_room() => match message {
                    Ok(Some(message)) => under_way.push(self.hear(message)),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(worker_id = %self.session.worker_id, %error, "A session broke.");
                        if error.code() == Code::OutOfRange {
                            self.session.close(Closing::TooLarge);
                        }
                        break;
                    }
                },
            }
        }
        // What was said is still carried out; nobody is there to be told.
        while under_way.next().await.is_some() {}
        self.session.close(Closing::Gone);
    }

    async fn hear(&self, message: SessionRequest) {
        let granted = self.session.grant(message.credits);
        let mut answers: Heard = Vec::with_capacity(message.reports.len());
        let mut places = Vec::with_capacity(message.reports.len());
        let mut events = Vec::with_capacity(message.reports.len());
        for (at, report) in message.reports.into_iter().enumerate() {
            let read = if at < MAX_REPORTS {
                read_report(&report, self.session.worker_id)
            } else {
                Err(vec![FieldError::new("reports", format!("may be at most {MAX_REPORTS}"))])
            };
            match read {
                Ok((job, event)) => {
                    places.push((report.id, ended_by(&event)));
                    events.push((job, event));
                }
                Err(errors) => answers.push((report.id, None, Err(ServiceError::Invalid(errors)))),
            }
        }
        let pulse = message.heartbeat.as_ref().map(read_heartbeat);
        match self.services.hear(&self.session, granted, events, pulse).await {
            Ok(outcomes) => {
                let outcomes = outcomes.into_iter().map(|outcome| outcome.map(drop));
                answers.extend(
                    places.into_iter().zip(outcomes).map(|((id, ends), outcome)| (id, ends, outcome)),
                );
            }
            Err(error) => answers.extend(places.into_iter().map(|(id, ends)| (id, ends, Err(error.clone())))),
        }
        if !answers.is_empty() {
            self.session.answer(answers);
        }
    }
}

fn read_report(report: &SessionReport, who: WorkerId) -> Result<(JobId, JobEvent), Vec<FieldError>> {
    if report.id == 0 {
        return Err(vec![FieldError::new("reports.id", "must be greater than 0")]);
    }
    match &report.report {
        Some(Report::Update(update)) => parse::status_update(update, Some(who)),
        Some(Report::Completion(completion)) => parse::completion(completion, Some(who)),
        None => Err(vec![FieldError::new("reports", "must have one of update, completion")]),
    }
}

/// What is wrong with a heartbeat is never worth losing a worker for.
fn read_heartbeat(heartbeat: &SessionHeartbeat) -> Pulse {
    let mut v = Validator::default();
    Pulse {
        status: heartbeat.status.parse().unwrap_or(WorkerStatus::Idle),
        usage: parse::usage(&heartbeat.metrics),
        loaded_models: convert::loaded_models(&mut v, heartbeat.loaded_models.clone()).unwrap_or_default(),
    }
}

/// The lease that a report ends, if it is accepted.
fn ended_by(event: &JobEvent) -> Option<LeaseId> {
    match event {
        JobEvent::Completed { by, .. } | JobEvent::Failed { by, .. } | JobEvent::Rejected { by, .. } => {
            by.lease
        }
        _ => None,
    }
}

/// What a worker is told, as the connection pulls it.
pub struct SessionStream {
    services: Services,
    session: Arc<Session>,
    greeted: bool,
}

impl Stream for SessionStream {
    type Item = Result<SessionResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if !self.greeted {
            self.greeted = true;
            let worker_id = self.session.worker_id.to_string();
            return Poll::Ready(Some(Ok(SessionResponse { worker_id, ..SessionResponse::default() })));
        }
        self.session.poll_batch(cx).map(|next| match next {
            Ok(batch) => Some(Ok(response(batch))),
            Err(Closing::Gone) => None,
            Err(Closing::Expired) => Some(Err(GoodUntil::status())),
            Err(Closing::TooLarge) => {
                Some(Err(Status::out_of_range("a message was larger than limits.max_body_bytes")))
            }
            Err(Closing::Replaced) => {
                Some(Err(Status::aborted("a newer session of this worker has taken over")))
            }
            Err(Closing::Removed) => {
                let removed = Conflict::Removed(self.session.worker_id.to_string());
                Some(Err(status(ServiceError::Conflict(removed))))
            }
            Err(Closing::Unknown) => Some(Err(status(ServiceError::no_worker(self.session.worker_id)))),
            Err(Closing::Stopping) => Some(Err(Status::unavailable("this replica is about to stop"))),
            Err(Closing::NoLeader) => Some(Err(status(ServiceError::NoLeader))),
        })
    }
}

impl Drop for SessionStream {
    fn drop(&mut self) {
        self.services.end_session(Arc::clone(&self.session), Closing::Gone);
    }
}

fn response(batch: Batch) -> SessionResponse {
    let lease = |(job, lease): (JobId, LeaseId)| HeldLease {
        job_id: job.to_string(),
        execution_id: lease.to_string(),
    };
    SessionResponse {
        worker_id: String::new(),
        assignments: batch.assignments.into_iter().map(|assignment| shown(*assignment)).collect(),
        acknowledged: batch.acknowledged,
        refused: batch.refused.into_iter().map(refusal).collect(),
        ended: batch.ended.into_iter().map(lease).collect(),
        draining: batch.draining,
    }
}

fn refusal((id, error): (u64, ServiceError)) -> SessionRefusal {
    // A stale lease is an answer here, not the end of the call.
    let conflict = matches!(error, ServiceError::Conflict(_));
    let status = status(error);
    let code = if conflict { Code::FailedPrecondition } else { status.code() };
    SessionRefusal { id, code: code.into(), message: status.message().to_owned() }
}
