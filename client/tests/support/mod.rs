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
        HeartbeatRequest, HeartbeatResponse, JobCompletion, JobCompletionResponse, JobStatusUpdate,
        JobStatusUpdateResponse, PollJobRequest, PollJobResponse, WorkerRegistration,
        WorkerRegistrationResponse,
        job_service_server::{JobService, JobServiceServer},
    },
};
use tokio::{
    runtime::Runtime,
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::Server};

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
    pub jobs: VecDeque<PollJobResponse>,
    pub polls: Vec<(usize, String)>,
    pub waiting_polls: usize,
    pub heartbeats: Vec<(usize, HeartbeatRequest)>,
    pub pending: Vec<String>,
    pub cancelled: Vec<String>,
    pub statuses: Vec<JobStatusUpdate>,
    pub refuse_statuses: bool,
    /// Every completion that arrived, with the replica that got it.
    pub completions: Vec<(usize, JobCompletion)>,
    /// What the next completions are answered; acknowledged when empty.
    pub completion_answers: VecDeque<Result<JobCompletionResponse, Status>>,
    pub tokens: Vec<String>,
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
    }
}

/// One gRPC server. It has a runtime of its own, so that killing it cuts its
/// connections as the death of a process would.
pub struct Replica {
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    runtime: Option<Runtime>,
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
        Self { address, mode, runtime: Some(runtime) }
    }

    pub fn set(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }

    pub fn kill(&mut self) {
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

    fn check_id(&self, id: &str) -> Result<(), Status> {
        let known = self.store.change(|memory| memory.known_ids.contains(id));
        if known { Ok(()) } else { Err(Status::not_found("no such worker")) }
    }
}

#[tonic::async_trait]
impl JobService for Service {
    async fn register_worker(
        &self,
        request: Request<WorkerRegistration>,
    ) -> Result<Response<WorkerRegistrationResponse>, Status> {
        self.gate(&request).await?;
        let id = format!("worker-{}", self.store.next_id.fetch_add(1, Ordering::Relaxed));
        let success = self.store.change(|memory| {
            memory.registrations.push(request.into_inner());
            memory.known_ids.insert(id.clone());
            !memory.refuse_registrations
        });
        Ok(Response::new(WorkerRegistrationResponse {
            worker_id: id,
            success,
            message: "as told".to_owned(),
        }))
    }

    async fn heartbeat(
        &self,
        request: Request<HeartbeatRequest>,
    ) -> Result<Response<HeartbeatResponse>, Status> {
        self.gate(&request).await?;
        let request = request.into_inner();
        self.check_id(&request.worker_id)?;
        Ok(Response::new(self.store.change(|memory| {
            memory.heartbeats.push((self.index, request));
            HeartbeatResponse {
                acknowledged: true,
                pending_jobs: memory.pending.clone(),
                cancelled_jobs: memory.cancelled.clone(),
            }
        })))
    }

    async fn poll_job(&self, request: Request<PollJobRequest>) -> Result<Response<PollJobResponse>, Status> {
        self.gate(&request).await?;
        let request = request.into_inner();
        self.check_id(&request.worker_id)?;
        let wait = Duration::from_millis(request.wait_ms.try_into().unwrap());
        let until = Instant::now() + wait;
        self.store.change(|memory| {
            memory.polls.push((self.index, request.worker_id.clone()));
            memory.waiting_polls += 1;
        });
        // Counts also when the caller goes away.
        let _waiting = Waiting(&self.store);
        let job = self.store.find(|memory| {
            if memory.known_ids.contains(&request.worker_id) {
                memory.jobs.pop_front().map(Ok)
            } else {
                Some(Err(Status::not_found("no such worker any more")))
            }
        });
        let answer = timeout_at(until, job).await.unwrap_or_else(|_| Ok(PollJobResponse::default()));
        answer.map(Response::new)
    }

    async fn update_job_status(
        &self,
        request: Request<JobStatusUpdate>,
    ) -> Result<Response<JobStatusUpdateResponse>, Status> {
        self.gate(&request).await?;
        let acknowledged = self.store.change(|memory| {
            memory.statuses.push(request.into_inner());
            !memory.refuse_statuses
        });
        Ok(Response::new(JobStatusUpdateResponse { acknowledged, message: "as told".to_owned() }))
    }

    async fn complete_job(
        &self,
        request: Request<JobCompletion>,
    ) -> Result<Response<JobCompletionResponse>, Status> {
        self.gate(&request).await?;
        let answer = self.store.change(|memory| {
            memory.completions.push((self.index, request.into_inner()));
            memory.completion_answers.pop_front()
        });
        let acknowledged = JobCompletionResponse { acknowledged: true, message: String::new() };
        answer.unwrap_or(Ok(acknowledged)).map(Response::new)
    }
}

struct Waiting<'a>(&'a Store);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.change(|memory| memory.waiting_polls -= 1);
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
        .poll_wait(Duration::from_millis(300))
}

pub fn run(builder: WorkerBuilder, handler: impl Handler) -> Running {
    let worker = builder.build().unwrap();
    let shutdown = CancellationToken::new();
    Running { task: tokio::spawn(worker.run(handler, shutdown.clone())), shutdown }
}

/// Whether the last heartbeat named a job.
pub fn holds(memory: &Memory, job_id: &str) -> bool {
    let last = memory.heartbeats.last();
    last.is_some_and(|(_, beat)| beat.current_jobs.iter().any(|id| id == job_id))
}
