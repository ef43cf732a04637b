//! The one place that says how a failure looks from outside: RFC 9457 problem details for REST, a status
//! for gRPC.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};

use crate::domain::validate::FieldError;
use crate::services::error::ServiceError;

/// The media type of problem details.
pub const PROBLEM_JSON: &str = "application/problem+json";
/// Key of the gRPC metadata entry that carries the problem's type.
pub const PROBLEM_METADATA: &str = "cortex-problem";
/// Longest gRPC status message in bytes; it travels percent-encoded in a header.
const MAX_STATUS_MESSAGE: usize = 2_048;
/// Seconds after which a request that nothing was done about may come again.
const RETRY_AFTER: u32 = 1;

/// Every kind of failure. The URN is stable; the title belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemType {
    /// The request cannot be read.
    MalformedRequest,
    /// Fields or parameters break their bounds.
    InvalidFields,
    /// No such job or worker.
    NotFound,
    /// No such path.
    NoSuchRoute,
    /// The path does not take this method.
    MethodNotAllowed,
    /// The request's body did not arrive in time.
    RequestTimeout,
    /// The state machine does not allow it.
    Conflict,
    /// The body is over its limit.
    BodyTooLarge,
    /// The body is in no format that is read here.
    UnsupportedMediaType,
    /// The ready queue is full.
    QueueFull,
    /// More requests than can be held.
    Overloaded,
    /// Nobody leads at the moment.
    NoLeader,
    /// A store is down.
    StoreUnavailable,
    /// The request may or may not have been carried out.
    OutcomeUnknown,
    /// A defect.
    Internal,
}

impl ProblemType {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::MalformedRequest,
        Self::InvalidFields,
        Self::NotFound,
        Self::NoSuchRoute,
        Self::MethodNotAllowed,
        Self::RequestTimeout,
        Self::Conflict,
        Self::BodyTooLarge,
        Self::UnsupportedMediaType,
        Self::QueueFull,
        Self::Overloaded,
        Self::NoLeader,
        Self::StoreUnavailable,
        Self::OutcomeUnknown,
        Self::Internal,
    ];

    /// The `type` member.
    pub const fn uri(self) -> &'static str {
        match self {
            Self::MalformedRequest => "urn:cortex:problem:malformed-request",
            Self::InvalidFields => "urn:cortex:problem:invalid-fields",
            Self::NotFound => "urn:cortex:problem:not-found",
            Self::NoSuchRoute => "urn:cortex:problem:no-such-route",
            Self::MethodNotAllowed => "urn:cortex:problem:method-not-allowed",
            Self::RequestTimeout => "urn:cortex:problem:request-timeout",
            Self::Conflict => "urn:cortex:problem:conflict",
            Self::BodyTooLarge => "urn:cortex:problem:body-too-large",
            Self::UnsupportedMediaType => "urn:cortex:problem:unsupported-media-type",
            Self::QueueFull => "urn:cortex:problem:queue-full",
            Self::Overloaded => "urn:cortex:problem:overloaded",
            Self::NoLeader => "urn:cortex:problem:no-leader",
            Self::StoreUnavailable => "urn:cortex:problem:store-unavailable",
            Self::OutcomeUnknown => "urn:cortex:problem:outcome-unknown",
            Self::Internal => "urn:cortex:problem:internal",
        }
    }

    /// The `title` member: the same for every occurrence.
    pub const fn title(self) -> &'static str {
        match self {
            Self::MalformedRequest => "The request cannot be read",
            Self::InvalidFields => "Fields are invalid",
            Self::NotFound => "Not found",
            Self::NoSuchRoute => "No such path",
            Self::MethodNotAllowed => "Method not allowed",
            Self::RequestTimeout => "The request arrived too slowly",
            Self::Conflict => "The state does not allow it",
            Self::BodyTooLarge => "The body is too large",
            Self::UnsupportedMediaType => "Unsupported media type",
            Self::QueueFull => "The queue is full",
            Self::Overloaded => "Too many requests",
            Self::NoLeader => "There is no leader",
            Self::StoreUnavailable => "A store is unavailable",
            Self::OutcomeUnknown => "The outcome is unknown",
            Self::Internal => "Internal error",
        }
    }

    /// The HTTP status.
    pub const fn http(self) -> StatusCode {
        match self {
            Self::MalformedRequest => StatusCode::BAD_REQUEST,
            Self::InvalidFields => StatusCode::UNPROCESSABLE_ENTITY,
            Self::NotFound | Self::NoSuchRoute => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict => StatusCode::CONFLICT,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::QueueFull | Self::Overloaded => StatusCode::TOO_MANY_REQUESTS,
            Self::NoLeader | Self::StoreUnavailable | Self::OutcomeUnknown => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The gRPC code.
    pub const fn grpc(self) -> Code {
        match self {
            Self::MalformedRequest
            | Self::InvalidFields
            | Self::BodyTooLarge
            | Self::UnsupportedMediaType => Code::InvalidArgument,
            Self::NotFound => Code::NotFound,
            Self::NoSuchRoute | Self::MethodNotAllowed => Code::Unimplemented,
            Self::RequestTimeout => Code::DeadlineExceeded,
            Self::Conflict => Code::FailedPrecondition,
            Self::QueueFull | Self::Overloaded => Code::ResourceExhausted,
            Self::NoLeader | Self::StoreUnavailable | Self::OutcomeUnknown => Code::Unavailable,
            Self::Internal => Code::Internal,
        }
    }

    /// The `Retry-After` header in seconds, for what may pass by itself. An unknown outcome has none: to
    /// send the request again may carry it out twice.
    const fn retry_after(self) -> Option<u32> {
        match self {
            Self::QueueFull | Self::Overloaded | Self::NoLeader | Self::StoreUnavailable => Some(RETRY_AFTER),
            Self::MalformedRequest
            | Self::InvalidFields
            | Self::NotFound
            | Self::NoSuchRoute
            | Self::MethodNotAllowed
            | Self::RequestTimeout
            | Self::Conflict
            | Self::BodyTooLarge
            | Self::UnsupportedMediaType
            | Self::OutcomeUnknown
            | Self::Internal => None,
        }
    }
}

/// One failure, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    kind: ProblemType,
    detail: String,
    errors: Vec<FieldError>,
}

impl Problem {
    /// A failure of some kind; `detail` is public.
    pub fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), errors: Vec::new() }
    }

    /// Fields or parameters that break their bounds.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        ServiceError::Invalid(errors).into()
    }

    /// A part of the request line that cannot be read.
    pub fn malformed_field(field: &str, message: &str) -> Self {
        let detail = format!("{field} {message}");
        Self { kind: ProblemType::MalformedRequest, detail, errors: vec![FieldError::new(field, message)] }
    }

    /// Which kind it is.
    pub fn kind(&self) -> ProblemType {
        self.kind
    }
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Self {
        let kind = match error {
            ServiceError::Invalid(_) => ProblemType::InvalidFields,
            ServiceError::NotFound { .. } => ProblemType::NotFound,
            ServiceError::Conflict(_) => ProblemType::Conflict,
            ServiceError::QueueFull { .. } => ProblemType::QueueFull,
            ServiceError::Overloaded | ServiceError::TooManyStreams { .. } => ProblemType::Overloaded,
            ServiceError::NoLeader => ProblemType::NoLeader,
            ServiceError::Unavailable { .. } => ProblemType::StoreUnavailable,
            ServiceError::OutcomeUnknown => ProblemType::OutcomeUnknown,
            ServiceError::Internal => ProblemType::Internal,
        };
        let detail = error.to_string();
        let errors = if let ServiceError::Invalid(errors) = error { errors } else { Vec::new() };
        Self { kind, detail, errors }
    }
}

/// The body of an RFC 9457 answer.
#[derive(Serialize)]
struct Body<'a> {
    r#type: &'static str,
    title: &'static str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "<[FieldError]>::is_empty")]
    errors: &'a [FieldError],
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.kind.http();
        let body = Body {
            r#type: self.kind.uri(),
            title: self.kind.title(),
            status: status.as_u16(),
            detail: &self.detail,
            errors: &self.errors,
        };
        // Texts and numbers always serialise; an empty body would still carry the status.
        let body = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        if let Some(seconds) = self.kind.retry_after() {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        let mut message = problem.detail;
        if !problem.errors.is_empty() {
            let fields: Vec<_> =
                problem.errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect();
            message = fields.join("; ");
        }
        message.truncate(message.floor_char_boundary(MAX_STATUS_MESSAGE));
        let mut metadata = MetadataMap::new();
        metadata.insert(PROBLEM_METADATA, MetadataValue::from_static(problem.kind.uri()));
        Self::with_metadata(problem.kind.grpc(), message, metadata)
    }
}

/// The gRPC status of a failed use case.
pub fn status(error: ServiceError) -> Status {
    Problem::from(error).into()
}

#[cfg(test)]
#[path = "problem_tests.rs"]
mod tests;
