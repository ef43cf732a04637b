//! A worker's end of a session, spoken by hand.

use std::time::Duration;

use cortex_client::proto::session_report::Report;
use cortex_client::proto::{
    HeldLease, JobCompletion, JobStatusUpdate, PollJobResponse, SessionHeartbeat, SessionOpening,
    SessionReport, SessionRequest, SessionResponse, WorkerRegistration,
};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::group::Api;
use crate::hand::connect;

/// Longest wait for a message.
pub const SOON: Duration = Duration::from_secs(30);

/// A worker's end of a stream.
pub struct Talk {
    pub worker_id: String,
    pub out: mpsc::UnboundedSender<SessionRequest>,
    pub messages: Streaming<SessionResponse>,
    /// All that was said so far and not yet looked for.
    pub said: SessionResponse,
}

impl Talk {
    /// Opens a stream and waits until it is open.
    pub async fn open(api: &Api, replica: usize, first: SessionRequest) -> Result<Self, Status> {
        let (out, requests) = mpsc::unbounded_channel();
        out.send(first).unwrap();
        let requests = UnboundedReceiverStream::new(requests);
        let mut messages = connect(api, replica).await.session(requests).await?.into_inner();
        let said = messages.message().await?.expect("a first message");
        Ok(Self { worker_id: said.worker_id.clone(), out, messages, said })
    }

    /// Registers a worker for this test's jobs alone.
    pub async fn register(api: &Api, replica: usize, slots: i32, credits: u32) -> Self {
        let opening =
            SessionOpening { registration: Some(registration(api, slots)), ..SessionOpening::default() };
        let first = SessionRequest { opening: Some(opening), credits, ..SessionRequest::default() };
        Self::open(api, replica, first).await.unwrap()
    }

    /// Goes on with a registration.
    pub async fn resume(api: &Api, replica: usize, worker_id: &str, held: &[&PollJobResponse]) -> Self {
        Self::open(api, replica, resumed(worker_id, held)).await.unwrap()
    }

    pub fn say(&self, message: SessionRequest) {
        self.out.send(message).unwrap();
    }

    pub fn credits(&self, credits: u32) {
        self.say(SessionRequest { credits, ..SessionRequest::default() });
    }

    pub fn report(&self, id: u64, report: impl Into<Option<Report>>) {
        let reports = vec![SessionReport { id, report: report.into() }];
        self.say(SessionRequest { reports, ..SessionRequest::default() });
    }

    pub fn beat(&self, status: &str) {
        let heartbeat = SessionHeartbeat { status: status.to_owned(), ..SessionHeartbeat::default() };
        self.say(SessionRequest { heartbeat: Some(heartbeat), ..SessionRequest::default() });
    }

    /// Listens until `wanted` finds what it looks for in all that was said, and takes that out.
    pub async fn hear<T>(&mut self, what: &str, wanted: impl Fn(&mut SessionResponse) -> Option<T>) -> T {
        loop {
            if let Some(found) = wanted(&mut self.said) {
                break found;
            }
            let message = timeout(SOON, self.messages.message()).await;
            let message = message.unwrap_or_else(|_| panic!("{what}: nothing came, but {:?}", self.said));
            let message = message.unwrap().expect("the stream goes on");
            assert!(message.worker_id.is_empty(), "said once");
            prost::Message::merge(&mut self.said, &*prost::Message::encode_to_vec(&message)).unwrap();
        }
    }

    pub async fn job(&mut self) -> PollJobResponse {
        let job = self
            .hear("an assignment", |said| (!said.assignments.is_empty()).then(|| said.assignments.remove(0)));
        let job = job.await;
        assert!(job.has_job);
        job
    }

    pub async fn acknowledged(&mut self, id: u64) {
        self.hear("an acknowledgement", |said| {
            assert!(said.refused.iter().all(|refused| refused.id != id), "{:?}", said.refused);
            let at = said.acknowledged.iter().position(|report| *report == id)?;
            Some(said.acknowledged.remove(at))
        })
        .await;
    }

    pub async fn refused(&mut self, id: u64) -> (Code, String) {
        self.hear("a refusal", |said| {
            assert!(!said.acknowledged.contains(&id));
            let at = said.refused.iter().position(|refused| refused.id == id)?;
            let refused = said.refused.remove(at);
            Some((Code::from_i32(refused.code), refused.message))
        })
        .await
    }

    /// Waits until it is said that the job's lease has ended.
    pub async fn ended(&mut self, job: &PollJobResponse) {
        let lease = held(job);
        self.hear("the end of a lease", |said| {
            let at = said.ended.iter().position(|ended| *ended == lease)?;
            Some(said.ended.remove(at))
        })
        .await;
    }

    /// Waits for the end of the stream.
    pub async fn end(mut self) -> Result<(), Code> {
        loop {
            let message = timeout(SOON, self.messages.message()).await.expect("the stream ends");
            match message {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(status) => return Err(status.code()),
            }
        }
    }
}

pub fn registration(api: &Api, slots: i32) -> WorkerRegistration {
    WorkerRegistration {
        name: api.name.clone(),
        hostname: api.name.clone(),
        ip_address: "127.0.0.1".to_owned(),
        port: api.new_port(),
        capabilities: [("models".to_owned(), api.name.clone())].into(),
        max_concurrent_jobs: slots,
        ..WorkerRegistration::default()
    }
}

pub fn resumed(worker_id: &str, jobs: &[&PollJobResponse]) -> SessionRequest {
    let held = jobs.iter().map(|job| held(job)).collect();
    let opening = SessionOpening { worker_id: worker_id.to_owned(), held, ..SessionOpening::default() };
    SessionRequest { opening: Some(opening), ..SessionRequest::default() }
}

pub fn held(job: &PollJobResponse) -> HeldLease {
    HeldLease { job_id: job.job_id.clone(), execution_id: job.execution_id.clone() }
}

/// A report under the job's lease that leaves the worker's id out.
pub fn update(job: &PollJobResponse, status: &str) -> Report {
    Report::Update(JobStatusUpdate {
        job_id: job.job_id.clone(),
        execution_id: job.execution_id.clone(),
        status: status.to_owned(),
        ..JobStatusUpdate::default()
    })
}

pub fn done(job: &PollJobResponse) -> Report {
    Report::Completion(completion(job))
}

pub fn completion(job: &PollJobResponse) -> JobCompletion {
    JobCompletion {
        job_id: job.job_id.clone(),
        execution_id: job.execution_id.clone(),
        success: true,
        output_data: br#"{"done":true}"#[..].into(),
        duration_ms: 3,
        ..JobCompletion::default()
    }
}
