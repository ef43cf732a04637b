//! `/queues`.

use axum::Json;
use axum::extract::{RawQuery, State};
use serde::Serialize;

use super::body::NoBody;
use super::query;
use crate::api::problem::Problem;
use crate::api::state::Api;
use crate::domain::job::Job;
use crate::domain::pause::Paused;
use crate::domain::queue::{QueueMetrics, QueueView};

type Answer<T> = Result<Json<T>, Problem>;

/// How many jobs wait.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Depth {
    pub(super) depth: u64,
}

/// How many jobs were called off.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub(super) struct Cleared {
    pub(super) cancelled: u64,
}

/// Shows what waits by priority, for how long, and what is paused.
#[utoipa::path(
    get,
    path = "/api/v1/queues",
    tag = "queues",
    responses((status = 200, description = "The queue", body = QueueView))
)]
pub(super) async fn show(State(api): State<Api>) -> Answer<QueueView> {
    Ok(Json(api.services.queue().await?))
}

/// Counts the jobs that wait in the queue.
#[utoipa::path(
    get,
    path = "/api/v1/queues/depth",
    tag = "queues",
    params(("priority" = Option<u8>, Query, description = "Only jobs of this priority", minimum = 1, maximum = 10, example = 5),),
    responses((status = 200, description = "How many there are", body = Depth))
)]
pub(super) async fn depth(State(api): State<Api>, RawQuery(query): RawQuery) -> Answer<Depth> {
    let priority = query::depth(query.as_deref().unwrap_or_default()).map_err(Problem::invalid)?;
    Ok(Json(Depth { depth: api.services.queries.queue_depth(priority).await? }))
}

/// Lists the jobs that are next, in the order in which they will be given to workers.
#[utoipa::path(
    get,
    path = "/api/v1/queues/peek",
    tag = "queues",
    params(
        ("priority" = Option<u8>, Query, description = "Only jobs of this priority", minimum = 1, maximum = 10, example = 5),
        ("limit" = Option<i32>, Query, description = "Most jobs to list, 10 by default", minimum = 1, maximum = 100, example = 10),
    ),
    responses((status = 200, description = "The jobs", body = Vec<Job>))
)]
pub(super) async fn peek(State(api): State<Api>, RawQuery(query): RawQuery) -> Answer<Vec<Job>> {
    let wanted = query::peek(query.as_deref().unwrap_or_default()).map_err(Problem::invalid)?;
    Ok(Json(api.services.queries.queue_peek(wanted.limit, wanted.priority).await?))
}

/// Holds back the jobs of a model, or all.
///
/// None of them is assigned any more, in all of the cluster; those that are assigned already go on.
#[utoipa::path(
    post,
    path = "/api/v1/queues/pause",
    tag = "queues",
    params(("model_name" = Option<String>, Query, description = "Whose jobs; without it all jobs", min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$", example = "resnet")),
    responses(
        (status = 200, description = "What is paused now", body = Paused),
        (status = 409, description = "As many models are paused as may be: 1,000"),
    )
)]
pub(super) async fn pause(State(api): State<Api>, RawQuery(query): RawQuery, _: NoBody) -> Answer<Paused> {
    let model = query::model(query.as_deref().unwrap_or_default()).map_err(Problem::invalid)?;
    Ok(Json(api.services.pause_queue(model).await?))
}

/// Lets the jobs of a model go on, or ends every pause.
#[utoipa::path(
    post,
    path = "/api/v1/queues/resume",
    tag = "queues",
    params(("model_name" = Option<String>, Query, description = "Whose jobs; without it every pause ends", min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$", example = "resnet")),
    responses((status = 200, description = "What is paused now", body = Paused))
)]
pub(super) async fn resume(State(api): State<Api>, RawQuery(query): RawQuery, _: NoBody) -> Answer<Paused> {
    let model = query::model(query.as_deref().unwrap_or_default()).map_err(Problem::invalid)?;
    Ok(Json(api.services.resume_queue(model).await?))
}

/// Cancels the jobs that wait in the queue.
#[utoipa::path(
    delete,
    path = "/api/v1/queues",
    tag = "queues",
    params(("priority" = Option<u8>, Query, description = "Only jobs of this priority", minimum = 1, maximum = 10, example = 5),),
    responses((status = 200, description = "How many were cancelled", body = Cleared))
)]
pub(super) async fn clear(State(api): State<Api>, RawQuery(query): RawQuery, _: NoBody) -> Answer<Cleared> {
    let priority = query::priority(query.as_deref().unwrap_or_default()).map_err(Problem::invalid)?;
    Ok(Json(Cleared { cancelled: api.services.clear_queue(priority).await? }))
}

/// Shows how the queue fared: the series `queue_metrics`, oldest first.
///
/// From `since` on, or the newest rows.
#[utoipa::path(
    get,
    path = "/api/v1/queues/metrics",
    tag = "queues",
    params(
        ("since" = Option<String>, Query, description = "From when on", format = DateTime, example = "2026-01-31T12:00:00Z"),
        ("limit" = Option<i32>, Query, description = "Most rows, 100 by default", minimum = 1, maximum = 1000, example = 100),
    ),
    responses((status = 200, description = "The rows", body = Vec<QueueMetrics>))
)]
pub(super) async fn metrics(State(api): State<Api>, RawQuery(query): RawQuery) -> Answer<Vec<QueueMetrics>> {
    let wanted = query::metrics(query.as_deref().unwrap_or_default()).map_err(Problem::invalid)?;
    Ok(Json(api.services.queries.queue_metrics(wanted.since, wanted.limit).await?))
}
