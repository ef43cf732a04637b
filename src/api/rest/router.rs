//! Every path of the REST surface.

use axum::Router;
use axum::http::{Method, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

use super::{jobs, system, workers};
use crate::api::guard;
use crate::api::problem::{Problem, ProblemType};
use crate::api::state::Api;

/// The REST surface, ready to be served. Other routers are merged in front of the listener.
pub fn router(api: Api) -> Router {
    let v1 = Router::new()
        .route("/jobs", get(jobs::list).post(jobs::submit))
        // Declared literally, so that `/jobs/{id}` cannot shadow it.
        .route("/jobs/stats/summary", get(jobs::stats))
        .route("/jobs/{id}", get(jobs::show).patch(jobs::update).delete(jobs::cancel))
        .route("/jobs/{id}/retry", post(jobs::retry))
        .route("/jobs/{id}/executions", get(jobs::executions))
        .route("/workers", get(workers::list).post(workers::register))
        .route("/workers/{id}", get(workers::show))
        .route("/cluster", get(system::cluster))
        .merge(probes());
    Router::new()
        .nest("/api/v1", v1)
        .merge(probes())
        .route("/metrics", get(system::metrics))
        .fallback(no_such_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(api.clone(), guard::http))
        .with_state(api)
}

fn probes() -> Router<Api> {
    Router::new()
        .route("/health", get(system::health))
        .route("/health/live", get(system::live))
        .route("/health/ready", get(system::ready))
}

async fn no_such_route(uri: Uri) -> Problem {
    Problem::new(ProblemType::NoSuchRoute, format!("nothing is served at {:.200}", uri.path()))
}

/// The `Allow` header is added by the router.
async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    let detail = format!("{:.200} does not take {:.20}", uri.path(), method.as_str());
    Problem::new(ProblemType::MethodNotAllowed, detail)
}
