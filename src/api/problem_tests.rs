use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::domain::job::JobStatus;
use crate::services::error::Conflict;

/// Content type, `Retry-After` and body of a problem.
async fn shown(problem: impl Into<Problem>) -> (String, Option<String>, Value) {
    let response = problem.into().into_response();
    let text = |name| response.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (kind, retry) = (text(header::CONTENT_TYPE).unwrap(), text(header::RETRY_AFTER));
    let status = response.status().as_u16();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(body["status"], status, "the member repeats the status line");
    (kind, retry, body)
}

#[tokio::test]
async fn every_service_error_looks_like_this_over_rest() {
    let invalid = ServiceError::Invalid(vec![FieldError::new("name", "is required")]);
    let conflict = Conflict::State { from: JobStatus::Completed, action: "cancelled".to_owned() };
    let cases = [
        (
            invalid,
            None,
            json!({"type": "urn:cortex:problem:invalid-fields", "title": "Fields are invalid", "status": 422,
                "detail": "1 of the request's fields are invalid",
                "errors": [{"field": "name", "message": "is required"}]}),
        ),
        (
            ServiceError::no_job("7"),
            None,
            json!({"type": "urn:cortex:problem:not-found", "title": "Not found", "status": 404,
                "detail": "job 7 does not exist"}),
        ),
        (
            ServiceError::Conflict(conflict),
            None,
            json!({"type": "urn:cortex:problem:conflict", "title": "The state does not allow it", "status": 409,
                "detail": "a job that is completed cannot be cancelled"}),
        ),
        (
            ServiceError::QueueFull { limit: 10 },
            Some("1"),
            json!({"type": "urn:cortex:problem:queue-full", "title": "The queue is full", "status": 429,
                "detail": "there is no room: the queue holds 10 jobs at the most"}),
        ),
        (
            ServiceError::Overloaded,
            Some("1"),
            json!({"type": "urn:cortex:problem:overloaded", "title": "Too many requests", "status": 429,
                "detail": "the leader has more requests waiting than it may hold"}),
        ),
        (
            ServiceError::NoLeader,
            Some("1"),
            json!({"type": "urn:cortex:problem:no-leader", "title": "There is no leader", "status": 503,
                "detail": "there is no leader at the moment"}),
        ),
        (
            ServiceError::Unavailable { reason: "PostgreSQL is unavailable: its disk is full".to_owned() },
            Some("1"),
            json!({"type": "urn:cortex:problem:store-unavailable", "title": "A store is unavailable", "status": 503,
                "detail": "PostgreSQL is unavailable: its disk is full"}),
        ),
        (
            ServiceError::OutcomeUnknown,
            None,
            json!({"type": "urn:cortex:problem:outcome-unknown", "title": "The outcome is unknown", "status": 503,
                "detail": "the outcome of the request is unknown: the connection to the leader or to PostgreSQL \
                    broke"}),
        ),
        (
            ServiceError::Internal,
            None,
            json!({"type": "urn:cortex:problem:internal", "title": "Internal error", "status": 500,
                "detail": "an internal error happened; the log of the replica tells more"}),
        ),
    ];
    for (error, retry, expected) in cases {
        let (kind, after, body) = shown(error).await;
        assert_eq!((kind.as_str(), after.as_deref(), body), (PROBLEM_JSON, retry, expected));
    }
}

#[tokio::test]
async fn every_transport_error_looks_like_this_over_rest() {
    let cases = [
        (ProblemType::MalformedRequest, 400, "The request cannot be read"),
        (ProblemType::NoSuchRoute, 404, "No such path"),
        (ProblemType::MethodNotAllowed, 405, "Method not allowed"),
        (ProblemType::RequestTimeout, 408, "The request arrived too slowly"),
        (ProblemType::BodyTooLarge, 413, "The body is too large"),
        (ProblemType::UnsupportedMediaType, 415, "Unsupported media type"),
    ];
    for (kind, status, title) in cases {
        let (_, retry, body) = shown(Problem::new(kind, "because")).await;
        let expected = json!({"type": kind.uri(), "title": title, "status": status, "detail": "because"});
        assert_eq!((retry, body), (None, expected));
    }
}

#[test]
fn every_service_error_has_its_grpc_code() {
    let stale = Conflict::StaleLease("another attempt has replaced it".to_owned());
    let cases = [
        (ServiceError::Invalid(vec![]), Code::InvalidArgument),
        (ServiceError::no_worker("7"), Code::NotFound),
        (ServiceError::Conflict(stale), Code::FailedPrecondition),
        (ServiceError::QueueFull { limit: 1 }, Code::ResourceExhausted),
        (ServiceError::Overloaded, Code::ResourceExhausted),
        (ServiceError::NoLeader, Code::Unavailable),
        (ServiceError::Unavailable { reason: "Redis".to_owned() }, Code::Unavailable),
        (ServiceError::OutcomeUnknown, Code::Unavailable),
        (ServiceError::Internal, Code::Internal),
    ];
    for (error, code) in cases {
        let problem = Problem::from(error.clone()).kind().uri();
        let status = status(error);
        assert_eq!(status.code(), code);
        assert_eq!(status.metadata().get(PROBLEM_METADATA).unwrap(), problem);
    }
}

#[test]
fn a_grpc_message_names_every_bad_field_and_stays_short() {
    let two = vec![FieldError::new("port", "must be a number"), FieldError::new("name", "is required")];
    assert_eq!(status(ServiceError::Invalid(two)).message(), "port: must be a number; name: is required");
    let many = (0..1_000).map(|n| FieldError::new(format!("tags.{n}"), "muß kürzer sein")).collect();
    assert!(status(ServiceError::Invalid(many)).message().len() <= MAX_STATUS_MESSAGE);
}

#[test]
fn no_two_problem_types_share_a_uri() {
    let uris: BTreeSet<_> = ProblemType::ALL.into_iter().map(ProblemType::uri).collect();
    assert_eq!(uris.len(), ProblemType::ALL.len());
}
