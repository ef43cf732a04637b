//! Health probes, the cluster, metrics.

use axum::Json;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use serde::Serialize;

use crate::api::problem::{Problem, ProblemType};
use crate::api::state::Api;
use crate::services::inspect::{ClusterView, Condition, Health};

/// Prometheus' text format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The answer of `/health` and `/health/ready`.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct Report {
    status: Condition,
    #[serde(flatten)]
    health: Health,
}

impl Report {
    pub(super) fn of(health: Health) -> Self {
        Self { status: health.condition(), health }
    }
}

/// The answer of `/health/live`.
#[derive(Serialize, utoipa::ToSchema)]
pub(super) struct Alive {
    status: Condition,
}

impl Alive {
    pub(super) fn of(alive: bool) -> Self {
        Self { status: if alive { Condition::Ok } else { Condition::Unavailable } }
    }
}

/// Tells how the replica and its parts are; 503 as soon as any part is down.
///
/// Also served under `/api/v1`.
#[utoipa::path(
    get,
    path = "/health",
    tag = "operations",
    responses(
        (status = 200, description = "All parts work", body = Report),
        (status = 503, description = "A part is down", body = Report),
    )
)]
pub(super) async fn health(State(api): State<Api>) -> (StatusCode, Json<Report>) {
    report(&api, |condition| condition == Condition::Ok).await
}

/// Tells whether requests can be answered; without Redis they can.
///
/// Also served under `/api/v1`.
#[utoipa::path(
    get,
    path = "/health/ready",
    tag = "operations",
    responses(
        (status = 200, description = "Requests are answered", body = Report),
        (status = 503, description = "Requests cannot be answered", body = Report),
    )
)]
pub(super) async fn ready(State(api): State<Api>) -> (StatusCode, Json<Report>) {
    report(&api, |condition| condition != Condition::Unavailable).await
}

/// Tells whether the process can still do its work; if not, only a restart can help.
///
/// Also served under `/api/v1`.
#[utoipa::path(
    get,
    path = "/health/live",
    tag = "operations",
    responses(
        (status = 200, description = "It can", body = Alive),
        (status = 503, description = "It cannot", body = Alive),
    )
)]
pub(super) async fn live(State(api): State<Api>) -> (StatusCode, Json<Alive>) {
    let alive = api.inspect.alive();
    let code = if alive { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(Alive::of(alive)))
}

/// Shows the cluster as this replica sees it: who leads, and how far the others have come.
#[utoipa::path(
    get,
    operation_id = "show",
    path = "/api/v1/cluster",
    tag = "cluster",
    responses((status = 200, description = "The cluster", body = ClusterView))
)]
pub(super) async fn cluster(State(api): State<Api>) -> Json<ClusterView> {
    Json(api.inspect.cluster())
}

/// Shows the metrics in Prometheus' text format.
///
/// Unless `observability.metrics_enabled` is false.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "operations",
    responses(
        (status = 200, description = "The metrics", body = String, content_type = "text/plain; version=0.0.4; charset=utf-8",
            example = "# HELP cortex_leader Whether this replica leads.\n# TYPE cortex_leader gauge\ncortex_leader 1\n"),
        (status = 404, description = "Metrics are switched off"),
    )
)]
pub(super) async fn metrics(State(api): State<Api>) -> Result<impl IntoResponse, Problem> {
    let off = || Problem::new(ProblemType::NoSuchRoute, "observability.metrics_enabled is false");
    let render = api.metrics.as_ref().ok_or_else(off)?;
    Ok(([(header::CONTENT_TYPE, METRICS_TYPE)], render()))
}

async fn report(api: &Api, fine: impl FnOnce(Condition) -> bool) -> (StatusCode, Json<Report>) {
    let health = api.inspect.health().await;
    let status = health.condition();
    let code = if fine(status) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(Report::of(health)))
}
