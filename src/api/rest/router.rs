//! Every path of the REST surface.

use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, any, delete, get, patch, post};

use super::{events, heartbeat, jobs, members, openapi, queues, system, workers};
use crate::api::problem::{Problem, ProblemType};
use crate::api::state::Api;
use crate::api::{access, gate, guard};
use crate::security::Access;

/// One method of one path.
struct Route {
    method: Method,
    path: &'static str,
    handler: MethodRouter<Api>,
}

/// The REST surface, ready to be served. Other routers are merged in front of the listener.
pub fn router(api: Api) -> Router {
    let cors = api.gate.cors.clone();
    let mut router = Router::new();
    for Route { method, path, handler } in all() {
        let access = access::of_route(&method, path);
        // Around the handler itself, so that what is served is what was declared.
        router =
            router.route(path, handler.route_layer(from_fn_with_state((api.clone(), access), gate::http)));
    }
    // What is not served is told to those who may look.
    let nothing = from_fn_with_state((api.clone(), Access::Read), gate::http);
    let router = router
        .fallback_service(any(no_such_route).layer(nothing).with_state(api.clone()))
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(api.clone(), guard::http))
        .with_state(api);
    match cors {
        Some(cors) => router.layer(cors),
        None => router,
    }
}

/// Method and path pattern of everything that is served, and what it asks for: the router is built from the
/// same list.
pub fn routes() -> Vec<(Method, &'static str, Access)> {
    let shown = |route: Route| {
        let access = access::of_route(&route.method, route.path);
        (route.method, route.path, access)
    };
    all().into_iter().map(shown).collect()
}

fn all() -> Vec<Route> {
    let route = |method, path, handler| Route { method, path, handler };
    vec![
        route(Method::GET, "/api/v1/jobs", get(jobs::list)),
        route(Method::POST, "/api/v1/jobs", post(jobs::submit)),
        route(Method::POST, "/api/v1/jobs/batch", post(jobs::submit_batch)),
        // Declared literally, so that `/jobs/{id}` cannot shadow it.
        route(Method::GET, "/api/v1/jobs/stats/summary", get(jobs::stats)),
        route(Method::GET, "/api/v1/jobs/{id}", get(jobs::show)),
        route(Method::PATCH, "/api/v1/jobs/{id}", patch(jobs::update)),
        route(Method::DELETE, "/api/v1/jobs/{id}", delete(jobs::cancel)),
        route(Method::POST, "/api/v1/jobs/{id}/retry", post(jobs::retry)),
        route(Method::GET, "/api/v1/jobs/{id}/executions", get(jobs::executions)),
        route(Method::GET, "/api/v1/jobs/{id}/explain", get(jobs::explain)),
        route(Method::GET, "/api/v1/jobs/{id}/events", get(events::of_job)),
        route(Method::GET, "/api/v1/events", get(events::all)),
        route(Method::GET, "/api/v1/workers", get(workers::list)),
        route(Method::POST, "/api/v1/workers", post(workers::register)),
        // Declared literally, so that `/workers/{id}` cannot shadow it.
        route(Method::GET, "/api/v1/workers/stats/summary", get(workers::stats)),
        route(Method::GET, "/api/v1/workers/{id}", get(workers::show)),
        route(Method::DELETE, "/api/v1/workers/{id}", delete(workers::remove)),
        route(Method::POST, "/api/v1/workers/{id}/heartbeat", post(heartbeat::take)),
        route(Method::POST, "/api/v1/workers/{id}/drain", post(workers::drain)),
        route(Method::GET, "/api/v1/queues", get(queues::show)),
        route(Method::DELETE, "/api/v1/queues", delete(queues::clear)),
        route(Method::GET, "/api/v1/queues/depth", get(queues::depth)),
        route(Method::GET, "/api/v1/queues/peek", get(queues::peek)),
        route(Method::POST, "/api/v1/queues/pause", post(queues::pause)),
        route(Method::POST, "/api/v1/queues/resume", post(queues::resume)),
        route(Method::GET, "/api/v1/queues/metrics", get(queues::metrics)),
        route(Method::GET, "/api/v1/cluster", get(system::cluster)),
        route(Method::POST, "/api/v1/cluster/members", post(members::add)),
        route(Method::DELETE, "/api/v1/cluster/members/{id}", delete(members::remove)),
        route(Method::POST, "/api/v1/cluster/transfer", post(members::transfer)),
        route(Method::GET, "/api/v1/health", get(system::health)),
        route(Method::GET, "/api/v1/health/live", get(system::live)),
        route(Method::GET, "/api/v1/health/ready", get(system::ready)),
        route(Method::GET, "/health", get(system::health)),
        route(Method::GET, "/health/live", get(system::live)),
        route(Method::GET, "/health/ready", get(system::ready)),
        route(Method::GET, "/metrics", get(system::metrics)),
        route(Method::GET, "/openapi.json", get(openapi::served)),
        route(Method::GET, "/docs", get(openapi::redirect)),
        route(Method::GET, "/docs/", get(openapi::page)),
        route(Method::GET, "/docs/{file}", get(openapi::file)),
    ]
}

async fn no_such_route(uri: Uri) -> Problem {
    Problem::new(ProblemType::NoSuchRoute, format!("nothing is served at {:.200}", uri.path()))
}

/// The `Allow` header is added by the router.
async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let detail = format!("{:.200} does not take {:.20}", uri.path(), method.as_str());
    Problem::new(ProblemType::MethodNotAllowed, detail)
}
