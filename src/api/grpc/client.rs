//! `cortex.ClientService`: what clients call that prefer gRPC to REST.

use cortex_client::proto::client_service_server::ClientService;
use cortex_client::proto::{JobSubmission, SubmitJobsRequest, SubmitJobsResponse, SubmittedJob};
use serde_json::Value;
use serde_json::value::RawValue;
use tonic::{Request, Response, Status};

use super::jobs::invalid;
use crate::api::problem::status;
use crate::domain::job::{Job, JobDraft};
use crate::domain::validate::FieldError;
use crate::services::facade::Services;

/// Serves clients.
pub struct Clients {
    services: Services,
}

impl Clients {
    /// Serves them with these use cases.
    pub(super) fn new(services: Services) -> Self {
        Self { services }
    }
}

#[tonic::async_trait]
impl ClientService for Clients {
    async fn submit_jobs(
        &self,
        request: Request<SubmitJobsRequest>,
    ) -> Result<Response<SubmitJobsResponse>, Status> {
        let jobs = request.into_inner().jobs;
        let mut errors = Vec::new();
        let mut drafts = Vec::with_capacity(jobs.len());
        for (index, job) in jobs.into_iter().enumerate() {
            match draft(job) {
                Ok(draft) => drafts.push(draft),
                Err(error) => errors.push(error.within("jobs", index)),
            }
        }
        if !errors.is_empty() {
            return Err(invalid(errors));
        }
        let jobs = self.services.submit_batch(drafts).await.map_err(status)?;
        Ok(Response::new(SubmitJobsResponse { jobs: jobs.iter().map(shown).collect() }))
    }
}

fn shown(job: &Job) -> SubmittedJob {
    SubmittedJob {
        id: job.id.to_string(),
        status: job.status.as_str().to_owned(),
        submitted_at_ms: job.submitted_at.timestamp_millis(),
    }
}

/// The same draft that the JSON body of REST would be read into, so that the same checks hold.
fn draft(job: JobSubmission) -> Result<JobDraft, FieldError> {
    let text = |text: String| (!text.is_empty()).then_some(Value::String(text));
    let tags = job.tags.into_iter().map(|(key, tag)| (key, Value::String(tag))).collect();
    Ok(JobDraft {
        name: text(job.name),
        model_name: text(job.model_name),
        model_version: text(job.model_version),
        input_data: json("input_data", &job.input_data)?,
        priority: job.priority.map(Value::from),
        max_retries: job.max_retries.map(Value::from),
        timeout_seconds: job.timeout_seconds.map(Value::from),
        tags: Some(Value::Object(tags)),
        metadata: json("metadata", &job.metadata)?,
        created_by: text(job.created_by),
    })
}

fn json(field: &str, bytes: &[u8]) -> Result<Option<Box<RawValue>>, FieldError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let raw = serde_json::from_slice(bytes);
    raw.map(Some).map_err(|error| FieldError::new(field, format!("must be JSON in UTF-8: {error}")))
}
