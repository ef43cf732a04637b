//! The trace of a request: what its headers say of it, and its span.
//!
//! A trace begins with a submission. Any other call is a part of one only if its caller says so.

use axum::http::{HeaderMap, StatusCode};
use tonic::Code;
use tracing::Span as LogSpan;

use crate::domain::trace::TraceContext;
pub(super) use crate::telemetry::traces::scope;
use crate::telemetry::traces::{Span, Tracer};

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

/// What a request has to do with traces: nothing, mostly.
pub(super) struct Trace {
    incoming: Option<TraceContext>,
    span: Option<Span>,
}

impl Trace {
    pub(super) fn of_http(tracer: &Tracer, method: &str, route: &str, headers: &HeaderMap) -> Self {
        let incoming = read(headers);
        let begins = method == "POST" && matches!(route, "/api/v1/jobs" | "/api/v1/jobs/batch");
        // What anybody may ask, and no job has to do with, is no part of a trace.
        let followed = route.starts_with("/api/v1/") && !route.starts_with("/api/v1/health");
        let span = followed.then(|| tracer.serve(incoming.as_ref(), begins, || http_name(method, route)));
        let mut span = span.flatten();
        if let Some(span) = &mut span {
            span.set("http.request.method", method.to_owned());
            span.set("http.route", route.to_owned());
        }
        Self { incoming, span }
    }

    /// A worker's session is no part of a trace: it is as long as the worker lives.
    pub(super) fn of_grpc(tracer: &Tracer, method: &'static str, headers: &HeaderMap) -> Self {
        let incoming = if method == "Session" { None } else { read(headers) };
        let begins = matches!(method, "SubmitJob" | "SubmitJobs");
        let mut span = tracer.serve(incoming.as_ref(), begins, || grpc_name(method));
        if let Some(span) = &mut span {
            span.set("rpc.system.name", "grpc");
            span.set("rpc.method", method);
        }
        Self { incoming, span }
    }

    /// Where the work for the request belongs.
    pub(super) fn context(&self) -> Option<TraceContext> {
        self.span.as_ref().map(Span::context).or(self.incoming.as_ref()).cloned()
    }

    /// The span of the request in the log, which names the trace where there is one.
    pub(super) fn log_span(
        &self,
        untraced: impl FnOnce() -> LogSpan,
        traced: impl FnOnce(String) -> LogSpan,
    ) -> LogSpan {
        match self.context() {
            Some(context) => traced(format!("{:032x}", context.trace_id)),
            None => untraced(),
        }
    }

    /// Strangers, and callers who ask too often, do not fill a collector.
    fn forget(&mut self) {
        if let Some(span) = self.span.take() {
            span.forget();
        }
    }

    pub(super) fn http_answered(&mut self, status: StatusCode) {
        let refused = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::TOO_MANY_REQUESTS];
        if refused.contains(&status) {
            self.forget();
        }
        if let Some(span) = &mut self.span {
            span.set("http.response.status_code", i64::from(status.as_u16()));
            if status.is_server_error() {
                span.fail(status.canonical_reason().unwrap_or("server error"));
            }
        }
    }

    /// `name` is gRPC's name of the code. Some codes blame the caller: they are no failure of the server.
    pub(super) fn grpc_answered(&mut self, code: Code, name: &'static str) {
        if matches!(code, Code::Unauthenticated | Code::PermissionDenied | Code::ResourceExhausted) {
            self.forget();
        }
        if let Some(span) = &mut self.span {
            span.set("rpc.response.status_code", name);
            let ours = [Code::Unknown, Code::DeadlineExceeded, Code::Unimplemented, Code::Internal];
            if ours.contains(&code) || matches!(code, Code::Unavailable | Code::DataLoss) {
                span.fail(name);
            }
        }
    }
}

/// The context that a request came with. One that cannot be read is none.
fn read(headers: &HeaderMap) -> Option<TraceContext> {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let parent = parents.next()?.to_str().ok()?.trim();
    if parents.next().is_some() {
        return None;
    }
    let states: Vec<&str> =
        headers.get_all(TRACESTATE).iter().filter_map(|state| state.to_str().ok()).collect();
    let state = (!states.is_empty()).then(|| states.join(","));
    TraceContext::parse(parent, state.as_deref())
}

/// `rest.<entity>.<verb>`: the entity as the path names it, the verb as its last word, else as the method says.
fn http_name(method: &str, route: &str) -> String {
    let path = route.strip_prefix("/api/v1").unwrap_or(route);
    let mut words = path.split('/').filter(|word| !word.is_empty() && !word.starts_with('{'));
    let entity = words.next().map_or("unmatched", |word| word.split('.').next().unwrap_or(word));
    let entity = entity.strip_suffix('s').unwrap_or(entity);
    let verb = match (method, words.next_back()) {
        ("POST", None | Some("batch")) if entity == "job" => "submit",
        (_, Some(word)) => word,
        ("GET", None) => "get",
        ("POST", None) => "create",
        ("PATCH", None) => "update",
        ("DELETE", None) => "delete",
        (_, None) => "other",
    };
    format!("rest.{entity}.{verb}")
}

fn grpc_name(method: &str) -> String {
    let (entity, verb) = match method {
        "SubmitJob" | "SubmitJobs" => ("job", "submit"),
        "GetJob" => ("job", "get"),
        "ListJobs" => ("job", "list"),
        "CancelJob" => ("job", "cancel"),
        "RetryJob" => ("job", "retry"),
        "WatchJob" => ("job", "watch"),
        "GetStats" => ("job", "stats"),
        "RegisterWorker" => ("worker", "register"),
        "Heartbeat" => ("worker", "heartbeat"),
        "PollJob" => ("job", "poll"),
        "UpdateJobStatus" => ("job", "report"),
        "CompleteJob" => ("job", "complete"),
        _ => ("call", "other"),
    };
    format!("grpc.{entity}.{verb}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn the_headers_name_the_trace() {
        let read =
            read(&headers(&[("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")])).unwrap();
        assert_eq!((read.traceparent().as_str(), read.tracestate()), (PARENT, "a=1,b=2"));
    }

    #[test]
    fn headers_that_are_malformed_or_ambiguous_are_ignored() {
        for wrong in
            [&[][..], &[("tracestate", "a=1")], &[("traceparent", "00-1")], &[("traceparent", PARENT); 2]]
        {
            assert_eq!(read(&headers(wrong)), None, "{wrong:?}");
        }
    }

    #[test]
    fn every_route_and_rpc_has_a_name_of_three_words() {
        let names: Vec<String> = crate::api::rest::routes()
            .into_iter()
            .map(|(method, path, _)| http_name(method.as_str(), path))
            .chain(crate::api::rpcs().map(|(rpc, _)| grpc_name(rpc.rsplit('/').next().unwrap())))
            .collect();
        for name in &names {
            assert_eq!(name.split('.').count(), 3, "{name}");
            assert!(!name.contains(['/', '{']), "{name}");
        }
        for name in
            ["rest.job.submit", "rest.job.retry", "rest.job.get", "rest.queue.pause", "grpc.job.submit"]
        {
            assert!(names.iter().any(|known| known == name), "{name} is missing in {names:?}");
        }
    }
}
