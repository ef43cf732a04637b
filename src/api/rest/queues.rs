//! `/queues`.

use axum::Json;
use axum::extract::{RawQuery, State};
use serde::Serialize;

use super::query;
use crate::api::problem::Problem;
use crate::api::state::Api;
use crate::domain::job::Job;
use crate::domain::pause::Paused;
use crate::domain::queue::{QueueMetrics, QueueView};

type Answer<T> = Result<Json<T>, Problem>;

/// How many jobs wait.
#[derive(Debug, Serialize)]
pub(super) struct Depth {
    depth: u64,
}

/// How many jobs were called off.
#[derive(Debug, Serialize)]
pub(super) struct Cleared {
    cancelled: u64,
}

/// `GET /queues`: what waits by priority, for how long, and what is paused.
pub(super) async fn show(State(api): State<Api>) -> Answer<QueueView> {
    Ok(Json(api.services.queue().await?))
}

/// `GET /queues/depth`: how many jobs wait.
pub(super) async fn depth(State(api): State<Api>, RawQuery(query): RawQuery) -> Answer<Depth> {
    let priority = query::priority(query.as_deref().unwrap_or_default()).map_err(Problem::invalid)?;
    Ok(Json(Depth { depth: api.services.queries.queue_depth(priority).await? }))
}

/// `GET /queues/peek`: the jobs that are next, in dispatch order.
pub(super) async fn peek(State(api): State<Api>, RawQuery(query): RawQuery) -> Answer<Vec<Job>> {
    let wanted = query::peek(query.as_deref().unwrap_or_default()).map_err(Problem::invalid)?;
    Ok(Json(api.services.queries.queue_peek(wanted.limit, wanted.priority).await?))
}

/// `POST /queues/pause`: holds the jobs of a model back, or all.
pub(super) async fn pause(State(api): State<Api>, RawQuery(query): RawQuery) -> Answer<Paused> {
    let model = query::model(query.as_deref().unwrap_or_default()).map_err(Problem::invalid)?;
    Ok(Json(api.services.pause_queue(model).await?))
}

/// `POST /queues/resume`: lets the jobs of a model go on, or ends every pause.
pub(super) async fn resume(State(api): State<Api>, RawQuery(query): RawQuery) -> Answer<Paused> {
    let model = query::model(query.as_deref().unwrap_or_default()).map_err(Problem::invalid)?;
    Ok(Json(api.services.resume_queue(model).await?))
}

/// `DELETE /queues`: calls the jobs off that wait.
pub(super) async fn clear(State(api): State<Api>, RawQuery(query): RawQuery) -> Answer<Cleared> {
    let priority = query::priority(query.as_deref().unwrap_or_default()).map_err(Problem::invalid)?;
    Ok(Json(Cleared { cancelled: api.services.clear_queue(priority).await? }))
}

/// `GET /queues/metrics`: the series, the oldest row first.
pub(super) async fn metrics(State(api): State<Api>, RawQuery(query): RawQuery) -> Answer<Vec<QueueMetrics>> {
    let wanted = query::metrics(query.as_deref().unwrap_or_default()).map_err(Problem::invalid)?;
    Ok(Json(api.services.queries.queue_metrics(wanted.since, wanted.limit).await?))
}
