//! `cortex.ClientService`: what clients call that prefer gRPC to REST.

use chrono::DateTime;
use cortex_client::proto::client_service_server::ClientService;
use cortex_client::proto::{JobSubmission, SubmitJobsRequest, SubmitJobsResponse, SubmittedJob};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use tonic::{Request, Response, Status};

use crate::api::convert;
use crate::api::problem::status;
use crate::domain::idempotency::KeyDraft;
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
        let SubmitJobsRequest { jobs, idempotency_key } = request.into_inner();
        let mut noted = Vec::new();
        let mut drafts = Vec::with_capacity(jobs.len());
        for (index, job) in jobs.into_iter().enumerate() {
            let mut wrong = Vec::new();
            drafts.push(draft(job, &mut wrong));
            noted.extend(wrong.into_iter().map(|error| error.within("jobs", index)));
        }
        let key = key(idempotency_key);
        let stored = self.services.submit_batch(drafts, noted, key).await.map_err(status)?;
        let jobs = stored.jobs.iter().map(shown).collect();
        Ok(Response::new(SubmitJobsResponse { jobs, repeated: stored.repeated }))
    }
}

/// Empty is the same as absent.
fn key(text: String) -> Option<KeyDraft> {
    (!text.is_empty()).then(|| KeyDraft { field: "idempotency_key", scope: convert::key_scope(), text })
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
    let tags: Map<_, _> = job.tags.into_iter().map(|(key, tag)| (key, Value::String(tag))).collect();
    JobDraft {
        name: text(job.name),
        model_name: text(job.model_name),
        model_version: text(job.model_version),
        input_data: json(wrong, "input_data", &job.input_data),
        priority: job.priority.map(Value::from),
        max_retries: job.max_retries.map(Value::from),
        timeout_seconds: job.timeout_seconds.map(Value::from),
        tags: (!tags.is_empty()).then_some(Value::Object(tags)),
        metadata: json(wrong, "metadata", &job.metadata),
        created_by: text(job.created_by),
        run_at: job.run_at_ms.and_then(|ms| time(wrong, "run_at_ms", ms)),
    }
}

fn time(wrong: &mut Vec<FieldError>, field: &str, ms: i64) -> Option<Value> {
    let time = DateTime::from_timestamp_millis(ms);
    if time.is_none() {
        wrong.push(FieldError::new(field, "must be milliseconds since 1970-01-01T00:00:00Z"));
    }
    time.map(|time| Value::String(time.to_rfc3339()))
}

fn json(wrong: &mut Vec<FieldError>, field: &str, bytes: &[u8]) -> Option<Box<RawValue>> {
    if bytes.is_empty() {
        return None;
    }
    serde_json::from_slice(bytes)
        .map_err(|error| wrong.push(FieldError::new(field, format!("must be JSON in UTF-8: {error}"))))
        .ok()
}
