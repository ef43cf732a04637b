//! Bodies of REST requests, JSON and MessagePack, through the handlers that read them.

use axum::body::Body;
use axum::http::{Request, StatusCode};
use cortex::api::Gate;
use serde_json::Value;

use crate::surface::Surface;

/// Every route that reads a body (`tests/fuzz_corpus.rs` compares them with the router).
pub const ROUTES: [(&str, &str); 7] = [
    ("POST", "/api/v1/jobs"),
    ("POST", "/api/v1/jobs/batch"),
    ("PATCH", "/api/v1/jobs/{id}"),
    ("POST", "/api/v1/workers"),
    ("POST", "/api/v1/workers/{id}/heartbeat"),
    ("POST", "/api/v1/cluster/members"),
    ("POST", "/api/v1/cluster/transfer"),
];
const ID: &str = "0190a5c0-0000-7000-8000-000000000001";

/// The first byte names the route, from `a` on, with a capital letter for MessagePack; the others are the body.
pub fn run(data: &[u8]) {
    thread_local! {
        static SURFACE: Surface = Surface::new(Gate::default);
    }
    let Some((selector, body)) = data.split_first() else { return };
    let (method, path) = ROUTES[usize::from((selector | 0x20).wrapping_sub(b'a')) % ROUTES.len()];
    let kind = if selector & 0x20 == 0 { "application/msgpack" } else { "application/json" };
    let request = Request::builder()
        .method(method)
        .uri(path.replace("{id}", ID))
        .header("content-type", kind)
        .body(Body::from(body.to_vec()))
        .unwrap();
    let (status, answer) = SURFACE.with(|surface| surface.call(request));
    let problem: Value = serde_json::from_slice(&answer).unwrap();
    assert_eq!(problem["status"], status.as_u16(), "{problem}");
    // Nothing that a client sends makes a 5xx but the one that says that there is no leader.
    let fine = status.is_client_error() || status == StatusCode::SERVICE_UNAVAILABLE;
    assert!(fine, "{method} {path}: {problem}");
    let errors = problem["errors"].as_array();
    let named = status != StatusCode::UNPROCESSABLE_ENTITY || errors.is_some_and(|errors| !errors.is_empty());
    assert!(named, "refused, and nobody knows why: {problem}");
}
