//! Replicas for the tests: any number of gRPC servers over one memory, each of
//! which can be killed, frozen or made to refuse.

#![allow(dead_code, reason = "each test program uses a part of this")]

pub mod handlers;

use std::{
    collections::{HashSet, VecDeque},
    net::{SocketAddr, TcpListener},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cortex_client::{
    Handler, Identity, Worker, WorkerBuilder, WorkerError,
    proto::{
        HeartbeatRequest, HeartbeatResponse, HeldLease, JobCompletion, JobCompletionResponse,
        JobStatusUpdate, JobStatusUpdateResponse, PollJobRequest, PollJobResponse, SessionHeartbeat,
        SessionOpening, SessionRefusal, SessionRequest, SessionResponse, WorkerRegistration,
        WorkerRegistrationResponse,
        job_service_server::{JobService, JobServiceServer},
        session_report::Report,
    },
};
use tokio::{
    runtime::Runtime,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status, Streaming, transport::Server};

/// Longer than anything takes that goes well.
const PATIENCE: Duration = Duration::from_secs(20);

/// How a replica behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Serving,
    Unavailable,
    Frozen,
}

/// What the replicas remember, and what they are to answer.
#[derive(Default)]
pub struct Memory {
    pub registrations: Vec<WorkerRegistration>,
    pub known_ids: HashSet<String>,
    pub refuse_registrations: bool,
    /// Every session that was opened: the replica, and how.
    pub openings: Vec<(usize, SessionOpening)>,
    /// Sessions that are open.
    pub open: usize,
    /// Credits of the newest session.
    pub credits: u32,
    pub jobs: VecDeque<PollJobResponse>,
    /// How many jobs are still pushed whether there are credits or not.
    pub unasked: u32,
    /// Assignments pushed, with the replica that pushed them.
    pub pushed: Vec<(usize, String)>,
    pub heartbeats: Vec<(usize, SessionHeartbeat)>,
    /// Leases that have ended and of which the worker is still to be told.
    pub ended: Vec<HeldLease>,
    pub statuses: Vec<JobStatusUpdate>,
    pub refuse_statuses: bool,
    /// Every completion that arrived, with the replica that got it.
    pub completions: Vec<(usize, JobCompletion)>,
    /// What the next completions are answered; acknowledged when empty.
    pub completion_answers: VecDeque<CompletionAnswer>,
    pub tokens: Vec<String>,
}

/// What a completion is answered.
#[derive(Debug, Clone)]
pub enum CompletionAnswer {
    Refused(Code),
    /// The session breaks before the answer.
    Broken,
    /// Nothing comes.
    Silence,
}

/// The memory, and a way to wait for it to change.
pub struct Store {
    memory: Mutex<Memory>,
    changes: watch::Sender<u64>,
    next_id: AtomicU64,
}

impl Store {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            memory: Mutex::default(),
            changes: watch::Sender::new(0),
            next_id: AtomicU64::new(1),
        })
    }

    pub fn change<T>(&self, change: impl FnOnce(&mut Memory) -> T) -> T {
        let result = change(&mut self.memory.lock().unwrap());
        self.changes.send_modify(|count| *count += 1);
        result
    }

    /// A look or a change that wakes nobody.
    pub fn silently<T>(&self, look: impl FnOnce(&mut Memory) -> T) -> T {
        look(&mut self.memory.lock().unwrap())
    }

    /// Waits until something can be found, with a limit.
    pub async fn until<T>(&self, what: &str, look: impl FnMut(&mut Memory) -> Option<T>) -> T {
        timeout(PATIENCE, self.find(look)).await.unwrap_or_else(|_| panic!("this never happened: {what}"))
    }

    /// Waits until a condition holds, with a limit.
    pub async fn wait_for(&self, what: &str, mut holds: impl FnMut(&Memory) -> bool) {
        self.until(what, |memory| holds(memory).then_some(())).await;
    }

    async fn find<T>(&self, mut look: impl FnMut(&mut Memory) -> Option<T>) -> T {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            if let Some(found) = look(&mut self.memory.lock().unwrap()) {
                return found;
            }
            changes.changed().await.expect("the store holds the sender");
        }
    }

    pub fn add_job(&self, id: &str) {
        self.add(job(id));
    }

    pub fn add(&self, job: PollJobResponse) {
        self.change(|memory| memory.jobs.push_back(job));
    }
}

/// A job with the lease token `lease-ID` and attempt 2.
pub fn job(id: &str) -> PollJobResponse {
    PollJobResponse {
        has_job: true,
        job_id: id.to_owned(),
        job_name: format!("job {id}"),
        model_name: "echo".to_owned(),
        model_version: "1".to_owned(),
        input_data: format!(r#"{{"id":"{id}"}}"#).into(),
        timeout_seconds: 60,
        execution_id: format!("lease-{id}"),
        attempt_number: 2,
        ..PollJobResponse::default()
    }
}

/// One gRPC server. It has a runtime of its own, so that killing it cuts its
/// connections as the death of a process would.
pub struct Replica {
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    runtime: Option<Runtime>,
    /// Holds the thread of a frozen replica until it is dropped.
    thaw: Option<std::sync::mpsc::Sender<()>>,
}

impl Replica {
    pub fn start(index: usize, store: &Arc<Store>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let mode = watch::Sender::new(Mode::Serving);
        let service = Service { index, store: Arc::clone(store), mode: mode.subscribe() };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            Server::builder()
                .add_service(JobServiceServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self { address, mode, runtime: Some(runtime), thaw: None }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    /// Answers nothing any more, not even the connection's probes: its one thread is held up.
    pub fn freeze(&mut self) {
        let (thaw, frozen) = std::sync::mpsc::channel::<()>();
        self.thaw = Some(thaw);
        if let Some(runtime) = &self.runtime {
            runtime.spawn(async move { frozen.recv() });
        }
    }

    pub fn kill(&mut self) {
        self.thaw = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Service {
    index: usize,
    store: Arc<Store>,
    mode: watch::Receiver<Mode>,
}

impl Service {
    /// Answers only if and when this replica serves.
    async fn gate<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let token = request.metadata().get("authorization");
        if let Some(token) = token.and_then(|value| value.to_str().ok()) {
            self.store.change(|memory| memory.tokens.push(token.to_owned()));
        }
        let mut mode = self.mode.clone();
        let mode = *mode.wait_for(|mode| *mode != Mode::Frozen).await.unwrap();
        match mode {
            Mode::Unavailable => Err(Status::unavailable("no leader")),
            Mode::Serving | Mode::Frozen => Ok(()),
        }
    }

    /// Registers a worker, or recognises it.
    fn welcome(&self, opening: &SessionOpening) -> Result<String, Status> {
        self.store.change(|memory| {
            memory.openings.push((self.index, opening.clone()));
            let Some(registration) = &opening.registration else {
                return if memory.known_ids.contains(&opening.worker_id) {
                    Ok(opening.worker_id.clone())
                } else {
                    Err(Status::not_found("no such worker"))
                };
            };
            memory.registrations.push(registration.clone());
            if memory.refuse_registrations {
                return Err(Status::invalid_argument("as told"));
            }
            let id = format!("worker-{}", self.store.next_id.fetch_add(1, Ordering::Relaxed));
            memory.known_ids.insert(id.clone());
            Ok(id)
        })
    }
}

/// One session as a replica sees it.
struct Talk {
    index: usize,
    store: Arc<Store>,
    worker_id: String,
    credits: u32,
    out: mpsc::UnboundedSender<Result<SessionResponse, Status>>,
}

impl Talk {
    /// Takes a message in; `false` breaks the session.
    fn hear(&mut self, message: SessionRequest) -> bool {
        self.credits += message.credits;
        let mut answer = SessionResponse::default();
        let index = self.index;
        let goes_on = self.store.change(|memory| {
            memory.credits = self.credits;
            memory.heartbeats.extend(message.heartbeat.map(|beat| (index, beat)));
            for report in message.reports {
                match report.report.unwrap() {
                    Report::Update(update) => {
                        memory.statuses.push(update);
                        if memory.refuse_statuses {
                            answer.refused.push(refusal(report.id, Code::FailedPrecondition));
                        } else {
                            answer.acknowledged.push(report.id);
                        }
                    }
                    Report::Completion(completion) => {
                        memory.completions.push((index, completion));
                        match memory.completion_answers.pop_front() {
                            None => answer.acknowledged.push(report.id),
                            Some(CompletionAnswer::Refused(code)) => {
                                answer.refused.push(refusal(report.id, code))
                            }
                            Some(CompletionAnswer::Broken) => return false,
                            Some(CompletionAnswer::Silence) => {}
                        }
                    }
                }
            }
            true
        });
        if goes_on && answer != SessionResponse::default() {
            let _ = self.out.send(Ok(answer));
        }
        goes_on
    }

    /// Pushes what the credits allow, and endings. `Err` ends the session.
    fn push(&mut self) -> Result<(), Status> {
        let (index, credits, worker) = (self.index, &mut self.credits, &self.worker_id);
        let answer = self.store.silently(|memory| {
            if !memory.known_ids.contains(worker) {
                return Err(Status::not_found("no such worker any more"));
            }
            let mut answer =
                SessionResponse { ended: std::mem::take(&mut memory.ended), ..Default::default() };
            while (*credits > 0 || memory.unasked > 0)
                && let Some(job) = memory.jobs.pop_front()
            {
                *credits = credits.saturating_sub(1);
                memory.unasked = memory.unasked.saturating_sub(1);
                memory.credits = *credits;
                memory.pushed.push((index, job.job_id.clone()));
                answer.assignments.push(job);
            }
            Ok(answer)
        })?;
        if answer != SessionResponse::default() {
            self.store.change(|_| ());
            let _ = self.out.send(Ok(answer));
        }
        Ok(())
    }
}

fn refusal(id: u64, code: Code) -> SessionRefusal {
    SessionRefusal { id, code: code.into(), message: "as told".to_owned() }
}

#[tonic::async_trait]
impl JobService for Service {
    type SessionStream = UnboundedReceiverStream<Result<SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        self.gate(&request).await?;
        let mut inbound = request.into_inner();
        let mut first = inbound.message().await?.unwrap();
        let worker_id = self.welcome(&first.opening.take().unwrap())?;
        let (out, answers) = mpsc::unbounded_channel();
        let greeting = SessionResponse { worker_id: worker_id.clone(), ..SessionResponse::default() };
        out.send(Ok(greeting)).unwrap();
        let mut talk = Talk { index: self.index, store: Arc::clone(&self.store), worker_id, credits: 0, out };
        let mut mode = self.mode.clone();
        self.store.change(|memory| memory.open += 1);
        tokio::spawn(async move {
            let _open = Open(Arc::clone(&talk.store));
            let mut changes = talk.store.changes.subscribe();
            if !talk.hear(first) {
                return;
            }
            loop {
                changes.borrow_and_update();
                if *mode.borrow() == Mode::Serving
                    && let Err(status) = talk.push()
                {
                    let _ = talk.out.send(Err(status));
                    return;
                }
                tokio::select! {
                    message = inbound.message(), if *mode.borrow() != Mode::Frozen => match message {
                        Ok(Some(message)) => {
                            if !talk.hear(message) {
                                return;
                            }
                        }
                        Ok(None) => return,
                        Err(status) => {
                            let _ = talk.out.send(Err(status));
                            return;
                        }
                    },
                    changed = changes.changed() => changed.unwrap(),
                    changed = mode.changed() => if changed.is_err() || *mode.borrow() == Mode::Unavailable {
                        let _ = talk.out.send(Err(Status::unavailable("about to stop")));
                        return;
                    },
                }
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(answers)))
    }

    async fn register_worker(
        &self,
        _: Request<WorkerRegistration>,
    ) -> Result<Response<WorkerRegistrationResponse>, Status> {
        Err(Status::unimplemented("sessions only"))
    }

    async fn heartbeat(&self, _: Request<HeartbeatRequest>) -> Result<Response<HeartbeatResponse>, Status> {
        Err(Status::unimplemented("sessions only"))
    }

    async fn poll_job(&self, _: Request<PollJobRequest>) -> Result<Response<PollJobResponse>, Status> {
        Err(Status::unimplemented("sessions only"))
    }

    async fn update_job_status(
        &self,
        _: Request<JobStatusUpdate>,
    ) -> Result<Response<JobStatusUpdateResponse>, Status> {
        Err(Status::unimplemented("sessions only"))
    }

    async fn complete_job(
        &self,
        _: Request<JobCompletion>,
    ) -> Result<Response<JobCompletionResponse>, Status> {
        Err(Status::unimplemented("sessions only"))
    }
}

/// Counts an open session until it ends.
struct Open(Arc<Store>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.change(|memory| memory.open -= 1);
    }
}

/// A worker that runs in the background.
pub struct Running {
    pub shutdown: CancellationToken,
    task: JoinHandle<Result<(), WorkerError>>,
}

impl Running {
    /// Waits for the worker's end, with a limit.
    pub async fn ended(self) -> Result<(), WorkerError> {
        timeout(PATIENCE, self.task).await.expect("the worker did not end").expect("the worker panicked")
    }

    /// Shuts the worker down and expects a clean end.
    pub async fn stop(self) {
        self.shutdown.cancel();
        self.ended().await.unwrap();
    }

    /// Drops the worker.
    pub async fn drop_now(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Settings for a quick worker with an identity of its own.
pub fn worker(replicas: &[&Replica]) -> WorkerBuilder {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("test-{}-{count}", std::process::id());
    let endpoints: Vec<_> = replicas.iter().map(|r| r.address.to_string()).collect();
    Worker::builder()
        .endpoints(endpoints.join(","))
        .identity(Identity::reserve(&name).unwrap())
        .heartbeat_period(Duration::from_millis(20))
}

pub fn run(builder: WorkerBuilder, handler: impl Handler) -> Running {
    let worker = builder.build().unwrap();
    let shutdown = CancellationToken::new();
    Running { task: tokio::spawn(worker.run(handler, shutdown.clone())), shutdown }
}

/// Whether the newest session was opened as one that holds this job.
pub fn holds(memory: &Memory, job_id: &str) -> bool {
    let last = memory.openings.last();
    last.is_some_and(|(_, opening)| opening.held.iter().any(|held| held.job_id == job_id))
}

/// The lease of a job as `job` makes it.
pub fn lease(job_id: &str) -> HeldLease {
    HeldLease { job_id: job_id.to_owned(), execution_id: format!("lease-{job_id}") }
}
