//! `POST /workers/{id}/heartbeat`: the specification's `WorkerHeartbeat`.

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::body::JsonObject;
use super::openapi::requests;
use super::path::WorkerPath;
use crate::api::convert;
use crate::api::problem::Problem;
use crate::api::state::Api;
use crate::domain::execution::Usage;
use crate::domain::ids::{JobId, WorkerId};
use crate::domain::validate::{FieldError, Validator};
use crate::domain::worker::{MAX_METADATA, WorkerStatus, storable};
use crate::services::command::Heartbeat;

/// What a worker is told.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = HeartbeatAnswer)]
pub(super) struct Answer {
    acknowledged: bool,
    /// Assigned to it and not fetched.
    pending_jobs: Vec<JobId>,
    /// Listed by it and not its own any more: it is to stop them.
    cancelled_jobs: Vec<JobId>,
    /// It gets nothing new until it registers again.
    draining: bool,
}

impl Answer {
    /// To a worker that has not fetched this job.
    pub(super) fn example(job: JobId) -> Self {
        Self { acknowledged: true, pending_jobs: vec![job], cancelled_jobs: Vec::new(), draining: false }
    }
}

/// Takes a worker's sign of life.
///
/// The answer says what it has not fetched, and what it is to stop.
#[utoipa::path(
    post,
    operation_id = "heartbeat",
    path = "/api/v1/workers/{id}/heartbeat",
    tag = "workers",
    params(("id" = WorkerId, Path, description = "The worker", example = "0190a5c0-0000-7000-8000-0000000000a1")),
    request_body = requests::WorkerHeartbeat,
    responses(
        (status = 200, description = "What the worker is told", body = Answer),
        (status = 409, description = "The worker was removed"),
    )
)]
pub(super) async fn take(
    State(api): State<Api>,
    WorkerPath(id): WorkerPath,
    JsonObject(body): JsonObject<Body>,
) -> Result<Json<Answer>, Problem> {
    let heartbeat = body.read(id).map_err(Problem::invalid)?;
    let answer = api.services.heartbeat(heartbeat).await?;
    Ok(Json(Answer {
        acknowledged: true,
        pending_jobs: answer.pending_jobs,
        cancelled_jobs: answer.cancelled_jobs,
        draining: answer.draining,
    }))
}

/// A heartbeat as it arrives: every field loosely typed, so that all that is wrong can be named.
#[derive(Debug, Deserialize)]
pub(super) struct Body {
    worker_id: Option<Value>,
    status: Option<Value>,
    current_job_count: Option<Value>,
    current_jobs: Option<Value>,
    cpu_usage_percent: Option<Value>,
    memory_usage_mb: Option<Value>,
    gpu_usage_percent: Option<Value>,
    loaded_models: Option<Value>,
    metadata: Option<Value>,
}

impl Body {
    /// The path names the worker; the body may do so again.
    fn read(self, id: WorkerId) -> Result<Heartbeat, Vec<FieldError>> {
        let mut v = Validator::default();
        if let Some(named) = self.worker_id.filter(|named| !named.is_null())
            && named.as_str().and_then(|text| text.parse().ok()) != Some(id)
        {
            v.reject("worker_id", "must be the id in the path");
        }
        let status = v.text("status", self.status.as_ref(), 255).and_then(|text| {
            text.parse::<WorkerStatus>().map_err(|allowed| v.reject("status", allowed)).ok()
        });
        let count = v.integer("current_job_count", self.current_job_count.as_ref(), 0, i32::MAX.into());
        if count.is_none() && !v.has("current_job_count") {
            v.reject("current_job_count", "is required");
        }
        let ids: Vec<String> =
            v.typed("current_jobs", self.current_jobs.as_ref(), "an array of UUIDs").unwrap_or_default();
        let current_jobs = convert::listed_jobs(&mut v, &ids);
        let memory = v.integer("memory_usage_mb", self.memory_usage_mb.as_ref(), 0, i32::MAX.into());
        let usage = Usage {
            cpu_usage_percent: v.number("cpu_usage_percent", self.cpu_usage_percent.as_ref(), 0.0, 100.0),
            memory_usage_mb: memory.and_then(|mb| i32::try_from(mb).ok()).map(f64::from),
            gpu_usage_percent: v.number("gpu_usage_percent", self.gpu_usage_percent.as_ref(), 0.0, 100.0),
        };
        let names: Vec<String> =
            v.typed("loaded_models", self.loaded_models.as_ref(), "an array of names").unwrap_or_default();
        let loaded_models = convert::loaded_models(&mut v, names);
        let metadata = match self.metadata {
            None | Some(Value::Null) => None,
            Some(Value::Object(members)) => storable(&mut v, "metadata", &members, MAX_METADATA),
            Some(_) => {
                v.reject("metadata", "must be an object");
                None
            }
        };
        let heartbeat = (|| {
            Some(Heartbeat {
                worker_id: id,
                status: status?,
                current_job_count: u32::try_from(count?).ok()?,
                current_jobs: current_jobs?,
                usage,
                loaded_models: loaded_models?,
                metadata,
            })
        })();
        v.finish(heartbeat)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    const ID: WorkerId = WorkerId(Uuid::from_u128(7));

    fn read(body: &Value) -> Result<Heartbeat, Vec<FieldError>> {
        serde_json::from_str::<Body>(&body.to_string()).unwrap().read(ID)
    }

    #[test]
    fn only_the_status_and_the_number_of_jobs_are_required() {
        let heartbeat =
            read(&json!({"status": "idle", "current_job_count": 0, "gpu_usage_percent": null})).unwrap();
        assert_eq!((heartbeat.worker_id, heartbeat.usage, heartbeat.metadata), (ID, Usage::default(), None));
        let fields: Vec<_> = read(&json!({})).unwrap_err().into_iter().map(|error| error.field).collect();
        assert_eq!(fields, ["status", "current_job_count"]);
    }

    #[test]
    fn all_that_is_wrong_is_named_together() {
        let body = json!({"worker_id": Uuid::from_u128(8), "status": "tired", "current_job_count": -1,
            "current_jobs": ["x"], "cpu_usage_percent": 100.1, "memory_usage_mb": 1.5,
            "gpu_usage_percent": "all", "loaded_models": [1], "metadata": []});
        let fields: Vec<_> = read(&body).unwrap_err().into_iter().map(|error| error.field).collect();
        assert_eq!(
            fields,
            [
                "worker_id",
                "status",
                "current_job_count",
                "current_jobs",
                "memory_usage_mb",
                "cpu_usage_percent",
                "gpu_usage_percent",
                "loaded_models",
                "metadata"
            ]
        );
    }

    #[test]
    fn the_bounds_themselves_are_fine() {
        let body = json!({"worker_id": ID, "status": "busy", "current_job_count": 1, "current_jobs": [Uuid::nil()],
            "cpu_usage_percent": 100, "memory_usage_mb": 0, "gpu_usage_percent": 0.0,
            "loaded_models": ["m"], "metadata": {"zone": "a"}});
        let heartbeat = read(&body).unwrap();
        assert_eq!(heartbeat.usage.cpu_usage_percent, Some(100.0));
        assert_eq!(heartbeat.metadata.unwrap().as_str(), r#"{"zone":"a"}"#);
        let long =
            json!({"status": "idle", "current_job_count": 0, "metadata": {"a": "b".repeat(MAX_METADATA)}});
        assert_eq!(read(&long).unwrap_err()[0].field, "metadata");
    }
}
