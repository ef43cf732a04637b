//! The leader's end: runs what followers send, as long as this replica leads.

use std::collections::{HashMap, VecDeque};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, Stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::metadata::MetadataMap;
use tonic::{Response, Status, Streaming};

use super::codec::{self, Order};
use super::config::{ForwardConfig, Limits};
use super::route::Route;
use super::watch;
use super::wire::forward_server::{Forward, ForwardServer as Service};
use super::wire::{self, Answers, Lane, MAX_ITEM, MAX_MESSAGE, Requests, SECRET_HEADER};
use crate::services::command::{Answer, Command, Commands, Deliver, Delivery, Outlet};
use crate::services::error::ServiceError;
use crate::telemetry::traces;

/// Receive window of a follower's stream, in bytes.
const STREAM_WINDOW: u32 = 2 << 20;
/// Receive window of a follower's connection, in bytes.
const CONNECTION_WINDOW: u32 = 4 << 20;
/// How often a silent follower is probed, and how long a probe may stay unanswered.
const KEEP_ALIVE: Duration = Duration::from_secs(1);

/// Runs followers' commands when this replica leads, and says that it does not lead otherwise.
pub struct ForwardServer {
    route: watch::Receiver<Route>,
    secret: Option<String>,
    limits: Limits,
    shutdown: CancellationToken,
}

/// Settings of the peer port's server that forwarding wants: no delay, large windows, dead followers
/// noticed. A listener that is handed over as a stream of connections needs its own `TCP_NODELAY`.
pub fn tune(server: tonic::transport::Server) -> tonic::transport::Server {
    server
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE))
}

impl ForwardServer {
    /// Runs commands wherever `route` is [`Route::Here`]. After `shutdown` each stream takes nothing
    /// new, answers what it has begun and ends once the follower has seen that; long polls are sent away.
    pub fn new(route: watch::Receiver<Route>, config: &ForwardConfig, shutdown: CancellationToken) -> Self {
        Self { route, secret: config.secret.clone(), limits: config.limits.clone(), shutdown }
    }

    /// The service to add to the peer port.
    pub fn into_service(self) -> Service<Self> {
        Service::new(self).max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
    }

    fn admit(&self, metadata: &MetadataMap) -> Result<(), Status> {
        let Some(secret) = &self.secret else { return Ok(()) };
        let shown = metadata.get(SECRET_HEADER).map(|value| value.as_bytes()).unwrap_or_default();
        if same(secret.as_bytes(), shown) {
            Ok(())
        } else {
            Err(Status::permission_denied("cluster.secret does not match"))
        }
    }
}

/// Compares without telling by its duration how much was right.
fn same(own: &[u8], shown: &[u8]) -> bool {
    let differences = own.iter().zip(shown).fold(0, |differences, (own, shown)| differences | (own ^ shown));
    own.len() == shown.len() && differences == 0
}

#[tonic::async_trait]
impl Forward for ForwardServer {
    type ExchangeStream = Answering;

    async fn exchange(
        &self,
        request: tonic::Request<Streaming<Requests>>,
    ) -> Result<Response<Answering>, Status> {
        self.admit(request.metadata())?;
        if self.shutdown.is_cancelled() {
            return Err(Status::unavailable("this replica is about to stop"));
        }
        let answers = Arc::new(AnswerQueue::new(&self.limits));
        let exchange = Exchange {
            route: self.route.clone(),
            served: OnceLock::new(),
            slots: std::array::from_fn(|_| Arc::new(Semaphore::new(self.limits.in_flight))),
            running: TaskTracker::new(),
            polls: Arc::default(),
            answers: Arc::clone(&answers),
        };
        tokio::spawn(exchange.serve(request.into_inner(), self.shutdown.clone()));
        Ok(Response::new(Answering(answers)))
    }
}

/// One follower's stream.
struct Exchange {
    route: watch::Receiver<Route>,
    /// The leadership that runs the stream's commands; no other one ever does.
    served: OnceLock<Arc<dyn Commands>>,
    /// Places for commands that run, per lane.
    slots: [Arc<Semaphore>; 3],
    running: TaskTracker,
    /// How to send away the long polls that run.
    polls: Arc<Polls>,
    answers: Arc<AnswerQueue>,
}

impl Exchange {
    async fn serve(self, mut requests: Streaming<Requests>, shutdown: CancellationToken) {
        let connected = tokio::select! {
            biased;
            () = shutdown.cancelled() => true,
            () = self.superseded() => true,
            () = self.read(&mut requests, |exchange| exchange.leader()) => false,
        };
        self.polls.send_away();
        self.running.close();
        if connected {
            // What is on its way is refused, so that nobody is left in doubt about it.
            self.answers.conclude();
            self.read(&mut requests, |_| None).await;
        }
        self.running.wait().await;
        self.answers.finish();
    }

    /// Takes messages until the follower is gone or behaves badly. Cancel safe.
    async fn read(
        &self,
        requests: &mut Streaming<Requests>,
        leader: impl Fn(&Self) -> Option<Arc<dyn Commands>>,
    ) {
        while self.answers.has_room() {
            match requests.message().await {
                Ok(Some(message)) => self.take(message, leader(self)),
                Ok(None) => return,
                Err(error) => return tracing::debug!(%error, "A follower's stream broke."),
            }
        }
        tracing::warn!("A follower sends more commands than it may and fetches no answers.");
    }

    fn leader(&self) -> Option<Arc<dyn Commands>> {
        let Route::Here(present) = &*self.route.borrow() else { return None };
        let served = self.served.get_or_init(|| Arc::clone(present));
        Arc::ptr_eq(served, present).then(|| Arc::clone(served))
    }

    /// Resolves when the leadership that the stream has served is over. The next one knows nothing of the
    /// follower's sessions, even if it is this replica's again: the follower learns that by the stream's end.
    async fn superseded(&self) {
        let over = |now: &Route| match (self.served.get(), now) {
            (None, _) => false,
            (Some(served), Route::Here(present)) => !Arc::ptr_eq(served, present),
            (Some(_), Route::There { .. } | Route::Nowhere) => true,
        };
        let mut route = self.route.clone();
        if route.wait_for(over).await.is_err() {
            // The process is ending.
            std::future::pending().await
        }
    }

    /// Begins the commands of a message, or says that nobody leads here.
    fn take(&self, message: Requests, leader: Option<Arc<dyn Commands>>) {
        for request in message.requests {
            let lane = Lane::try_from(request.lane).unwrap_or(Lane::Prompt);
            let Some(leader) = &leader else {
                self.answers.push(request.id, &Err(ServiceError::NoLeader), None);
                continue;
            };
            match Arc::clone(&self.slots[lane.index()]).try_acquire_owned() {
                Ok(slot) => self.begin(Arc::clone(leader), request, lane, slot),
                Err(_) => self.answers.push(request.id, &Err(ServiceError::Overloaded), None),
            }
        }
        for id in message.abandoned {
            self.polls.abandon(id);
        }
    }

    /// Runs a command. Long polls end when nobody waits for them any more; writes always run to their end.
    fn begin(
        &self,
        leader: Arc<dyn Commands>,
        request: wire::Request,
        lane: Lane,
        slot: OwnedSemaphorePermit,
    ) {
        let answers = Arc::clone(&self.answers);
        let id = request.id;
        if lane != Lane::Wait {
            let outlet = Outlet::Elsewhere(Arc::clone(&self.answers) as Arc<dyn Deliver>);
            self.running.spawn(async move {
                let outcome = run(leader, request.command, outlet).await;
                answers.push(id, &outcome, Some(slot));
            });
            return;
        }
        let polls = Arc::clone(&self.polls);
        let stop = polls.register(id);
        self.running.spawn(async move {
            let outcome = stop.run_until_cancelled(run(leader, request.command, Outlet::default())).await;
            polls.abandon(id);
            // A job may have been fetched for it; the same call finds it again.
            answers.push(id, &outcome.unwrap_or(Err(ServiceError::OutcomeUnknown)), Some(slot));
        });
    }
}

/// Runs one command; a panic is an answer too. Sessions of the follower are reached through `outlet`.
async fn run(leader: Arc<dyn Commands>, command: Bytes, outlet: Outlet) -> Result<Answer, ServiceError> {
    let Order { by, trace, mut command } = codec::decode_order(&command)?;
    if let Command::Attach(attach) = &mut command {
        attach.outlet = outlet;
    }
    let name = command.name();
    // The future is not polled again after a panic, so nothing half changed is seen.
    let work = traces::scope(trace, leader.execute(by, command));
    let outcome = AssertUnwindSafe(work).catch_unwind().await;
    outcome.unwrap_or_else(|_| {
        tracing::error!(command = name, "A command panicked.");
        Err(ServiceError::Internal)
    })
}

/// The long polls of a stream.
#[derive(Default)]
struct Polls {
    all: CancellationToken,
    running: Mutex<HashMap<u64, CancellationToken>>,
}

impl Polls {
    fn register(&self, id: u64) -> CancellationToken {
        let stop = self.all.child_token();
        self.lock().insert(id, stop.clone());
        stop
    }

    fn abandon(&self, id: u64) {
        let stop = self.lock().remove(&id);
        if let Some(stop) = stop {
            stop.cancel();
        }
    }

    fn send_away(&self) {
        self.all.cancel();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, CancellationToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers that wait for the connection to take them.
struct AnswerQueue {
    batch: usize,
    batch_bytes: usize,
    /// Most answers that may wait: one for each place, and as many refusals.
    room: usize,
    inner: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    answers: VecDeque<(wire::Answer, Option<OwnedSemaphorePermit>)>,
    /// For the follower's sessions; bounded by their credits.
    deliveries: VecDeque<Delivery>,
    /// The follower is to be told that nothing new is taken.
    concluding: bool,
    /// No answer will follow.
    finished: bool,
    /// The follower has gone.
    deserted: bool,
    sender: Option<Waker>,
}

impl AnswerQueue {
    fn new(limits: &Limits) -> Self {
        Self {
            batch: Lane::ALL.len() * limits.batch,
            batch_bytes: Lane::ALL.len() * limits.batch_bytes,
            room: 2 * Lane::ALL.len() * limits.in_flight,
            inner: Mutex::default(),
        }
    }

    /// Adds an answer. Its command keeps its place until the answer is on its way.
    fn push(&self, id: u64, outcome: &Result<Answer, ServiceError>, slot: Option<OwnedSemaphorePermit>) {
        let mut result = codec::encode_outcome(outcome);
        if result.len() > MAX_ITEM {
            tracing::error!(bytes = result.len(), "An answer is too large to be sent to a follower.");
            result = codec::encode_outcome(&Err(ServiceError::Internal));
        }
        let answer = wire::Answer { id, result };
        let mut waiting = self.lock();
        if !waiting.deserted {
            waiting.answers.push_back((answer, slot));
        }
        wake(waiting);
    }

    fn has_room(&self) -> bool {
        self.lock().answers.len() <= self.room
    }

    fn conclude(&self) {
        let mut waiting = self.lock();
        waiting.concluding = true;
        wake(waiting);
    }

    fn finish(&self) {
        let mut waiting = self.lock();
        waiting.finished = true;
        wake(waiting);
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deliver for AnswerQueue {
    fn deliver(&self, delivery: Delivery) -> bool {
        let mut waiting = self.lock();
        if waiting.deserted || waiting.finished {
            return false;
        }
        waiting.deliveries.push_back(delivery);
        wake(waiting);
        true
    }
}

/// Wakes the connection, after the lock was given back.
fn wake(mut waiting: MutexGuard<'_, Waiting>) {
    let sender = waiting.sender.take();
    drop(waiting);
    if let Some(sender) = sender {
        sender.wake();
    }
}

/// The answers of a stream, as the connection pulls them: each message holds all that has come together.
pub struct Answering(Arc<AnswerQueue>);

impl Stream for Answering {
    type Item = Result<Answers, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let queue = &self.0;
        let mut waiting = queue.lock();
        let mut answers = Vec::new();
        let mut bytes = 0;
        while answers.len() < queue.batch {
            // A large answer goes alone, so that no message is larger than the largest answer.
            let fits = |(next, _): &mut (wire::Answer, _)| {
                bytes == 0 || bytes + next.result.len() <= queue.batch_bytes
            };
            let Some((answer, slot)) = waiting.answers.pop_front_if(fits) else { break };
            bytes += answer.result.len();
            answers.push(answer);
            drop(slot);
        }
        let mut deliveries = Vec::new();
        while deliveries.len() < queue.batch && (bytes == 0 || bytes < queue.batch_bytes) {
            let Some(delivery) = waiting.deliveries.pop_front() else { break };
            if let Some(encoded) = codec::encode_delivery(&delivery) {
                bytes += encoded.len();
                deliveries.push(encoded);
            }
        }
        let concluding = std::mem::take(&mut waiting.concluding);
        if concluding || !answers.is_empty() || !deliveries.is_empty() {
            return Poll::Ready(Some(Ok(Answers { answers, concluding, deliveries })));
        }
        if waiting.finished {
            return Poll::Ready(None);
        }
        waiting.sender = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        let mut waiting = self.0.lock();
        waiting.deserted = true;
        waiting.answers.clear();
        waiting.deliveries.clear();
    }
}
