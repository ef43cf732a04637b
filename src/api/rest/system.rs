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
#[derive(Serialize)]
pub(super) struct Report {
    status: Condition,
    #[serde(flatten)]
    health: Health,
}

/// The answer of `/health/live`.
#[derive(Serialize)]
pub(super) struct Alive {
    status: Condition,
}

/// `GET /health`: 503 as soon as any part is down.
pub(super) async fn health(State(api): State<Api>) -> (StatusCode, Json<Report>) {
    report(&api, |condition| condition == Condition::Ok).await
}

/// `GET /health/ready`: 503 while requests cannot be answered. Without Redis they can.
pub(super) async fn ready(State(api): State<Api>) -> (StatusCode, Json<Report>) {
    report(&api, |condition| condition != Condition::Unavailable).await
}

/// `GET /health/live`: 503 once only a restart can help.
pub(super) async fn live(State(api): State<Api>) -> (StatusCode, Json<Alive>) {
    if api.inspect.alive() {
        (StatusCode::OK, Json(Alive { status: Condition::Ok }))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, Json(Alive { status: Condition::Unavailable }))
    }
}

/// `GET /cluster`.
pub(super) async fn cluster(State(api): State<Api>) -> Json<ClusterView> {
    Json(api.inspect.cluster())
}

/// `GET /metrics`, unless `observability.metrics_enabled` is false.
pub(super) async fn metrics(State(api): State<Api>) -> Result<impl IntoResponse, Problem> {
    let off = || Problem::new(ProblemType::NoSuchRoute, "observability.metrics_enabled is false");
    let render = api.metrics.as_ref().ok_or_else(off)?;
    Ok(([(header::CONTENT_TYPE, METRICS_TYPE)], render()))
}

async fn report(api: &Api, fine: impl FnOnce(Condition) -> bool) -> (StatusCode, Json<Report>) {
    let health = api.inspect.health().await;
    let status = health.condition();
    let code = if fine(status) { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(Report { status, health }))
}
