//! `/workers`.

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::body::{JsonObject, NoBody};
use super::openapi::requests;
use super::path::WorkerPath;
use super::query;
use crate::api::convert;
use crate::api::problem::Problem;
use crate::api::state::Api;
use crate::domain::ids::WorkerId;
use crate::domain::validate::{self, FieldError, Validator};
use crate::domain::worker::{Worker, WorkerDraft, WorkerList, WorkerStats, WorkerStatus};

/// Lists workers by name: all, or those in one state.
#[utoipa::path(
    get,
    path = "/api/v1/workers",
    tag = "workers",
    params(("status" = Option<WorkerStatus>, Query, description = "Only workers in this state", example = "idle")),
    responses((status = 200, description = "The workers", body = WorkerList))
)]
pub(super) async fn list(
    State(api): State<Api>,
    RawQuery(query): RawQuery,
) -> Result<Json<WorkerList>, Problem> {
    let status = query::worker_status(query.as_deref().unwrap_or_default()).map_err(Problem::invalid)?;
    Ok(Json(api.services.queries.workers(status).await?))
}

/// Shows a worker.
#[utoipa::path(
    get,
    path = "/api/v1/workers/{id}",
    tag = "workers",
    params(("id" = WorkerId, Path, description = "The worker", example = "0190a5c0-0000-7000-8000-0000000000a1")),
    responses((status = 200, description = "The worker", body = Worker))
)]
pub(super) async fn show(
    State(api): State<Api>,
    WorkerPath(id): WorkerPath,
) -> Result<Json<Worker>, Problem> {
    Ok(Json(api.services.queries.worker(id).await?))
}

/// Counts workers by state, and how much of their capacity is in use.
#[utoipa::path(
    get,
    path = "/api/v1/workers/stats/summary",
    tag = "workers",
    responses((status = 200, description = "The statistics", body = WorkerStats))
)]
pub(super) async fn stats(State(api): State<Api>) -> Result<Json<WorkerStats>, Problem> {
    Ok(Json(api.services.queries.worker_stats().await?))
}

/// Gives a worker nothing new until it registers again.
///
/// It keeps what it has.
#[utoipa::path(
    post,
    path = "/api/v1/workers/{id}/drain",
    tag = "workers",
    params(("id" = WorkerId, Path, description = "The worker", example = "0190a5c0-0000-7000-8000-0000000000a1")),
    responses(
        (status = 200, description = "The worker", body = Worker),
        (status = 409, description = "The worker was removed"),
    )
)]
pub(super) async fn drain(
    State(api): State<Api>,
    WorkerPath(id): WorkerPath,
    _: NoBody,
) -> Result<Json<Worker>, Problem> {
    Ok(Json(api.services.drain_worker(id).await?))
}

/// Takes a worker out of service until it registers again.
///
/// Its jobs are lost to it at once. It stays, offline, in the lists.
#[utoipa::path(
    delete,
    path = "/api/v1/workers/{id}",
    tag = "workers",
    params(("id" = WorkerId, Path, description = "The worker", example = "0190a5c0-0000-7000-8000-0000000000a1")),
    responses((status = 204, description = "The worker is out of service"))
)]
pub(super) async fn remove(
    State(api): State<Api>,
    WorkerPath(id): WorkerPath,
    _: NoBody,
) -> Result<StatusCode, Problem> {
    api.services.remove_worker(id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Registers a worker.
///
/// Hostname and port are its identity: whoever registers them again gets the same id, and what ran under it before is lost.
#[utoipa::path(
    post,
    path = "/api/v1/workers",
    tag = "workers",
    request_body = requests::WorkerCreate,
    responses(
        (status = 201, description = "The worker", body = Worker,
            headers(("Location" = String, description = "The path of the worker"))),
        (status = 200, description = "The worker, whose hostname and port were known", body = Worker,
            headers(("Location" = String, description = "The path of the worker"))),
    )
)]
pub(super) async fn register(
    State(api): State<Api>,
    JsonObject(registration): JsonObject<Registration>,
) -> Result<impl IntoResponse, Problem> {
    let draft = registration.read().map_err(Problem::invalid)?;
    let (worker, created) = api.services.register_worker(draft).await?;
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    let location = [(header::LOCATION, format!("/api/v1/workers/{}", worker.id))];
    Ok((status, location, Json(worker)))
}

/// A registration as it arrives: every field loosely typed, so that all that is wrong can be named.
#[derive(Debug, Deserialize)]
pub(super) struct Registration {
    name: Option<Value>,
    hostname: Option<Value>,
    ip_address: Option<Value>,
    port: Option<Value>,
    capabilities: Option<Value>,
    max_concurrent_jobs: Option<Value>,
    heartbeat_interval_seconds: Option<Value>,
    version: Option<Value>,
    metadata: Option<Value>,
}

impl Registration {
    /// Looks at the types; the values are judged by the draft's own check. Names all that is wrong with
    /// either.
    fn read(self) -> Result<WorkerDraft, Vec<FieldError>> {
        let mut v = Validator::default();
        let interval = self.heartbeat_interval_seconds;
        let draft = WorkerDraft {
            name: text(&mut v, "name", self.name),
            hostname: text(&mut v, "hostname", self.hostname),
            ip_address: text(&mut v, "ip_address", self.ip_address),
            port: whole(&mut v, "port", self.port, 0),
            capabilities: object(&mut v, "capabilities", self.capabilities),
            max_concurrent_jobs: whole(&mut v, "max_concurrent_jobs", self.max_concurrent_jobs, 1),
            heartbeat_interval_seconds: whole(&mut v, "heartbeat_interval_seconds", interval, 30),
            version: Some(text(&mut v, "version", self.version)).filter(|version| !version.is_empty()),
            metadata: object(&mut v, "metadata", self.metadata),
        };
        convert::checked_draft(v, draft)
    }
}

/// An object; empty where there is none.
pub(super) fn object(v: &mut Validator, field: &str, value: Option<Value>) -> Map<String, Value> {
    match value {
        Some(Value::Object(members)) => members,
        None | Some(Value::Null) => Map::new(),
        Some(_) => {
            v.reject(field, "must be an object");
            Map::new()
        }
    }
}

/// A text; empty where there is none.
fn text(v: &mut Validator, field: &str, value: Option<Value>) -> String {
    match value {
        Some(Value::String(text)) => text,
        None | Some(Value::Null) => String::new(),
        Some(_) => {
            v.reject(field, "must be a string");
            String::new()
        }
    }
}

/// A whole number; `default` where there is none.
fn whole(v: &mut Validator, field: &str, value: Option<Value>, default: i64) -> i64 {
    match value {
        None | Some(Value::Null) => default,
        Some(value) => validate::whole(&value).unwrap_or_else(|| {
            v.reject(field, "must be a whole number");
            default
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(body: &Value) -> Result<WorkerDraft, Vec<FieldError>> {
        serde_json::from_str::<Registration>(&body.to_string()).unwrap().read()
    }

    #[test]
    fn fills_in_the_defaults() {
        let draft =
            read(&json!({"name": "w", "hostname": "h", "ip_address": "10.0.0.1", "port": 8000})).unwrap();
        assert_eq!((draft.port, draft.max_concurrent_jobs, draft.heartbeat_interval_seconds), (8000, 1, 30));
        assert_eq!(draft.version, None);
    }

    #[test]
    fn wrong_types_and_wrong_values_are_named_together() {
        let body = json!({"name": 1, "hostname": "", "ip_address": "here", "port": "x", "capabilities": [],
            "max_concurrent_jobs": 1.5, "heartbeat_interval_seconds": 1, "version": "v".repeat(51), "metadata": "m"});
        let mut fields: Vec<_> = read(&body).unwrap_err().into_iter().map(|error| error.field).collect();
        fields.sort_unstable();
        assert_eq!(
            fields,
            [
                "capabilities",
                "heartbeat_interval_seconds",
                "hostname",
                "ip_address",
                "max_concurrent_jobs",
                "metadata",
                "name",
                "port",
                "version"
            ]
        );
    }
}
