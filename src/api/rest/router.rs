//! Every path of the REST surface.

use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, delete, get, patch, post};

use super::{events, jobs, system, workers};
use crate::api::guard;
use crate::api::problem::{Problem, ProblemType};
use crate::api::state::Api;

/// One method of one path.
struct Route {
    method: Method,
    path: &'static str,
    handler: MethodRouter<Api>,
}

/// The REST surface, ready to be served. Other routers are merged in front of the listener.
pub fn router(api: Api) -> Router {
    let mut router = Router::new();
    for Route { path, handler, .. } in all() {
        router = router.route(path, handler);
    }
    router
        .fallback(no_such_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(api.clone(), guard::http))
        .with_state(api)
}

/// Method and path pattern of everything that is served: the router is built from the same list.
pub fn routes() -> Vec<(Method, &'static str)> {
    all().into_iter().map(|route| (route.method, route.path)).collect()
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
        route(Method::GET, "/api/v1/workers/{id}", get(workers::show)),
        route(Method::GET, "/api/v1/cluster", get(system::cluster)),
        route(Method::GET, "/api/v1/health", get(system::health)),
        route(Method::GET, "/api/v1/health/live", get(system::live)),
        route(Method::GET, "/api/v1/health/ready", get(system::ready)),
        route(Method::GET, "/health", get(system::health)),
        route(Method::GET, "/health/live", get(system::live)),
        route(Method::GET, "/health/ready", get(system::ready)),
        route(Method::GET, "/metrics", get(system::metrics)),
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
