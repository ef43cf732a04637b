//! Workers that do what a test says, one call at a time: one speaks today's protocol, one the
//! specification's.

use std::collections::HashMap;

use cortex_client::proto::job_service_client::JobServiceClient;
use cortex_client::proto::{
    HeartbeatRequest, HeartbeatResponse, JobCompletion, JobCompletionResponse, JobStatusUpdate,
    JobStatusUpdateResponse, PollJobRequest, PollJobResponse, WorkerRegistration,
};
use serde_json::Value;
use tonic::Status;
use tonic::transport::Channel;

use crate::group::Api;

/// The messages and the client of the specification's own file; the additions are unknown to it.
#[allow(clippy::all, clippy::pedantic, clippy::allow_attributes_without_reason, reason = "generated")]
pub mod specification {
    include!(concat!(env!("OUT_DIR"), "/specification/cortex.rs"));
}

/// A worker of today's protocol.
#[derive(Clone)]
pub struct Hand {
    pub id: String,
    pub client: JobServiceClient<Channel>,
    pub registration: WorkerRegistration,
}

impl Hand {
    /// Registers a worker for this test's jobs alone.
    pub async fn new(api: &Api, replica: usize, slots: i32) -> Self {
        let models = api.name.clone();
        Self::with(api, replica, slots, &[("models", &models)]).await
    }

    /// Registers a worker with these capabilities.
    pub async fn with(api: &Api, replica: usize, slots: i32, capabilities: &[(&str, &str)]) -> Self {
        let text = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let registration = WorkerRegistration {
            name: api.name.clone(),
            hostname: api.name.clone(),
            ip_address: "127.0.0.1".to_owned(),
            port: api.new_port(),
            capabilities: capabilities.iter().map(text).collect(),
            max_concurrent_jobs: slots,
            ..WorkerRegistration::default()
        };
        let mut hand = Self { id: String::new(), client: connect(api, replica).await, registration };
        hand.register().await;
        hand
    }

    /// Registers, or registers again.
    pub async fn register(&mut self) {
        let answer = self.client.register_worker(self.registration.clone()).await.unwrap().into_inner();
        assert!(answer.success, "{answer:?}");
        assert!(self.id.is_empty() || self.id == answer.worker_id, "hostname and port keep their id");
        self.id = answer.worker_id;
    }

    /// Asks for a job.
    pub async fn poll(&self, wait_ms: i32) -> Option<PollJobResponse> {
        let request = PollJobRequest { worker_id: self.id.clone(), wait_ms };
        let answer = self.client.clone().poll_job(request).await.unwrap().into_inner();
        answer.has_job.then_some(answer)
    }

    /// Waits for a job.
    pub async fn job(&self) -> PollJobResponse {
        self.poll(30_000).await.expect("no job came")
    }

    /// Reports a status under the job's lease.
    pub async fn status(&self, job: &PollJobResponse, status: &str) -> JobStatusUpdateResponse {
        self.client.clone().update_job_status(self.update(job, status)).await.unwrap().into_inner()
    }

    /// A status report under the job's lease.
    pub fn update(&self, job: &PollJobResponse, status: &str) -> JobStatusUpdate {
        JobStatusUpdate {
            job_id: job.job_id.clone(),
            worker_id: self.id.clone(),
            status: status.to_owned(),
            execution_id: job.execution_id.clone(),
            attempt_number: job.attempt_number,
            ..JobStatusUpdate::default()
        }
    }

    /// A report of success under the job's lease.
    pub fn success(&self, job: &PollJobResponse, output: &Value) -> JobCompletion {
        JobCompletion {
            success: true,
            output_data: output.to_string().into(),
            duration_ms: 7,
            ..self.completion(job)
        }
    }

    /// A report of failure under the job's lease.
    pub fn failure(&self, job: &PollJobResponse, message: &str, code: &str) -> JobCompletion {
        JobCompletion {
            error_message: message.to_owned(),
            error_code: code.to_owned(),
            ..self.completion(job)
        }
    }

    fn completion(&self, job: &PollJobResponse) -> JobCompletion {
        JobCompletion {
            job_id: job.job_id.clone(),
            worker_id: self.id.clone(),
            execution_id: job.execution_id.clone(),
            attempt_number: job.attempt_number,
            ..JobCompletion::default()
        }
    }

    /// Sends the report of a job's end.
    pub async fn report(&self, report: &JobCompletion) -> JobCompletionResponse {
        self.client.clone().complete_job(report.clone()).await.unwrap().into_inner()
    }

    /// Gives a sign of life, and names the jobs that it holds.
    pub async fn heartbeat(&self, jobs: &[&PollJobResponse]) -> Result<HeartbeatResponse, Status> {
        let request = HeartbeatRequest {
            worker_id: self.id.clone(),
            status: "busy".to_owned(),
            current_job_count: i32::try_from(jobs.len()).unwrap(),
            current_jobs: jobs.iter().map(|job| job.job_id.clone()).collect(),
            metrics: HashMap::from([("cpu_usage_percent".to_owned(), 12.5)]),
            loaded_models: Vec::new(),
        };
        Ok(self.client.clone().heartbeat(request).await?.into_inner())
    }
}

/// A client of today's protocol.
pub async fn connect(api: &Api, replica: usize) -> JobServiceClient<Channel> {
    JobServiceClient::new(channel(api, replica).await)
}

/// A connection to a replica's listener for workers.
pub async fn channel(api: &Api, replica: usize) -> Channel {
    Channel::from_shared(api.grpc(replica)).unwrap().connect().await.unwrap()
}
