//! What surrounds every request: a span, a deadline, a net for panics, and the observer.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use tonic::{Code, Status};
use tracing::{Instrument, Span, debug_span, error, field, info_span, warn};

use super::access;
use super::convert::MAX_WAIT;
use super::grpc;
use super::messagepack;
use super::problem::{PROBLEM_METADATA, Problem, ProblemType, status};
use super::state::Api;
use super::trace::{self, Trace};
use crate::services::error::ServiceError;

/// Label value for whatever a client made up, so that no client can add label values.
const OTHER: &str = "other";

/// RPCs whose answers may be large.
const LARGE: [&str; 2] = ["GetJob", "ListJobs"];

/// So long before its deadline a gRPC call is given up: at the deadline the transport would answer, and call it
/// `CANCELLED`.
const BEFORE_DEADLINE: Duration = Duration::from_millis(10);

/// Is told about every request once it is answered. Must not block.
pub trait Observe: Send + Sync + 'static {
    /// `route` is the pattern that matched (`/api/v1/jobs/{id}`) or `unmatched`.
    fn http(&self, method: &'static str, route: &str, status: u16, took: Duration);

    /// `method` is the method's name or `other`; `code` is gRPC's name of it, such as `NOT_FOUND`. A stream
    /// is reported when it begins.
    fn grpc(&self, method: &'static str, code: &'static str, took: Duration);
}

/// Surrounds a REST request.
pub(super) async fn http(State(api): State<Api>, request: Request, next: Next) -> Response {
    let started = api.ambient.instant();
    let method = method_label(request.method());
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().map_or("unmatched", MatchedPath::as_str);
    let reads = request.method().is_safe();
    let packed_as = messagepack::wanted(request.headers());
    let mut trace = Trace::of_http(&api.tracer, method, route, request.headers());
    let span = trace.log_span(
        || debug_span!("api.http.request", method, route, status = field::Empty),
        |trace_id| info_span!("api.http.request", trace_id, method, route, status = field::Empty),
    );
    let refusal = match api.gate.takes(request.headers()) {
        Ok(()) => (api.inspect.removed() && needs_a_member(route)).then(not_a_member),
        Err(too_large) => Some(too_large),
    };
    let answer = match refusal {
        Some(problem) => Ok(problem.into_response()),
        None => {
            let work = trace::scope(trace.context(), next.run(request));
            guarded(work, limit(&api, method, route), &span).await
        }
    };
    let mut response = answer.unwrap_or_else(|broken| match broken {
        Broken::Panicked => Problem::from(ServiceError::Internal).into_response(),
        Broken::TooSlow => {
            let kind = if reads { ProblemType::StoreUnavailable } else { ProblemType::OutcomeUnknown };
            span.in_scope(|| too_slow(kind)).into_response()
        }
    });
    if let Some(name) = packed_as {
        response = messagepack::packed(response, name).await;
    }
    // What was changed is told in any case.
    if reads {
        let carried = api.gate.answers.carry(response).await;
        response = carried.unwrap_or_else(IntoResponse::into_response);
    }
    span.record("status", response.status().as_u16());
    trace.http_answered(response.status());
    let took = api.ambient.instant().saturating_duration_since(started);
    api.observer.http(method, route, response.status().as_u16(), took);
    response
}

/// Surrounds a gRPC call.
pub(super) async fn grpc(State(api): State<Api>, request: Request, next: Next) -> Response {
    let started = api.ambient.instant();
    let known = access::rpc_name(request.uri().path());
    let method = known.unwrap_or(OTHER);
    let mut trace = Trace::of_grpc(&api.tracer, method, request.headers());
    let span = trace.log_span(
        || debug_span!("api.grpc.call", method, code = field::Empty),
        |trace_id| info_span!("api.grpc.call", trace_id, method, code = field::Empty),
    );
    let most = api.limits.request_timeout + MAX_WAIT;
    let asked = grpc::deadline(request.headers()).filter(|asked| *asked <= most);
    let limit = asked.map_or(most, |asked| asked.saturating_sub(BEFORE_DEADLINE).max(asked / 2));
    let answer = if known.is_some() && api.inspect.removed() {
        Ok(Status::from(not_a_member()).into_http())
    } else {
        guarded(trace::scope(trace.context(), next.run(request)), limit, &span).await
    };
    let mut response = match answer {
        Ok(response) => response,
        Err(Broken::Panicked) => status(ServiceError::Internal).into_http(),
        Err(Broken::TooSlow) if asked.is_some() => {
            Status::deadline_exceeded("the call's deadline has passed; what it asked for may have been done")
                .into_http()
        }
        Err(Broken::TooSlow) => {
            Status::from(span.in_scope(|| too_slow(ProblemType::OutcomeUnknown))).into_http()
        }
    };
    if known.is_some()
        && let Some(problem) = unreadable(&response)
    {
        response = Status::from(problem).into_http();
    }
    if LARGE.contains(&method) {
        let carried = api.gate.answers.carry_whole(response).await;
        response = carried.unwrap_or_else(|problem| Status::from(problem).into_http());
    }
    let code = code_name(code_of(&response));
    span.record("code", code);
    trace.grpc_answered(code_of(&response), code);
    api.observer.grpc(method, code, api.ambient.instant().saturating_duration_since(started));
    response
}

/// How long a request may take.
fn limit(api: &Api, method: &str, route: &str) -> Duration {
    match (method, route) {
        ("DELETE", "/api/v1/queues") => api.limits.clear_timeout,
        _ => api.limits.request_timeout,
    }
}

/// Whether a route is closed at a replica that is no member any more; it still shows how it is.
fn needs_a_member(route: &str) -> bool {
    route.starts_with("/api/v1/") && !route.starts_with("/api/v1/health")
}

fn not_a_member() -> Problem {
    Problem::new(ProblemType::NotAMember, "this replica was removed from the cluster; ask another one")
}

/// Why there is no answer.
enum Broken {
    Panicked,
    TooSlow,
}

/// Runs a handler inside `span`, for at most `limit`.
async fn guarded(
    answer: impl Future<Output = Response>,
    limit: Duration,
    span: &Span,
) -> Result<Response, Broken> {
    let caught = AssertUnwindSafe(answer).catch_unwind();
    async {
        match tokio::time::timeout(limit, caught).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(panic)) => {
                error!(panic = panic_text(panic.as_ref()), "A request handler panicked.");
                Err(Broken::Panicked)
            }
            Err(_) => Err(Broken::TooSlow),
        }
    }
    .instrument(span.clone())
    .await
}

fn too_slow(kind: ProblemType) -> Problem {
    warn!("A request was given up because it took too long.");
    Problem::new(kind, "the request was given up because it took too long")
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// A message that could not be decoded. The transport calls that its own internal error; the statuses of
/// the handlers are told apart by their metadata.
fn unreadable(response: &Response) -> Option<Problem> {
    if response.headers().contains_key(PROBLEM_METADATA) {
        return None;
    }
    let cause = response.extensions().get::<Status>().map_or("", Status::message);
    match code_of(response) {
        Code::Internal => Some(Problem::new(
            ProblemType::MalformedRequest,
            format!("the request message cannot be decoded: {cause}"),
        )),
        Code::OutOfRange => Some(Problem::new(ProblemType::BodyTooLarge, cause)),
        _ => None,
    }
}

/// The code of a call that ended before it answered; an answer carries its code in the trailers.
fn code_of(response: &Response) -> Code {
    match response.headers().get(Status::GRPC_STATUS) {
        Some(code) => Code::from_bytes(code.as_bytes()),
        None if response.status() == StatusCode::OK => Code::Ok,
        None => Code::Unknown,
    }
}

fn method_label(method: &Method) -> &'static str {
    const KNOWN: [Method; 7] = [
        Method::GET,
        Method::POST,
        Method::PATCH,
        Method::DELETE,
        Method::PUT,
        Method::HEAD,
        Method::OPTIONS,
    ];
    const LABELS: [&str; 7] = ["GET", "POST", "PATCH", "DELETE", "PUT", "HEAD", "OPTIONS"];
    KNOWN.iter().position(|known| known == method).map_or(OTHER, |at| LABELS[at])
}

const fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_cannot_make_up_label_values() {
        assert_eq!(method_label(&Method::PATCH), "PATCH");
        assert_eq!(method_label(&Method::from_bytes(b"BREW").unwrap()), OTHER);
    }

    #[test]
    fn only_statuses_of_the_transport_are_taken_for_unreadable_messages() {
        let decoding: Response = Status::internal("failed to decode").into_http();
        assert_eq!(unreadable(&decoding).map(|problem| problem.kind()), Some(ProblemType::MalformedRequest));
        let large: Response = Status::out_of_range("too large").into_http();
        assert_eq!(unreadable(&large).map(|problem| problem.kind()), Some(ProblemType::BodyTooLarge));
        let ours: Response = status(ServiceError::Internal).into_http();
        assert_eq!(unreadable(&ours), None);
        assert_eq!(code_of(&ours), Code::Internal);
    }

    #[test]
    fn a_replica_that_was_removed_still_shows_how_it_is() {
        let closed: Vec<_> = crate::api::rest::routes().into_iter().map(|(_, path, _)| path).collect();
        let open: Vec<_> = closed.iter().filter(|path| !needs_a_member(path)).collect();
        assert_eq!(open.len(), 11, "{open:?}");
        let about_itself = ["/health", "/metrics", "/docs", "/openapi.json"];
        assert!(open.iter().all(|path| about_itself.iter().any(|known| path.contains(known))), "{open:?}");
    }

    #[tokio::test]
    async fn a_panic_and_a_hang_become_answers() {
        let limit = Duration::from_millis(1);
        let panics = async { panic!("on purpose") };
        assert!(matches!(guarded(panics, limit, &Span::none()).await, Err(Broken::Panicked)));
        let hangs = std::future::pending();
        assert!(matches!(guarded(hangs, limit, &Span::none()).await, Err(Broken::TooSlow)));
    }
}
