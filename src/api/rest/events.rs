//! Server-Sent Events: changes of jobs as they are committed.
//!
//! Each event's id says how far a client has come, for `Last-Event-ID`. A `reset` says that changes may be missing
//! before it: what is known must be read anew.

use std::convert::Infallible;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{Stream, StreamExt, stream};
use serde_json::json;

use super::openapi::requests;
use super::path::JobPath;
use crate::api::gate::GoodUntil;
use crate::api::problem::Problem;
use crate::api::state::Api;
use crate::domain::changes::Cursor;
use crate::domain::ids::JobId;
use crate::domain::validate::FieldError;
use crate::services::watching::{Follower, JobWatch, Update};

/// Where a client goes on.
const LAST_EVENT_ID: &str = "Last-Event-ID";
/// So often something is sent, so that a dead connection is noticed.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Streams the changes of all jobs as they are committed.
///
/// Server-Sent Events without an end: `start` tells where it begins, `status` carries a change, `reset` says that changes may be missing
/// before it, so that what is known must be read anew. Each has an id for `Last-Event-ID`, which any replica understands.
#[utoipa::path(
    get,
    path = "/api/v1/events",
    tag = "events",
    params(("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that the client knows; it goes on there", min_length = 3, pattern = "^[0-9]{1,18}-[0-9]{1,18}$", example = "12-345")),
    responses((status = 200, description = "Events, each with `id`, `event` and `data`", body = requests::StreamedEvent, content_type = "text/event-stream",
        example = json!({"id": "12-346", "event": "status", "data": "{\"job_id\":\"0190a5c0-0000-7000-8000-000000000001\",\"status\":\"running\",\"worker_id\":\"0190a5c0-0000-7000-8000-0000000000a1\",\"at\":\"2026-01-31T12:00:00Z\"}"})))
)]
pub(super) async fn all(
    State(api): State<Api>,
    Extension(good): Extension<GoodUntil>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let after = last_event_id(&headers)?;
    let mut follower = api.services.watching.follow().await?;
    let here = follower.at();
    let first = match after {
        None => Some(event(here, "start", &json!({}))),
        Some(after) if follower.resume(after) => None,
        Some(_) => Some(shown(&Update::Reset(here))),
    };
    let later = stream::unfold(follower, async |mut follower: Follower| {
        let updates = follower.next().await?;
        Some((updates.iter().map(shown).collect::<Vec<_>>(), follower))
    });
    Ok(answer(stream::iter(first).chain(later.flat_map(stream::iter)), good))
}

/// Streams a job's present state, then its changes, until it has ended.
///
/// Server-Sent Events: `status`, and `reset` where changes may be missing before it.
#[utoipa::path(
    get,
    path = "/api/v1/jobs/{id}/events",
    tag = "events",
    params(
        ("id" = JobId, Path, description = "The job", example = "0190a5c0-0000-7000-8000-000000000001"),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that the client knows; it goes on there", min_length = 3, pattern = "^[0-9]{1,18}-[0-9]{1,18}$", example = "12-345"),
    ),
    responses(
        (status = 200, description = "Events, each with `id`, `event` and `data`", body = requests::StreamedEvent, content_type = "text/event-stream",
        example = json!({"id": "12-346", "event": "status", "data": "{\"job_id\":\"0190a5c0-0000-7000-8000-000000000001\",\"status\":\"running\",\"worker_id\":\"0190a5c0-0000-7000-8000-0000000000a1\",\"at\":\"2026-01-31T12:00:00Z\"}"})),
        (status = 204, description = "Nothing came after the event that `Last-Event-ID` names, and nothing will"),
    )
)]
pub(super) async fn of_job(
    State(api): State<Api>,
    Extension(good): Extension<GoodUntil>,
    JobPath(id): JobPath,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let after = last_event_id(&headers)?;
    let Some(watch) = api.services.watch_job(id, after).await? else {
        return Ok(StatusCode::NO_CONTENT.into_response());
    };
    let events = stream::unfold(watch, async |mut watch: JobWatch| {
        // What went wrong is in the log; the client comes again and goes on where it was.
        let updates = watch.next().await?.ok()?;
        Some((updates.iter().map(shown).collect::<Vec<_>>(), watch))
    });
    Ok(answer(events.flat_map(stream::iter), good))
}

fn answer(events: impl Stream<Item = Event> + Send + 'static, good: GoodUntil) -> Response {
    let events = events.take_until(Box::pin(good.expired())).map(Ok::<_, Infallible>);
    Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("alive")).into_response()
}

fn last_event_id(headers: &HeaderMap) -> Result<Option<Cursor>, Problem> {
    let Some(id) = headers.get(LAST_EVENT_ID) else { return Ok(None) };
    let id = String::from_utf8_lossy(id.as_bytes());
    let id = id.parse().map_err(|message| Problem::invalid(vec![FieldError::new(LAST_EVENT_ID, message)]))?;
    Ok(Some(id))
}

fn shown(update: &Update) -> Event {
    match update {
        Update::Change(cursor, change) => event(*cursor, "status", &json!(change)),
        Update::Reset(cursor) => event(*cursor, "reset", &json!({})),
    }
}

fn event(cursor: Cursor, kind: &str, data: &serde_json::Value) -> Event {
    Event::default().id(cursor.to_string()).event(kind).data(data.to_string())
}
