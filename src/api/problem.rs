//! The one place that says how a failure looks from outside: RFC 9457 problem details for REST, a status
//! for gRPC.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::{Code, Status};
use utoipa::ToSchema;

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
    /// There is no token.
    TokenMissing,
    /// The token is not to be believed.
    TokenRefused,
    /// The caller may not do this.
    Forbidden,
    /// Too many requests of one caller.
    RateLimited,
    /// The headers are over their limit.
    HeadersTooLarge,
    /// Tokens cannot be judged at the moment.
    KeysUnavailable,
    /// No such job, worker or member.
    NotFound,
    /// No such path.
    NoSuchRoute,
    /// The path does not take this method.
    MethodNotAllowed,
    /// The request's body did not arrive in time.
    RequestTimeout,
    /// The state machine, or the group of replicas, does not allow it.
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
    /// The replica was removed from its cluster.
    NotAMember,
    /// A store is down.
    StoreUnavailable,
    /// The request may or may not have been carried out.
    OutcomeUnknown,
    /// A defect.
    Internal,
}

impl ProblemType {
    /// All of them.
    pub const ALL: [Self; 22] = [
        Self::MalformedRequest,
        Self::InvalidFields,
        Self::TokenMissing,
        Self::TokenRefused,
        Self::Forbidden,
        Self::RateLimited,
        Self::HeadersTooLarge,
        Self::KeysUnavailable,
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
        Self::NotAMember,
        Self::StoreUnavailable,
        Self::OutcomeUnknown,
        Self::Internal,
    ];

    /// The `type` member.
    pub const fn uri(self) -> &'static str {
        match self {
            Self::MalformedRequest => "urn:cortex:problem:malformed-request",
            Self::InvalidFields => "urn:cortex:problem:invalid-fields",
            Self::TokenMissing => "urn:cortex:problem:token-missing",
            Self::TokenRefused => "urn:cortex:problem:token-refused",
            Self::Forbidden => "urn:cortex:problem:forbidden",
            Self::RateLimited => "urn:cortex:problem:rate-limited",
            Self::HeadersTooLarge => "urn:cortex:problem:headers-too-large",
            Self::KeysUnavailable => "urn:cortex:problem:keys-unavailable",
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
            Self::NotAMember => "urn:cortex:problem:not-a-member",
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
            Self::TokenMissing => "A token is needed",
            Self::TokenRefused => "The token is not accepted",
            Self::Forbidden => "Not allowed",
            Self::RateLimited => "Too many requests of one caller",
            Self::HeadersTooLarge => "The headers are too large",
            Self::KeysUnavailable => "Tokens cannot be checked at the moment",
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
            Self::NotAMember => "The replica is no member of the cluster",
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
            Self::TokenMissing | Self::TokenRefused => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::NotFound | Self::NoSuchRoute => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict => StatusCode::CONFLICT,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::QueueFull | Self::Overloaded | Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::NoLeader
            | Self::NotAMember
            | Self::StoreUnavailable
            | Self::KeysUnavailable
            | Self::OutcomeUnknown => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The gRPC code.
    pub const fn grpc(self) -> Code {
        match self {
            Self::MalformedRequest
            | Self::InvalidFields
            | Self::BodyTooLarge
            | Self::HeadersTooLarge
            | Self::UnsupportedMediaType => Code::InvalidArgument,
            Self::TokenMissing | Self::TokenRefused => Code::Unauthenticated,
            Self::Forbidden => Code::PermissionDenied,
            Self::NotFound => Code::NotFound,
            Self::NoSuchRoute | Self::MethodNotAllowed => Code::Unimplemented,
            Self::RequestTimeout => Code::DeadlineExceeded,
            Self::Conflict => Code::FailedPrecondition,
            Self::QueueFull | Self::Overloaded | Self::RateLimited => Code::ResourceExhausted,
            Self::NoLeader
            | Self::NotAMember
            | Self::StoreUnavailable
            | Self::KeysUnavailable
            | Self::OutcomeUnknown => Code::Unavailable,
            Self::Internal => Code::Internal,
        }
    }

    /// The `Retry-After` header in seconds, for what may pass by itself. An unknown outcome has none: to
    /// send the request again may carry it out twice.
    const fn retry_after(self) -> Option<u32> {
        match self {
            Self::QueueFull
            | Self::Overloaded
            | Self::RateLimited
            | Self::NoLeader
            | Self::NotAMember
            | Self::StoreUnavailable
            | Self::KeysUnavailable => Some(RETRY_AFTER),
            Self::MalformedRequest
            | Self::InvalidFields
            | Self::TokenMissing
            | Self::TokenRefused
            | Self::Forbidden
            | Self::HeadersTooLarge
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

impl ProblemType {
    /// The `WWW-Authenticate` header (RFC 6750), for what a token, or another one, would help against.
    const fn challenge(self) -> Option<&'static str> {
        match self {
            Self::TokenMissing => Some("Bearer realm=\"cortex\""),
            Self::TokenRefused => Some("Bearer realm=\"cortex\", error=\"invalid_token\""),
            Self::Forbidden => Some("Bearer realm=\"cortex\", error=\"insufficient_scope\""),
            _ => None,
        }
    }
}

/// One failure, ready to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    kind: ProblemType,
    detail: String,
    errors: Vec<FieldError>,
    /// The `Retry-After` header in seconds.
    retry_after: Option<u32>,
}

impl Problem {
    /// A failure of some kind; `detail` is public.
    pub fn new(kind: ProblemType, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into(), errors: Vec::new(), retry_after: kind.retry_after() }
    }

    /// Too many requests of one caller, who may come again after `wait`.
    pub(super) fn rate_limited(wait: Duration) -> Self {
        let seconds = u32::try_from(wait.as_millis().div_ceil(1000)).unwrap_or(u32::MAX).max(1);
        let detail = format!("this caller makes more requests than it may; the next one in {seconds} s");
        Self { retry_after: Some(seconds), ..Self::new(ProblemType::RateLimited, detail) }
    }

    /// Fields or parameters that break their bounds.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        ServiceError::Invalid(errors).into()
    }

    /// A part of the request line that cannot be read.
    pub fn malformed_field(field: &str, message: &str) -> Self {
        let detail = format!("{field} {message}");
        let errors = vec![FieldError::new(field, message)];
        Self { errors, ..Self::new(ProblemType::MalformedRequest, detail) }
    }

    /// Which kind it is.
    pub fn kind(&self) -> ProblemType {
        self.kind
    }

    /// How a problem of some kind looks, for the documentation.
    pub(super) fn example(kind: ProblemType) -> serde_json::Value {
        let mut example = Self::new(kind, kind.title());
        if kind == ProblemType::InvalidFields {
            example.errors.push(FieldError::new("priority", "must be a whole number from 1 to 10"));
        }
        serde_json::json!(example.body())
    }

    fn body(&self) -> ProblemBody<'_> {
        ProblemBody {
            r#type: self.kind.uri(),
            title: self.kind.title(),
            status: self.kind.http().as_u16(),
            detail: &self.detail,
            errors: &self.errors,
        }
    }
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Self {
        let kind = match error {
            ServiceError::Invalid(_) => ProblemType::InvalidFields,
            ServiceError::NotFound { .. } => ProblemType::NotFound,
            ServiceError::Forbidden(_) => ProblemType::Forbidden,
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
        Self { errors, ..Self::new(kind, detail) }
    }
}

/// The body of an RFC 9457 answer.
#[derive(Serialize, ToSchema)]
#[schema(as = Problem)]
pub(super) struct ProblemBody<'a> {
    /// Names the kind of problem, and stays the same.
    #[schema(value_type = String)]
    r#type: &'static str,
    /// The kind of problem, for people.
    #[schema(value_type = String)]
    title: &'static str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What is wrong with this request, for people.
    #[schema(value_type = String)]
    detail: &'a str,
    /// Every field or parameter that is wrong, and its limit.
    #[serde(skip_serializing_if = "<[FieldError]>::is_empty")]
    #[schema(value_type = Vec<FieldError>, required = false)]
    errors: &'a [FieldError],
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.kind.http();
        // Texts and numbers always serialise; an empty body would still carry the status.
        let body = serde_json::to_vec(&self.body()).unwrap_or_default();
        let mut response = (status, [(header::CONTENT_TYPE, PROBLEM_JSON)], body).into_response();
        if let Some(challenge) = self.kind.challenge() {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if let Some(seconds) = self.retry_after {
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
