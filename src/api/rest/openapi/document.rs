//! The document, put together.

use std::sync::LazyLock;

use serde_json::{Value, json};
use utoipa::OpenApi;

use super::complete::{complete, member, refusals};
use super::examples::examples;
use super::shapes::shape;
use super::{pages, requests};
use crate::api::problem;
use crate::api::rest::{events, heartbeat, jobs, members, queues, router, system, workers};

/// What stands beside the handlers.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "CORTEX",
        description = "A job orchestrator for fleets of ML workers that stays up. Any replica takes any request.\n\n\
            Bodies and answers are JSON, or MessagePack with `Content-Type` and `Accept: application/vnd.msgpack` \
            (`application/msgpack` and `application/x-msgpack` are understood as well; what is nested too deeply to be packed is answered as JSON). Members of bodies and parameters that are \
            not known are ignored, but for the parameters of calls that do more without one; a known one other than `tag` may be given only once. Whatever is refused is answered with `application/problem+json` (RFC 9457), which names \
            all fields that are wrong at once; `HEAD` is answered wherever `GET` is, other methods with 405 and `Allow`.\n\n\
            A request may say to which trace it belongs (`traceparent` and `tracestate` of W3C Trace Context); a job's trace goes on to \
            its worker.\n\n\
            A 503 with `Retry-After` says that nothing was done and that the request may be sent again; without it the outcome is \
            not known."
    ),
    tags(
        (name = "jobs", description = "What is to be run, and what became of it"),
        (name = "events", description = "Changes as they happen"),
        (name = "workers", description = "Who runs jobs; most workers use gRPC instead"),
        (name = "queues", description = "What waits"),
        (name = "cluster", description = "The replicas"),
        (name = "operations", description = "Health, metrics, and this document"),
    ),
    paths(
        jobs::list, jobs::submit, jobs::submit_batch, jobs::stats, jobs::show, jobs::update, jobs::cancel, jobs::retry,
        jobs::executions, jobs::explain, events::of_job, events::all, workers::list, workers::register, workers::stats,
        workers::show, workers::remove, heartbeat::take, workers::drain, queues::show, queues::clear, queues::depth,
        queues::peek, queues::pause, queues::resume, queues::metrics, system::cluster, members::add, members::remove,
        members::transfer, system::health, system::live, system::ready, system::metrics, pages::served,
        pages::redirect, pages::page, pages::file,
    ),
    components(schemas(problem::ProblemBody, requests::Tag)),
)]
struct Declared;

/// OpenAPI 3.1 of everything that is served.
pub fn document() -> &'static Value {
    static DOCUMENT: LazyLock<Value> = LazyLock::new(assemble);
    &DOCUMENT
}

fn assemble() -> Value {
    // Texts, lists and maps with names always serialise.
    let mut declared = serde_json::to_value(Declared::openapi()).unwrap_or_default();
    let mut paths = declared["paths"].take();
    for probe in ["/health", "/health/live", "/health/ready"] {
        let mut again = paths[probe].clone();
        again["get"]["operationId"] =
            format!("api_{}", again["get"]["operationId"].as_str().unwrap_or_default()).into();
        paths[format!("/api/v1{probe}")] = again;
    }
    let examples = examples();
    for (method, path, access) in router::routes() {
        if let Some(operation) = paths.get_mut(path).and_then(|path| path.get_mut(member(&method))) {
            complete(operation, &method, path, access, &examples);
            let (tag, name) = (&operation["tags"][0], &operation["operationId"]);
            let id = format!("{}_{}", tag.as_str().unwrap_or_default(), name.as_str().unwrap_or_default());
            operation["operationId"] = id.into();
        }
    }
    declared["paths"] = paths;
    let token = json!({"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "A JSON Web Token, signed \
        with RS256, that has `sub`, `exp` and `role`. Roles: `viewer` reads, `submitter` also writes jobs, `worker` makes a \
        worker's calls for the workers that its subject has registered, `admin` may do everything. Nobody needs one where \
        `security.require_auth` is off."});
    let components = &mut declared["components"];
    components["responses"] = refusals();
    components["securitySchemes"] = json!({"token": token});
    if let Some(schemas) = components["schemas"].as_object_mut() {
        shape(schemas);
    }
    declared
}
