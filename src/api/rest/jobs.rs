//! `/jobs`.

use std::convert::Infallible;

use axum::Json;
use axum::extract::{FromRequestParts, RawQuery, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::body::{self, JsonObject, NoBody};
use super::openapi::requests;
use super::path::JobPath;
use super::query;
use crate::api::convert::{self, MAX_DURATION_MS, MAX_TEXT};
use crate::api::problem::Problem;
use crate::api::state::Api;
use crate::domain::execution::Execution;
use crate::domain::explain::Explanation;
use crate::domain::idempotency::KeyDraft;
use crate::domain::ids::JobId;
use crate::domain::job::{Job, JobDraft, JobList, JobStats, JobStatus};
use crate::domain::payload::Payload;
use crate::domain::transition::JobPatch;
use crate::domain::validate::{FieldError, Validator};
use crate::services::error::ServiceError;
use crate::services::facade::{MAX_BATCH, Stored};

/// Names a submission, so that sending it again stores nothing twice.
const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

type Answer<T> = Result<Json<T>, Problem>;

/// Submits a job.
///
/// It is durable once this is answered, and `pending`, unless a worker took it at once. 200 shows the job as it is where the
/// same was submitted before under the same `Idempotency-Key`.
#[utoipa::path(
    post,
    path = "/api/v1/jobs",
    tag = "jobs",
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key again within 24 hours answers 200 with what was stored first, and stores nothing; another body under it is a conflict", pattern = "^[!-~]*$", min_length = 1, max_length = 255, example = "8e03978e-40d5-43e8-bc93-6894a57f9324"),),
    request_body = requests::JobCreate,
    responses(
        (status = 201, description = "The job as accepted", body = Job,
            headers(("Location" = String, description = "The path of the job"))),
        (status = 200, description = "The job that was submitted before under the same key", body = Job,
            headers(("Location" = String, description = "The path of the job"))),
        (status = 409, description = "The key was used for another submission"),
    )
)]
pub(super) async fn submit(
    State(api): State<Api>,
    IdempotencyKey(key): IdempotencyKey,
    JsonObject(draft): JsonObject<JobDraft>,
) -> Result<impl IntoResponse, Problem> {
    let Stored { jobs, repeated } = api.services.submit_job(draft, Vec::new(), key).await?;
    let job = jobs.into_iter().next().ok_or(ServiceError::Internal)?;
    let location = [(header::LOCATION, format!("/api/v1/jobs/{}", job.id))];
    Ok((created_or_found(repeated), location, Json(job)))
}

fn created_or_found(repeated: bool) -> StatusCode {
    if repeated { StatusCode::OK } else { StatusCode::CREATED }
}

/// The header of that name, if it came.
pub(super) struct IdempotencyKey(Option<KeyDraft>);

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        // Given twice it is one list (RFC 9110, 5.3), which is no key.
        let keys = parts.headers.get_all(IDEMPOTENCY_KEY).iter();
        let keys: Vec<_> = keys.map(|key| String::from_utf8_lossy(key.as_bytes())).collect();
        let draft =
            || KeyDraft { field: IDEMPOTENCY_KEY, scope: convert::key_scope(), text: keys.join(", ") };
        Ok(Self((!keys.is_empty()).then(draft)))
    }
}

/// Several submissions as they arrive.
#[derive(Debug, Default, Deserialize)]
pub(super) struct BatchDraft {
    #[serde(default)]
    jobs: Option<Box<RawValue>>,
}

/// The jobs of a batch as accepted.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = JobBatch)]
pub(super) struct Batch {
    pub(super) jobs: Vec<Job>,
}

/// Submits 1 to 1000 jobs, all or none.
///
/// What is wrong with one of them is named as `jobs[3].priority`. `Idempotency-Key` is as for one job.
#[utoipa::path(
    post,
    path = "/api/v1/jobs/batch",
    tag = "jobs",
    params(("Idempotency-Key" = Option<String>, Header, description = "The same key again within 24 hours answers 200 with what was stored first, and stores nothing; another body under it is a conflict", pattern = "^[!-~]*$", min_length = 1, max_length = 255, example = "8e03978e-40d5-43e8-bc93-6894a57f9324"),),
    request_body = requests::JobBatchCreate,
    responses(
        (status = 201, description = "The jobs as accepted, in the order of submission", body = Batch),
        (status = 200, description = "The jobs that were submitted before under the same key", body = Batch),
        (status = 409, description = "The key was used for another submission"),
    )
)]
pub(super) async fn submit_batch(
    State(api): State<Api>,
    IdempotencyKey(key): IdempotencyKey,
    JsonObject(draft): JsonObject<BatchDraft>,
) -> Result<impl IntoResponse, Problem> {
    let (drafts, noted) = draft.read().map_err(|error| Problem::invalid(vec![error]))?;
    let Stored { jobs, repeated } = api.services.submit_batch(drafts, noted, key).await?;
    Ok((created_or_found(repeated), Json(Batch { jobs })))
}

impl BatchDraft {
    /// Takes the list apart, and notes what is no job at all; what is in the jobs is looked at later.
    fn read(&self) -> Result<(Vec<JobDraft>, Vec<FieldError>), FieldError> {
        let jobs = self.jobs.as_deref().map_or("null", RawValue::get);
        let jobs: Vec<&RawValue> = serde_json::from_str(jobs)
            .map_err(|_| FieldError::new("jobs", format!("must be an array of 1 to {MAX_BATCH} jobs")))?;
        let mut noted = Vec::new();
        let mut read = |(index, job): (usize, &RawValue)| {
            body::parse(job.get().as_bytes()).unwrap_or_else(|_| {
                noted.push(FieldError::new(format!("jobs[{index}]"), "must be an object"));
                JobDraft::default()
            })
        };
        let drafts = jobs.into_iter().enumerate().map(&mut read).collect();
        Ok((drafts, noted))
    }
}

/// Lists jobs, newest first, a page at a time.
///
/// Filters are combined. With other filters than the state, `total` is counted up to 10,000 jobs beyond the page, with several up to 1,000.
/// Parameters that are not known are ignored; of those that are, only `tag` may be repeated.
#[utoipa::path(
    get,
    path = "/api/v1/jobs",
    tag = "jobs",
    params(
        ("status_filter" = Option<JobStatus>, Query, description = "Only jobs in this state; `status` is another name of it, and one of the two may be given", example = "queued"),
        ("priority" = Option<u8>, Query, description = "Only jobs of this priority", minimum = 1, maximum = 10, example = 5),
        ("model_name" = Option<String>, Query, description = "Only jobs for this model", min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$", example = "resnet"),
        ("created_by" = Option<String>, Query, description = "Only jobs of this submitter", min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$", example = "ann"),
        ("tag" = Option<Vec<requests::Tag>>, Query, description = "`key:value`, any number of times up to 32: only jobs that carry all of these tags. What stands before the first colon is the key, which has one value", max_items = 32, example = json!(["env:prod"])),
        ("page" = Option<i32>, Query, description = "From 1, which it is by default", minimum = 1, maximum = 100000, example = 1),
        ("page_size" = Option<i32>, Query, description = "Jobs on a page, 50 by default", minimum = 1, maximum = 100, example = 50),
    ),
    responses((status = 200, description = "A page of jobs", body = JobList))
)]
pub(super) async fn list(State(api): State<Api>, RawQuery(query): RawQuery) -> Answer<JobList> {
    let wanted = query::jobs(query.as_deref().unwrap_or_default()).map_err(Problem::invalid)?;
    Ok(Json(api.services.queries.jobs(&wanted.filter, wanted.page, wanted.page_size).await?))
}

/// Counts jobs by state, and averages their times.
#[utoipa::path(
    get,
    path = "/api/v1/jobs/stats/summary",
    tag = "jobs",
    responses((status = 200, description = "The statistics", body = JobStats))
)]
pub(super) async fn stats(State(api): State<Api>) -> Answer<JobStats> {
    Ok(Json(api.services.queries.stats().await?))
}

/// Shows a job.
#[utoipa::path(
    get,
    path = "/api/v1/jobs/{id}",
    tag = "jobs",
    params(("id" = JobId, Path, description = "The job", example = "0190a5c0-0000-7000-8000-000000000001")),
    responses((status = 200, description = "The job", body = Job))
)]
pub(super) async fn show(State(api): State<Api>, JobPath(id): JobPath) -> Answer<Job> {
    Ok(Json(api.services.queries.job(id).await?))
}

/// Drives a job from outside, as far as its state allows.
///
/// A job that waits may be set to `running` without a worker; it leaves the queue. `failed` goes through the retry policy. What is
/// left out, or `null`, stays as it is.
#[utoipa::path(
    patch,
    path = "/api/v1/jobs/{id}",
    tag = "jobs",
    params(("id" = JobId, Path, description = "The job", example = "0190a5c0-0000-7000-8000-000000000001")),
    request_body = requests::JobUpdate,
    responses(
        (status = 200, description = "The job as changed", body = Job),
        (status = 409, description = "The job's state, or its worker's lease, does not allow it"),
    )
)]
pub(super) async fn update(
    State(api): State<Api>,
    JobPath(id): JobPath,
    JsonObject(draft): JsonObject<PatchDraft>,
) -> Answer<Job> {
    let patch = draft.check().map_err(Problem::invalid)?;
    Ok(Json(api.services.patch_job(id, patch).await?))
}

/// Cancels a job.
///
/// A running job's worker is told to stop it. A job that has ended, be it by being cancelled, is refused.
#[utoipa::path(
    delete,
    path = "/api/v1/jobs/{id}",
    tag = "jobs",
    params(("id" = JobId, Path, description = "The job", example = "0190a5c0-0000-7000-8000-000000000001")),
    responses(
        (status = 204, description = "The job is cancelled"),
        (status = 409, description = "The job has ended"),
    )
)]
pub(super) async fn cancel(
    State(api): State<Api>,
    JobPath(id): JobPath,
    _: NoBody,
) -> Result<StatusCode, Problem> {
    api.services.cancel_job(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Makes a job due at once.
///
/// A job that failed, timed out or was cancelled is revived and spends a retry; one that waits for its backoff waits no longer.
#[utoipa::path(
    post,
    path = "/api/v1/jobs/{id}/retry",
    tag = "jobs",
    params(("id" = JobId, Path, description = "The job", example = "0190a5c0-0000-7000-8000-000000000001")),
    responses(
        (status = 200, description = "The job, pending", body = Job),
        (status = 409, description = "The job waits already, runs, or is completed"),
    )
)]
pub(super) async fn retry(State(api): State<Api>, JobPath(id): JobPath, _: NoBody) -> Answer<Job> {
    Ok(Json(api.services.retry_job(id).await?))
}

/// Lists the attempts of a job, oldest first.
#[utoipa::path(
    get,
    path = "/api/v1/jobs/{id}/executions",
    tag = "jobs",
    params(("id" = JobId, Path, description = "The job", example = "0190a5c0-0000-7000-8000-000000000001")),
    responses((status = 200, description = "The attempts", body = Vec<Execution>))
)]
pub(super) async fn executions(State(api): State<Api>, JobPath(id): JobPath) -> Answer<Vec<Execution>> {
    Ok(Json(api.services.queries.executions(id).await?))
}

/// Explains why a job is where it is.
///
/// What it waits for, how many go before it, which workers could take it, and what keeps the others from it.
#[utoipa::path(
    get,
    path = "/api/v1/jobs/{id}/explain",
    tag = "jobs",
    params(("id" = JobId, Path, description = "The job", example = "0190a5c0-0000-7000-8000-000000000001")),
    responses((status = 200, description = "The explanation", body = Explanation))
)]
pub(super) async fn explain(State(api): State<Api>, JobPath(id): JobPath) -> Answer<Explanation> {
    Ok(Json(api.services.explain_job(id).await?))
}

/// A change as it arrives: every field loosely typed, so that all that is wrong can be named.
#[derive(Debug, Default, Deserialize)]
pub(super) struct PatchDraft {
    status: Option<Value>,
    output_data: Option<Box<RawValue>>,
    error_message: Option<Value>,
    error_stack: Option<Value>,
    execution_duration_ms: Option<Value>,
    assigned_worker_id: Option<Value>,
}

impl PatchDraft {
    /// Checks every bound and names all fields that break one. `null` is the same as absent.
    fn check(self) -> Result<JobPatch, Vec<FieldError>> {
        let mut v = Validator::default();
        let patch = JobPatch {
            status: status(&mut v, self.status.as_ref()),
            output_data: output(&mut v, self.output_data.as_deref()),
            error_message: v.optional_text("error_message", self.error_message.as_ref(), 0, MAX_TEXT),
            error_stack: v.optional_text("error_stack", self.error_stack.as_ref(), 0, MAX_TEXT),
            execution_duration_ms: v.integer(
                "execution_duration_ms",
                self.execution_duration_ms.as_ref(),
                0,
                MAX_DURATION_MS,
            ),
            assigned_worker_id: v
                .optional_text("assigned_worker_id", self.assigned_worker_id.as_ref(), 0, MAX_TEXT)
                .and_then(|text| convert::id(&mut v, "assigned_worker_id", &text)),
        };
        let patch = v.finish(Some(patch))?;
        if patch == JobPatch::default() {
            return Err(vec![FieldError::new("body", "names no field to change")]);
        }
        Ok(patch)
    }
}

fn status(v: &mut Validator, value: Option<&Value>) -> Option<JobStatus> {
    let text = v.optional_text("status", value, 0, MAX_TEXT)?;
    text.parse().map_err(|message: String| v.reject("status", message)).ok()
}

fn output(v: &mut Validator, raw: Option<&RawValue>) -> Option<Payload> {
    let raw = raw.filter(|raw| raw.get() != "null")?;
    Payload::parse(raw.get()).map_err(|message| v.reject("output_data", message)).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn check(body: &Value) -> Result<JobPatch, Vec<FieldError>> {
        serde_json::from_str::<PatchDraft>(&body.to_string()).unwrap().check()
    }

    fn fields(body: &Value) -> Vec<String> {
        check(body).unwrap_err().into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn reads_every_field() {
        let patch =
            check(&json!({"status": "failed", "output_data": {}, "error_message": "", "error_stack": "s",
            "execution_duration_ms": 0, "assigned_worker_id": "00000000-0000-0000-0000-000000000001"}))
            .unwrap();
        assert_eq!(patch.status, Some(JobStatus::Failed));
        assert_eq!(patch.output_data.map(|output| output.is_empty()), Some(true));
        assert_eq!((patch.error_message.as_deref(), patch.error_stack.as_deref()), (Some(""), Some("s")));
        assert_eq!(patch.execution_duration_ms, Some(0));
        assert!(patch.assigned_worker_id.is_some());
    }

    #[test]
    fn names_every_bad_field_at_once() {
        let body = json!({"status": "done", "output_data": [], "error_message": 1, "error_stack": "\0",
            "execution_duration_ms": -1, "assigned_worker_id": "x"});
        assert_eq!(
            fields(&body),
            [
                "status",
                "output_data",
                "error_message",
                "error_stack",
                "execution_duration_ms",
                "assigned_worker_id"
            ]
        );
        assert_eq!(fields(&json!({"error_message": "x".repeat(MAX_TEXT + 1)})), ["error_message"]);
        assert_eq!(fields(&json!({"execution_duration_ms": 2_147_483_648_i64})), ["execution_duration_ms"]);
    }

    #[test]
    fn a_patch_must_name_something_to_change() {
        for body in [json!({}), json!({"name": "n"}), json!({"status": null, "output_data": null})] {
            assert_eq!(fields(&body), ["body"], "{body}");
        }
    }

    proptest! {
        #[test]
        fn no_value_makes_a_check_panic(text in any::<String>(), number in any::<f64>(), nested in any::<bool>()) {
            for field in ["status", "output_data", "error_message", "execution_duration_ms", "assigned_worker_id"] {
                let _ = check(&json!({field: text}));
                let _ = check(&json!({field: number}));
                let _ = check(&json!({field: {text.as_str(): [number, nested]}}));
            }
        }
    }
}
