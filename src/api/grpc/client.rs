//! `cortex.ClientService`: what clients call that prefer gRPC to REST.

use cortex_client::proto::client_service_server::ClientService;
use cortex_client::proto::{JobSubmission, SubmitJobsRequest, SubmitJobsResponse, SubmittedJob};
use serde_json::Value;
use serde_json::value::RawValue;
use tonic::{Request, Response, Status};

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
        let mut noted = Vec::new();
        let mut drafts = Vec::with_capacity(jobs.len());
        for (index, job) in jobs.into_iter().enumerate() {
            let mut wrong = Vec::new();
            drafts.push(draft(job, &mut wrong));
            noted.extend(wrong.into_iter().map(|error| error.within("jobs", index)));
        }
        let jobs = self.services.submit_batch(drafts, noted).await.map_err(status)?;
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

/// The same draft that the JSON body of REST would be read into, so that the same checks hold. What cannot be
/// read is noted in `wrong`, and left out.
fn draft(job: JobSubmission, wrong: &mut Vec<FieldError>) -> JobDraft {
    let text = |text: String| (!text.is_empty()).then_some(Value::String(text));
    let tags = job.tags.into_iter().map(|(key, tag)| (key, Value::String(tag))).collect();
    JobDraft {
        name: text(job.name),
        model_name: text(job.model_name),
        model_version: text(job.model_version),
        input_data: json(wrong, "input_data", &job.input_data),
        priority: job.priority.map(Value::from),
        max_retries: job.max_retries.map(Value::from),
        timeout_seconds: job.timeout_seconds.map(Value::from),
        tags: Some(Value::Object(tags)),
        metadata: json(wrong, "metadata", &job.metadata),
        created_by: text(job.created_by),
    }
}

fn json(wrong: &mut Vec<FieldError>, field: &str, bytes: &[u8]) -> Option<Box<RawValue>> {
    if bytes.is_empty() {
        return None;
    }
    serde_json::from_slice(bytes)
        .map_err(|error| wrong.push(FieldError::new(field, format!("must be JSON in UTF-8: {error}"))))
        .ok()
}
