//! Workers that poll, one call at a time, and do on purpose what a well-made worker never does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use cortex_client::proto::job_service_client::JobServiceClient;
use cortex_client::proto::{
    HeartbeatRequest, JobCompletion, JobStatusUpdate, PollJobRequest, PollJobResponse, WorkerRegistration,
};
use futures::future::join_all;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use uuid::Uuid;

use super::{Plan, Shared, pause};
use crate::cluster::Cluster;
use crate::draw::Draw;
use crate::history::{Act, Ending, Says};

/// First port that identifies them.
const PORTS: u16 = 2000;
/// How often they give a sign of life: more often than they must.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long one poll waits for a job.
const WAIT_MS: i32 = 500;
/// Longest wait for any answer but a poll's.
const ANSWER_WITHIN: Duration = Duration::from_secs(3);
/// Pause after a call that failed.
const AGAIN_AFTER: Duration = Duration::from_millis(100);
/// A report is given up after so many attempts; the lease has run out by then.
const MOST_REPORTS: usize = 200;

type Client = JobServiceClient<InterceptedService<Channel, Bearer>>;

/// Puts the worker's token on every call.
#[derive(Clone)]
struct Bearer(MetadataValue<tonic::metadata::Ascii>);

impl tonic::service::Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

/// One worker.
pub struct Poller {
    inner: Arc<Inner>,
    tasks: Vec<JoinHandle<()>>,
}

struct Inner {
    shared: Arc<Shared>,
    name: String,
    registration: WorkerRegistration,
    clients: Vec<Client>,
    /// Which replica it talks to.
    replica: AtomicUsize,
    id: tokio::sync::RwLock<String>,
    /// Neither heartbeats nor reports leave it.
    dead: AtomicBool,
    tally: Tally,
}

/// What it has done so far.
#[derive(Default)]
struct Tally {
    /// Jobs that it has now.
    hands: AtomicUsize,
    /// Next completions that are to be sent to all replicas at once.
    thrice: AtomicUsize,
    same: AtomicUsize,
    different: AtomicUsize,
    refused: AtomicUsize,
    taken: AtomicUsize,
}

impl Poller {
    /// Starts the worker with this number.
    pub(super) fn start(shared: &Arc<Shared>, number: usize, slots: usize, stop: &CancellationToken) -> Self {
        let name = format!("poller-{number}");
        let token = format!("Bearer {}", shared.cluster.tokens().worker);
        let bearer = Bearer(token.parse().unwrap_or_else(|_| MetadataValue::from_static("")));
        let client =
            |index| JobServiceClient::with_interceptor(channel(&shared.cluster, index), bearer.clone());
        let registration = WorkerRegistration {
            name: name.clone(),
            hostname: "chaos".to_owned(),
            ip_address: "127.0.0.1".to_owned(),
            port: i32::from(PORTS) + i32::try_from(number).unwrap_or(0),
            max_concurrent_jobs: i32::try_from(slots).unwrap_or(1),
            // The least that is accepted.
            heartbeat_interval_seconds: 5,
            ..WorkerRegistration::default()
        };
        let inner = Arc::new(Inner {
            clients: (0..shared.cluster.size()).map(client).collect(),
            replica: AtomicUsize::new(number % shared.cluster.size()),
            shared: Arc::clone(shared),
            name,
            registration,
            id: tokio::sync::RwLock::default(),
            dead: AtomicBool::new(false),
            tally: Tally::default(),
        });
        let mut tasks = vec![tokio::spawn(Arc::clone(&inner).give_signs_of_life(stop.clone()))];
        let draw = |slot| shared.draw(&format!("{}-{slot}", inner.name));
        tasks.extend((0..slots).map(|slot| tokio::spawn(Arc::clone(&inner).work(draw(slot), stop.clone()))));
        Self { inner, tasks }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Its id at the cluster; empty until it is registered.
    pub async fn id(&self) -> String {
        self.inner.id.read().await.clone()
    }

    /// Makes it silent: it goes on working, and nothing that it says leaves it, until it wakes up again.
    pub fn play_dead(&self, dead: bool) {
        self.inner.dead.store(dead, Ordering::Release);
    }

    /// Whether it is silent.
    pub fn plays_dead(&self) -> bool {
        self.inner.dead.load(Ordering::Acquire)
    }

    /// How many jobs it has.
    pub fn hands(&self) -> usize {
        self.inner.tally.hands.load(Ordering::Acquire)
    }

    /// Reports under lost leases that were refused so far, and those that were not.
    pub fn stale_reports(&self) -> (usize, usize) {
        (self.inner.tally.refused.load(Ordering::Acquire), self.inner.tally.taken.load(Ordering::Acquire))
    }

    /// Has it send its next completions, so many, to all replicas at once.
    pub fn report_everywhere(&self, count: usize) {
        self.inner.tally.thrice.store(count, Ordering::Release);
    }

    /// Completions that were sent everywhere so far: with the same answer from all that answered, and with different ones.
    pub fn reported_everywhere(&self) -> (usize, usize) {
        (self.inner.tally.same.load(Ordering::Acquire), self.inner.tally.different.load(Ordering::Acquire))
    }

    /// Waits until it has given back what it had.
    pub(super) async fn stop(self) {
        join_all(self.tasks).await;
    }
}

impl Inner {
    fn client(&self) -> (usize, Client) {
        let replica = self.replica.load(Ordering::Relaxed);
        (replica, self.clients[replica].clone())
    }

    /// Turns to the next replica, unless somebody has already.
    fn turn_from(&self, replica: usize) {
        let next = (replica + 1) % self.clients.len();
        let _ = self.replica.compare_exchange(replica, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    async fn register(&self) -> bool {
        let (replica, mut client) = self.client();
        let call = client.register_worker(self.registration.clone());
        match tokio::time::timeout(ANSWER_WITHIN, call).await {
            Ok(Ok(answer)) => {
                let id = answer.into_inner().worker_id;
                self.shared
                    .recorder
                    .act(&self.name, Act::Attached { id: id.clone(), replica: Some(replica) });
                *self.id.write().await = id;
                true
            }
            _ => {
                self.turn_from(replica);
                false
            }
        }
    }

    async fn give_signs_of_life(self: Arc<Self>, stop: CancellationToken) {
        while !self.register().await {
            if !pause(AGAIN_AFTER, &stop).await {
                return;
            }
        }
        while pause(HEARTBEAT, &stop).await {
            if self.dead.load(Ordering::Acquire) {
                continue;
            }
            let (replica, mut client) = self.client();
            let request = HeartbeatRequest {
                worker_id: self.id.read().await.clone(),
                status: "busy".to_owned(),
                ..HeartbeatRequest::default()
            };
            match tokio::time::timeout(ANSWER_WITHIN, client.heartbeat(request)).await {
                Ok(Ok(_)) => {}
                Ok(Err(status)) if is_forgotten(&status) => {
                    self.register().await;
                }
                _ => self.turn_from(replica),
            }
        }
    }

    async fn work(self: Arc<Self>, mut draw: Draw, stop: CancellationToken) {
        while !stop.is_cancelled() {
            let worker_id = self.id.read().await.clone();
            if worker_id.is_empty() || self.dead.load(Ordering::Acquire) {
                pause(AGAIN_AFTER, &stop).await;
                continue;
            }
            let (replica, mut client) = self.client();
            let poll = client.poll_job(PollJobRequest { worker_id, wait_ms: WAIT_MS });
            match tokio::time::timeout(ANSWER_WITHIN, poll).await {
                Ok(Ok(answer)) => {
                    let job = answer.into_inner();
                    if job.has_job {
                        self.run(&job, &mut draw).await;
                    }
                }
                Ok(Err(status)) if is_forgotten(&status) => {
                    self.register().await;
                    pause(AGAIN_AFTER, &stop).await;
                }
                _ => {
                    self.turn_from(replica);
                    pause(AGAIN_AFTER, &stop).await;
                }
            }
        }
    }

    async fn run(&self, job: &PollJobResponse, draw: &mut Draw) {
        self.tally.hands.fetch_add(1, Ordering::AcqRel);
        self.follow_plan(job, draw).await;
        self.tally.hands.fetch_sub(1, Ordering::AcqRel);
    }

    async fn follow_plan(&self, job: &PollJobResponse, draw: &mut Draw) {
        let id = |text: &str| Uuid::parse_str(text).unwrap_or_default();
        let (id, lease) = (id(&job.job_id), id(&job.execution_id));
        let Ok(plan) = serde_json::from_slice::<Plan>(&job.input_data) else { return };
        let act = |act| self.shared.recorder.act(&self.name, act);
        act(Act::Start { job: id, lease, attempt: job.attempt_number, number: plan.number });
        self.shared.start();
        let dead = self.dead.load(Ordering::Acquire);
        let mine = if dead { None } else { self.report(job, Says::Running, false).await };
        sleep(plan.work()).await;
        if plan.poison {
            act(Act::End { job: id, lease, end: Ending::Crashed });
            self.dead.store(true, Ordering::Release);
            return;
        }
        if mine == Some(false) {
            act(Act::End { job: id, lease, end: Ending::Cancelled });
            return;
        }
        let fails = job.attempt_number <= plan.fails;
        let (end, says) = if fails {
            (Ending::Failure, Says::Failure)
        } else {
            (Ending::Success, Says::Success(plan.number))
        };
        act(Act::End { job: id, lease, end });
        let was_dead = self.dead.load(Ordering::Acquire);
        while self.dead.load(Ordering::Acquire) {
            sleep(AGAIN_AFTER).await;
        }
        let thrice = !was_dead && !fails && self.takes_a_turn();
        let early = if thrice { self.report_at_all(job, &says).await } else { None };
        let answer = match early {
            Some(answer) => Some(answer),
            None => self.report(job, says.clone(), was_dead).await,
        };
        match answer {
            Some(false) if was_dead => self.tally.refused.fetch_add(1, Ordering::AcqRel),
            Some(true) if was_dead => self.tally.taken.fetch_add(1, Ordering::AcqRel),
            _ => 0,
        };
        if answer != Some(true) || fails {
            return;
        }
        act(Act::Effect { job: id, lease, number: plan.number });
        match draw.index(10) {
            // The same again, at all replicas at once.
            0 => {
                let again = (0..self.clients.len()).map(|replica| self.report_at(replica, job, &says, false));
                join_all(again).await;
            }
            // Something else.
            1 => {
                self.report_at(self.client().0, job, &Says::Failure, false).await;
            }
            _ => {}
        }
    }

    /// Whether the next completion is to go everywhere.
    fn takes_a_turn(&self) -> bool {
        let less = |left: usize| left.checked_sub(1);
        self.tally.thrice.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).is_ok()
    }

    /// Reports the same to all replicas at once; says what they answered, if one did and all that did agree.
    async fn report_at_all(&self, job: &PollJobResponse, says: &Says) -> Option<bool> {
        let reports = (0..self.clients.len()).map(|replica| self.report_at(replica, job, says, false));
        let answers: Vec<bool> = join_all(reports).await.into_iter().flatten().collect();
        let first = *answers.first()?;
        if answers.iter().any(|answer| *answer != first) {
            self.tally.different.fetch_add(1, Ordering::AcqRel);
            return None;
        }
        if answers.len() > 1 {
            self.tally.same.fetch_add(1, Ordering::AcqRel);
        }
        Some(first)
    }

    /// Reports until somebody answers; says whether the report was acknowledged, if it was answered at all.
    async fn report(&self, job: &PollJobResponse, says: Says, stale: bool) -> Option<bool> {
        for _ in 0..MOST_REPORTS {
            let replica = self.client().0;
            if let Some(acknowledged) = self.report_at(replica, job, &says, stale).await {
                return Some(acknowledged);
            }
            self.turn_from(replica);
            sleep(AGAIN_AFTER).await;
        }
        None
    }

    /// Reports once, at this replica.
    async fn report_at(
        &self,
        replica: usize,
        job: &PollJobResponse,
        says: &Says,
        stale: bool,
    ) -> Option<bool> {
        let recorder = &self.shared.recorder;
        let report = recorder.number();
        let id = |text: &str| Uuid::parse_str(text).unwrap_or_default();
        let (id, lease) = (id(&job.job_id), id(&job.execution_id));
        let said = says.clone();
        let act = Act::Report { report, job: id, lease, says: said, replica: Some(replica), stale };
        recorder.act(&self.name, act);
        let answer = tokio::time::timeout(ANSWER_WITHIN, self.say(replica, job, says)).await;
        let (acknowledged, why) = match answer {
            Ok(Ok((acknowledged, why))) => (Some(acknowledged), why),
            // Refused for good, whatever the words.
            Ok(Err(status))
                if matches!(status.code(), Code::FailedPrecondition | Code::NotFound | Code::Aborted) =>
            {
                (Some(false), status.message().to_owned())
            }
            Ok(Err(status)) => (None, status.to_string()),
            Err(_) => (None, "no answer in time".to_owned()),
        };
        recorder.act(&self.name, Act::Answer { report, acknowledged, why });
        acknowledged
    }

    async fn say(
        &self,
        replica: usize,
        job: &PollJobResponse,
        says: &Says,
    ) -> Result<(bool, String), Status> {
        let mut client = self.clients[replica].clone();
        let worker_id = self.id.read().await.clone();
        let completion = JobCompletion {
            job_id: job.job_id.clone(),
            worker_id: worker_id.clone(),
            execution_id: job.execution_id.clone(),
            attempt_number: job.attempt_number,
            ..JobCompletion::default()
        };
        let completion = match says {
            Says::Running => {
                let update = JobStatusUpdate {
                    job_id: job.job_id.clone(),
                    worker_id,
                    status: "running".to_owned(),
                    execution_id: job.execution_id.clone(),
                    attempt_number: job.attempt_number,
                    ..JobStatusUpdate::default()
                };
                let answer = client.update_job_status(update).await?.into_inner();
                return Ok((answer.acknowledged, answer.message));
            }
            Says::Success(number) => JobCompletion {
                success: true,
                output_data: json!({"result": number}).to_string().into(),
                ..completion
            },
            Says::Failure => JobCompletion {
                error_message: "as planned".to_owned(),
                error_code: "planned".to_owned(),
                ..completion
            },
        };
        let answer = client.complete_job(completion).await?.into_inner();
        Ok((answer.acknowledged, answer.message))
    }
}

/// Connects to a replica with the first call.
pub(super) fn channel(cluster: &Cluster, replica: usize) -> Channel {
    let url = cluster.grpc(replica);
    let endpoint = Endpoint::from_shared(url).unwrap_or_else(|_| Endpoint::from_static("http://127.0.0.1:1"));
    endpoint.connect_timeout(Duration::from_secs(1)).connect_lazy()
}

/// Whether the cluster asks the worker to register again.
fn is_forgotten(status: &Status) -> bool {
    matches!(status.code(), Code::NotFound | Code::FailedPrecondition)
}
