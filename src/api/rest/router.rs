//! Every path of the REST surface.

use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, any, delete, get, patch, post};

use super::{events, heartbeat, jobs, members, openapi, queues, system, workers};
use crate::api::problem::{Problem, ProblemType};
use crate::api::state::Api;
use crate::api::{gate, guard};
use crate::security::Access;

/// One method of one path, and what it asks of its caller.
struct Route {
    access: Access,
    method: Method,
    path: &'static str,
    handler: MethodRouter<Api>,
}

/// The REST surface, ready to be served. Other routers are merged in front of the listener.
pub fn router(api: Api) -> Router {
    let cors = api.gate.cors.clone();
    let mut router = Router::new();
    for Route { access, path, handler, .. } in all() {
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
    all().into_iter().map(|route| (route.method, route.path, route.access)).collect()
}

fn all() -> Vec<Route> {
    let open = |method, path, handler| Route { access: Access::Open, method, path, handler };
    let read = |method, path, handler| Route { access: Access::Read, method, path, handler };
    let submit = |method, path, handler| Route { access: Access::Submit, method, path, handler };
    let work = |method, path, handler| Route { access: Access::Work, method, path, handler };
    let administer = |method, path, handler| Route { access: Access::Administer, method, path, handler };
    vec![
        read(Method::GET, "/api/v1/jobs", get(jobs::list)),
        submit(Method::POST, "/api/v1/jobs", post(jobs::submit)),
        submit(Method::POST, "/api/v1/jobs/batch", post(jobs::submit_batch)),
        // Declared literally, so that `/jobs/{id}` cannot shadow it.
        read(Method::GET, "/api/v1/jobs/stats/summary", get(jobs::stats)),
        read(Method::GET, "/api/v1/jobs/{id}", get(jobs::show)),
        submit(Method::PATCH, "/api/v1/jobs/{id}", patch(jobs::update)),
        submit(Method::DELETE, "/api/v1/jobs/{id}", delete(jobs::cancel)),
        submit(Method::POST, "/api/v1/jobs/{id}/retry", post(jobs::retry)),
        read(Method::GET, "/api/v1/jobs/{id}/executions", get(jobs::executions)),
        read(Method::GET, "/api/v1/jobs/{id}/explain", get(jobs::explain)),
        read(Method::GET, "/api/v1/jobs/{id}/events", get(events::of_job)),
        read(Method::GET, "/api/v1/events", get(events::all)),
        read(Method::GET, "/api/v1/workers", get(workers::list)),
        work(Method::POST, "/api/v1/workers", post(workers::register)),
        // Declared literally, so that `/workers/{id}` cannot shadow it.
        read(Method::GET, "/api/v1/workers/stats/summary", get(workers::stats)),
        read(Method::GET, "/api/v1/workers/{id}", get(workers::show)),
        administer(Method::DELETE, "/api/v1/workers/{id}", delete(workers::remove)),
        work(Method::POST, "/api/v1/workers/{id}/heartbeat", post(heartbeat::take)),
        administer(Method::POST, "/api/v1/workers/{id}/drain", post(workers::drain)),
        read(Method::GET, "/api/v1/queues", get(queues::show)),
        administer(Method::DELETE, "/api/v1/queues", delete(queues::clear)),
        read(Method::GET, "/api/v1/queues/depth", get(queues::depth)),
        read(Method::GET, "/api/v1/queues/peek", get(queues::peek)),
        administer(Method::POST, "/api/v1/queues/pause", post(queues::pause)),
        administer(Method::POST, "/api/v1/queues/resume", post(queues::resume)),
        read(Method::GET, "/api/v1/queues/metrics", get(queues::metrics)),
        read(Method::GET, "/api/v1/cluster", get(system::cluster)),
        administer(Method::POST, "/api/v1/cluster/members", post(members::add)),
        administer(Method::DELETE, "/api/v1/cluster/members/{id}", delete(members::remove)),
        administer(Method::POST, "/api/v1/cluster/transfer", post(members::transfer)),
        open(Method::GET, "/api/v1/health", get(system::health)),
        open(Method::GET, "/api/v1/health/live", get(system::live)),
        open(Method::GET, "/api/v1/health/ready", get(system::ready)),
        open(Method::GET, "/health", get(system::health)),
        open(Method::GET, "/health/live", get(system::live)),
        open(Method::GET, "/health/ready", get(system::ready)),
        open(Method::GET, "/metrics", get(system::metrics)),
        open(Method::GET, "/openapi.json", get(openapi::served)),
        open(Method::GET, "/docs", get(openapi::redirect)),
        open(Method::GET, "/docs/", get(openapi::page)),
        open(Method::GET, "/docs/{file}", get(openapi::file)),
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
