//! Leaders that do as the test says, relays that can be cut, and what is sent.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cortex::domain::ambient::System;
use cortex::domain::execution::Usage;
use cortex::domain::ids::{DeliveryId, JobId, WorkerId};
use cortex::domain::transition::JobEvent;
use cortex::domain::worker::WorkerStatus;
use cortex::forward::{ForwardConfig, ForwardServer, Route, Router, keep_attached, tune, wire};
use cortex::security::Caller;
use cortex::services::command::{Answer, Applied, Command, Commands, Heartbeat, HeartbeatAnswer, PollJob};
use cortex::services::error::ServiceError;
use cortex::services::sessions::Sessions;
use futures::StreamExt;
use futures::future::{BoxFuture, FutureExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// A command as it travels.
#[derive(serde::Deserialize)]
struct Order {
    by: Caller,
    command: Command,
}

pub type Outcome = Result<Answer, ServiceError>;

/// Longest wait for anything that should happen at once.
pub const SOON: Duration = Duration::from_secs(30);

/// Answers each sign of life with the id of the worker that gave it.
pub struct Echo;

impl Commands for Echo {
    fn execute(&self, _: Caller, command: Command) -> BoxFuture<'_, Outcome> {
        async move {
            tokio::task::yield_now().await;
            Ok(echo(&command))
        }
        .boxed()
    }
}

pub fn echo(command: &Command) -> Answer {
    let Command::Heartbeat(heartbeat) = command else { panic!("only signs of life are sent here") };
    Answer::Heartbeat(HeartbeatAnswer {
        pending_jobs: vec![JobId(heartbeat.worker_id.0)],
        cancelled_jobs: vec![],
        draining: false,
    })
}

/// Waits for a job as long as it may; there is none.
pub struct Idle;

impl Commands for Idle {
    fn execute(&self, _: Caller, command: Command) -> BoxFuture<'_, Outcome> {
        async move {
            tokio::time::sleep(wait_of(&command)).await;
            Ok(Answer::PollJob(None))
        }
        .boxed()
    }
}

/// Notes how many commands each message brings.
#[derive(Clone, Default)]
pub struct Counting(pub Arc<Mutex<Vec<usize>>>);

#[tonic::async_trait]
impl wire::forward_server::Forward for Counting {
    type ExchangeStream = futures::stream::BoxStream<'static, Result<wire::Answers, tonic::Status>>;

    async fn exchange(
        &self,
        request: tonic::Request<tonic::Streaming<wire::Requests>>,
    ) -> Result<tonic::Response<Self::ExchangeStream>, tonic::Status> {
        let sizes = Arc::clone(&self.0);
        let answers = request.into_inner().map(move |message| {
            let requests = message?.requests;
            sizes.lock().unwrap().push(requests.len());
            let answers = requests.iter().map(|request| {
                let order: Order = rmp_serde::from_slice(&request.command).unwrap();
                assert_eq!(order.by, Caller::Anybody, "who asks goes along");
                let result = rmp_serde::to_vec_named(&Outcome::Ok(echo(&order.command))).unwrap().into();
                wire::Answer { id: request.id, result }
            });
            Ok(wire::Answers { answers: answers.collect(), concluding: false, deliveries: vec![] })
        });
        Ok(tonic::Response::new(answers.boxed()))
    }
}

/// Counts events.
#[derive(Default)]
pub struct Counter(pub AtomicUsize);

impl Commands for Counter {
    fn execute(&self, _: Caller, _: Command) -> BoxFuture<'_, Outcome> {
        async move {
            tokio::task::yield_now().await;
            self.0.fetch_add(1, Ordering::Relaxed);
            applied()
        }
        .boxed()
    }
}

/// Hands each command to the test, which decides what comes of it.
pub struct Scripted(mpsc::UnboundedSender<Taken>);

/// A command that a leader has taken.
pub struct Taken {
    pub command: Command,
    pub answer: oneshot::Sender<Outcome>,
}

impl Commands for Scripted {
    fn execute(&self, _: Caller, command: Command) -> BoxFuture<'_, Outcome> {
        let (answer, outcome) = oneshot::channel();
        self.0.send(Taken { command, answer }).ok().unwrap();
        async { outcome.await.unwrap_or_else(|_| resume_unwind(Box::new("dropped"))) }.boxed()
    }
}

pub fn scripted() -> (Arc<Scripted>, Script) {
    let (sender, taken) = mpsc::unbounded_channel();
    (Arc::new(Scripted(sender)), Script(taken))
}

pub struct Script(pub mpsc::UnboundedReceiver<Taken>);

impl Script {
    pub async fn next(&mut self) -> Taken {
        timeout(SOON, self.0.recv()).await.expect("a command arrives").unwrap()
    }

    pub async fn answer(&mut self, outcome: Outcome) -> Command {
        let taken = self.next().await;
        taken.answer.send(outcome).unwrap();
        taken.command
    }
}

/// A replica's peer port behind a relay that can be cut.
pub struct Replica {
    pub peer: String,
    pub leads: watch::Sender<Route>,
    /// Closes every connection and lets none through any more.
    pub cut: CancellationToken,
    /// Closes the connections that there are.
    pub breaks: watch::Sender<()>,
    pub shutdown: CancellationToken,
}

impl Replica {
    pub async fn start(route: Route, config: &ForwardConfig) -> Self {
        let (leads, follows) = watch::channel(route);
        let shutdown = CancellationToken::new();
        let server = ForwardServer::new(follows, config, shutdown.clone()).into_service();
        let peer = serve(server).await;
        let (cut, breaks) = (CancellationToken::new(), watch::Sender::new(()));
        let peer = relay(peer, cut.clone(), breaks.clone()).await;
        Self { peer, leads, cut, breaks, shutdown }
    }

    pub async fn leading(commands: Arc<dyn Commands>) -> Self {
        Self::start(Route::Here(commands), &ForwardConfig::default()).await
    }

    /// A leader whose commands the test answers.
    pub async fn scripted() -> (Self, Script) {
        let (commands, script) = scripted();
        (Self::leading(commands).await, script)
    }

    pub fn route(&self) -> Route {
        Route::There { id: 1, peer: self.peer.clone() }
    }
}

pub async fn serve<S: wire::forward_server::Forward>(
    server: wire::forward_server::ForwardServer<S>,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let connections = TcpListenerStream::new(listener);
    tokio::spawn(
        tune(tonic::transport::Server::builder()).add_service(server).serve_with_incoming(connections),
    );
    address
}

/// Passes bytes both ways until `cut`, which closes every connection and refuses new ones, or `breaks`,
/// which closes those that there are.
async fn relay(to: String, cut: CancellationToken, breaks: watch::Sender<()>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(cut.clone().run_until_cancelled_owned(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = TcpStream::connect(&to).await.unwrap();
            let (cut, mut broken) = (cut.clone(), breaks.subscribe());
            tokio::spawn(async move {
                tokio::select! {
                    () = cut.cancelled() => {}
                    _ = broken.changed() => {}
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                }
            });
        }
    }));
    address
}

/// A port that takes connections and never says a word, like that of a stopped process.
pub async fn frozen() -> (TcpListener, Route) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = listener.local_addr().unwrap().to_string();
    (listener, Route::There { id: 9, peer })
}

pub struct Follower {
    pub route: watch::Sender<Route>,
    pub router: Arc<Router>,
    pub sessions: Arc<Sessions>,
}

impl Follower {
    pub fn new(route: Route, config: ForwardConfig) -> Self {
        let follower = Self::careless(route, config);
        let (router, sessions) = (Arc::clone(&follower.router), Arc::clone(&follower.sessions));
        tokio::spawn(keep_attached(router, sessions, CancellationToken::new()));
        follower
    }

    /// One that attaches no session by itself.
    pub fn careless(route: Route, config: ForwardConfig) -> Self {
        let (route, follows) = watch::channel(route);
        let sessions = Arc::new(Sessions::default());
        let router = Router::new(follows, config, Arc::new(System), Arc::clone(&sessions));
        Self { route, router: Arc::new(router), sessions }
    }

    pub fn send(&self, command: Command) -> JoinHandle<Outcome> {
        let router = Arc::clone(&self.router);
        tokio::spawn(async move { router.execute(Caller::Anybody, command).await })
    }

    /// Waits until as many calls are under way.
    pub async fn calls(&self, expected: usize) {
        let reached = async {
            while self.router.calls() != expected {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, reached).await.unwrap_or_else(|_| panic!("{} calls", self.router.calls()));
    }
}

/// No limit but the route's changes ends a call within a test.
pub fn patient() -> ForwardConfig {
    ForwardConfig {
        timeout: Duration::from_secs(60),
        answer_timeout: Duration::from_secs(60),
        connect_timeout: Duration::from_secs(60),
        keep_alive_interval: Duration::from_secs(60),
        ..ForwardConfig::default()
    }
}

pub fn hasty() -> ForwardConfig {
    ForwardConfig { timeout: Duration::from_millis(80), ..ForwardConfig::default() }
}

pub async fn outcome(call: JoinHandle<Outcome>) -> Outcome {
    timeout(SOON, call).await.expect("the call ends").unwrap()
}

pub fn heartbeat(worker: Uuid) -> Command {
    Command::Heartbeat(Heartbeat {
        worker_id: WorkerId(worker),
        status: WorkerStatus::Idle,
        current_job_count: 0,
        current_jobs: vec![],
        usage: Usage::default(),
        loaded_models: Vec::new(),
        metadata: None,
    })
}

pub fn event(event: JobEvent) -> Command {
    Command::ApplyEvent(JobId(Uuid::from_u128(7)), event)
}

pub fn poll(wait: Duration) -> Command {
    let (worker_id, delivery) = (WorkerId(Uuid::nil()), DeliveryId(Uuid::nil()));
    Command::PollJob(PollJob { worker_id, delivery, wait })
}

pub fn wait_of(command: &Command) -> Duration {
    let Command::PollJob(poll) = command else { panic!("{command:?} is no long poll") };
    poll.wait
}

pub fn applied() -> Outcome {
    Ok(Answer::ApplyEvent(Applied { repeated: false, job: None }))
}

#[track_caller]
pub fn is_applied(outcome: &Outcome, expected: bool) {
    match outcome {
        Ok(Answer::ApplyEvent(Applied { repeated, job: None })) => assert_eq!(*repeated, expected),
        other => panic!("{other:?}"),
    }
}
