//! What can go wrong, worded for a terminal.

use std::{fmt, time::Duration};

use serde::Deserialize;

use crate::endpoints::InvalidEndpoint;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The client was built with an address that cannot be used.
    #[error(transparent)]
    Endpoint(#[from] InvalidEndpoint),
    /// The token or another header value cannot be sent.
    #[error("invalid {what}: {reason}")]
    Config {
        /// The setting.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The server refused the request.
    #[error("{0}")]
    Problem(Box<Problem>),
    /// No replica could be reached in time; the request was not carried out.
    #[error("no replica could be reached ({tried}): {cause}")]
    Unreachable {
        /// The addresses that were tried.
        tried: String,
        /// The last failure.
        cause: String,
    },
    /// The connection broke after the request was sent, so it may or may not
    /// have been carried out.
    #[error("the outcome is unknown, the connection to {endpoint} broke after the request was sent: {cause}")]
    OutcomeUnknown {
        /// Where the request was sent.
        endpoint: String,
        /// The failure.
        cause: String,
    },
    /// The answer was not what this client expects.
    #[error("the answer of {endpoint} (status {status}) cannot be read: {cause}")]
    Decode {
        /// Who answered.
        endpoint: String,
        /// The HTTP status.
        status: u16,
        /// The failure.
        cause: String,
    },
}

impl ClientError {
    /// The HTTP status, if the server answered with one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Problem(problem) => Some(problem.status),
            Self::Decode { status, .. } => Some(*status),
            Self::Endpoint(_)
            | Self::Config { .. }
            | Self::Unreachable { .. }
            | Self::OutcomeUnknown { .. } => None,
        }
    }
}

/// A refusal, from `application/problem+json` where the server sent that.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// The HTTP status.
    pub status: u16,
    /// The kind of problem as a URI.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind of problem in words.
    pub title: String,
    /// What happened here.
    pub detail: Option<String>,
    /// The fields that were refused.
    pub errors: Vec<FieldError>,
    /// When to try again, from the `Retry-After` header.
    #[serde(skip)]
    pub retry_after: Option<Duration>,
}

/// A field that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct FieldError {
    /// The field's path.
    pub field: String,
    /// What is wrong with it.
    pub message: String,
}

impl Problem {
    /// Reads a refusal. A body that is no problem document becomes its detail,
    /// so that nothing a proxy says is lost.
    pub(crate) fn parse(status: reqwest::StatusCode, retry_after: Option<Duration>, body: &[u8]) -> Self {
        let mut problem = serde_json::from_slice::<Self>(body)
            .unwrap_or_else(|_| Self { detail: text_of(body), ..Self::default() });
        problem.status = status.as_u16();
        if problem.title.is_empty() {
            problem.title = status.canonical_reason().unwrap_or("Unknown status").to_owned();
        }
        problem.retry_after = retry_after;
        problem
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.title, self.status)?;
        if let Some(detail) = self.detail.as_deref().filter(|detail| !detail.is_empty()) {
            write!(f, ": {detail}")?;
        }
        for error in &self.errors {
            write!(f, "\n  {}: {}", error.field, error.message)?;
        }
        if let Some(wait) = self.retry_after {
            write!(f, "\n  try again in {} s", wait.as_secs())?;
        }
        Ok(())
    }
}

/// The beginning of a body that is no problem document.
fn text_of(body: &[u8]) -> Option<String> {
    const LONGEST: usize = 300;
    let text = String::from_utf8_lossy(&body[..body.len().min(LONGEST)]);
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use reqwest::StatusCode;

    use super::*;

    #[test]
    fn a_problem_document_names_every_bad_field() {
        let body = br#"{"type":"urn:x","title":"Invalid fields","status":422,"detail":"2 fields",
            "errors":[{"field":"priority","message":"must be 1 to 10"},{"field":"name","message":"is empty"}]}"#;
        let problem = Problem::parse(StatusCode::UNPROCESSABLE_ENTITY, None, body);
        assert_eq!(
            problem.to_string(),
            "Invalid fields (422): 2 fields\n  priority: must be 1 to 10\n  name: is empty"
        );
    }

    #[test]
    fn a_body_that_is_no_problem_document_is_kept_as_detail() {
        let problem = Problem::parse(StatusCode::BAD_GATEWAY, Some(Duration::from_secs(3)), b"<h1>nope</h1>");
        assert_eq!(problem.to_string(), "Bad Gateway (502): <h1>nope</h1>\n  try again in 3 s");
    }
}
