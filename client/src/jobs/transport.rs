//! One request over several replicas: which failures lead to the next one, and
//! which must be handed to the caller because the request may have been
//! carried out.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use bytes::Bytes;
use reqwest::{
    Method, StatusCode, Url,
    header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER},
};
use tokio::time::Instant;
use tracing::debug;

use super::error::{ClientError, Problem};
use crate::backoff::Backoff;
use crate::random;

/// A longer `Retry-After` is cut to this, so that a bad header cannot overflow.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// The replicas, and how long to try them.
#[derive(Debug)]
pub(super) struct Transport {
    pub(super) http: reqwest::Client,
    pub(super) endpoints: Vec<Url>,
    /// The endpoint that answered last.
    pub(super) preferred: AtomicUsize,
    pub(super) request_timeout: Duration,
    pub(super) deadline: Duration,
}

/// Whether a request may be sent again after it might have been carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Reads.
    Freely,
    /// Reads for which a refusal is an answer too: only after a failed
    /// connection.
    UntilAnswered,
    /// Writes: only after a connection that never came about, or a 503 with
    /// `Retry-After`, which says that nothing was done.
    IfNotDone,
}

/// A request without its base URL.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    pub(super) path: Vec<String>,
    pub(super) query: Vec<(&'static str, String)>,
    pub(super) headers: HeaderMap,
    pub(super) body: Option<Bytes>,
    pub(super) repeat: Repeat,
}

/// What a replica answered.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) endpoint: String,
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Bytes,
}

impl Call {
    /// A read.
    pub(super) fn get(path: &[&str]) -> Self {
        Self::new(Method::GET, path, Repeat::Freely)
    }

    /// A write.
    pub(super) fn write(method: Method, path: &[&str]) -> Self {
        Self::new(method, path, Repeat::IfNotDone)
    }

    fn new(method: Method, path: &[&str], repeat: Repeat) -> Self {
        Self {
            method,
            path: path.iter().map(|&part| part.to_owned()).collect(),
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: None,
            repeat,
        }
    }

    /// Adds a parameter, if there is one.
    pub(super) fn query(mut self, name: &'static str, value: Option<impl ToString>) -> Self {
        self.query.extend(value.map(|value| (name, value.to_string())));
        self
    }

    fn url(&self, base: &Url) -> Url {
        let mut url = base.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.pop_if_empty().extend(&self.path);
        }
        if !self.query.is_empty() {
            url.query_pairs_mut().extend_pairs(&self.query);
        }
        url
    }

    /// Whether a refused answer says that another replica, or this one later,
    /// may carry the request out.
    fn may_follow(&self, answer: &Answer) -> bool {
        answer.status == StatusCode::SERVICE_UNAVAILABLE
            && match self.repeat {
                Repeat::Freely => true,
                Repeat::UntilAnswered => false,
                Repeat::IfNotDone => answer.retry_after.is_some(),
            }
    }
}

impl Answer {
    /// The refusal that this answer is.
    pub(super) fn problem(&self) -> ClientError {
        ClientError::Problem(Box::new(Problem::parse(self.status, self.retry_after, &self.body)))
    }
}

impl Transport {
    /// Sends a request to one replica after the other until one answers other
    /// than 503 or the deadline has passed. The first round goes without
    /// pauses; later rounds wait as `Retry-After` or the backoff says.
    pub(super) async fn send(&self, call: &Call) -> Result<Answer, ClientError> {
        let deadline = Instant::now() + self.deadline;
        let start = self.preferred.load(Ordering::Relaxed);
        let mut backoff = Backoff::default();
        let mut asked_to_wait: Option<Duration> = None;
        for attempt in 1.. {
            let index = (start + attempt - 1) % self.endpoints.len();
            let failure = match self.send_once(index, call, deadline).await {
                Ok(answer) if !call.may_follow(&answer) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Ok(answer) => {
                    asked_to_wait = shorter(asked_to_wait, answer.retry_after);
                    answer.problem()
                }
                Err(failure @ ClientError::Unreachable { .. }) => failure,
                Err(failure) if call.repeat != Repeat::IfNotDone => failure,
                Err(failure) => return Err(failure),
            };
            debug!(%failure, attempt, "a replica could not serve the request");
            if attempt % self.endpoints.len() == 0 {
                let jittered = backoff.next(&mut random::generator());
                let wait = asked_to_wait.take().unwrap_or(jittered);
                if Instant::now() + wait >= deadline {
                    return Err(failure);
                }
                tokio::time::sleep(wait).await;
            } else if Instant::now() >= deadline {
                return Err(failure);
            }
        }
        unreachable!("the attempts are counted without an end")
    }

    async fn send_once(&self, index: usize, call: &Call, deadline: Instant) -> Result<Answer, ClientError> {
        let base = &self.endpoints[index];
        let left = deadline.saturating_duration_since(Instant::now());
        let mut request = self
            .http
            .request(call.method.clone(), call.url(base))
            .timeout(left.min(self.request_timeout).max(Duration::from_millis(1)))
            .headers(call.headers.clone());
        if let Some(body) = &call.body {
            request =
                request.header(CONTENT_TYPE, HeaderValue::from_static("application/json")).body(body.clone());
        }
        let response = request.send().await.map_err(|e| self.failure(base, &e))?;
        let status = response.status();
        let retry_after = retry_after(response.headers());
        let body = response.bytes().await.map_err(|e| self.failure(base, &e))?;
        Ok(Answer { endpoint: base.to_string(), status, retry_after, body })
    }

    fn failure(&self, base: &Url, error: &reqwest::Error) -> ClientError {
        let cause = innermost(error);
        if error.is_connect() || error.is_builder() {
            let tried: Vec<&str> = self.endpoints.iter().map(Url::as_str).collect();
            ClientError::Unreachable { tried: tried.join(", "), cause }
        } else {
            ClientError::OutcomeUnknown { endpoint: base.to_string(), cause }
        }
    }
}

/// The error that says what happened; the ones around it say where.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_RETRY_AFTER))
}

fn shorter(a: Option<Duration>, b: Option<Duration>) -> Option<Duration> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}
