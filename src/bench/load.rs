//! Submissions over HTTP/1.1: one connection for each that is in flight, kept open.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::{BenchError, Clock};

/// How long a refused submission stays away where the server does not say.
const STAY_AWAY: Duration = Duration::from_secs(1);
/// Digits of a time in a body, so that every body has the same length.
const DIGITS: usize = 16;
/// What a job's time of submission is found by in its input.
const TIME_KEY: &[u8] = b"\"t\":";

/// What a run's submissions look like.
#[derive(Debug, Clone)]
pub(super) struct Template {
    job: Vec<u8>,
    /// Where the digits of the time begin.
    time_at: usize,
}

/// Where submissions go.
#[derive(Debug, Clone)]
pub(super) struct Target {
    /// `host:port`.
    pub authority: String,
    pub token: Option<String>,
}

/// One connection.
pub(super) struct Submitter {
    target: Target,
    sender: Option<SendRequest<Full<Bytes>>>,
}

/// What came of a submission.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sent {
    /// It is stored.
    Stored,
    /// The server has too much to do, or no leader at the moment; it asks to come again after so long.
    ComeAgain(Duration),
}

impl Template {
    /// Jobs for `model` with an input of about `payload_bytes`, and so much memory, if any.
    pub(super) fn new(model: &str, payload_bytes: usize, memory_gb: Option<u32>) -> Self {
        let metadata = memory_gb.map(|gb| format!(r#""metadata":{{"required_memory_gb":{gb}}},"#));
        let metadata = metadata.unwrap_or_default();
        let head = format!(
            r#"{{"name":"bench","model_name":"{model}","model_version":"1","max_retries":0,{metadata}"input_data":{{"t":""#
        );
        let pad = "x".repeat(payload_bytes.saturating_sub(DIGITS + 18));
        let job = format!(r#"{head}{}","payload":"{pad}"}}}}"#, "0".repeat(DIGITS));
        Self { time_at: head.len(), job: job.into_bytes() }
    }

    /// The body of one submission that begins at `micros`.
    pub(super) fn single(&self, micros: u64) -> Bytes {
        let mut job = self.job.clone();
        self.stamp(&mut job, 0, micros);
        job.into()
    }

    /// The body of a batch.
    pub(super) fn batch(&self, jobs: u64, micros: u64) -> Bytes {
        let bytes = usize::try_from(jobs).unwrap_or(0) * (self.job.len() + 1);
        let mut body = Vec::with_capacity(bytes + 16);
        body.extend_from_slice(br#"{"jobs":["#);
        for index in 0..jobs {
            if index > 0 {
                body.push(b',');
            }
            let at = body.len();
            body.extend_from_slice(&self.job);
            self.stamp(&mut body, at, micros);
        }
        body.extend_from_slice(b"]}");
        body.into()
    }

    fn stamp(&self, body: &mut [u8], job_at: usize, micros: u64) {
        let at = job_at + self.time_at;
        body[at..at + DIGITS].copy_from_slice(format!("{micros:0DIGITS$}").as_bytes());
    }
}

/// When a job's submission began, by its input.
pub(super) fn submitted_at(input: &[u8]) -> Option<u64> {
    let at = input.windows(TIME_KEY.len()).position(|window| window == TIME_KEY)? + TIME_KEY.len();
    let digits = input[at..].iter().skip_while(|byte| !byte.is_ascii_digit()).take(DIGITS);
    digits.map(|byte| char::from(*byte)).collect::<String>().parse().ok()
}

impl Submitter {
    pub(super) fn new(target: Target) -> Self {
        Self { target, sender: None }
    }

    /// Sends one submission and waits for its answer.
    pub(super) async fn post(&mut self, path: &str, body: Bytes) -> Result<Sent, BenchError> {
        let sender = match &mut self.sender {
            Some(sender) if !sender.is_closed() => sender,
            _ => self.sender.insert(connect(&self.target.authority).await?),
        };
        sender.ready().await.map_err(|error| BenchError::call("connecting")(&error))?;
        let mut request = Request::post(path)
            .header(header::HOST, &self.target.authority)
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = &self.target.token {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        let request =
            request.body(Full::new(body)).map_err(|error| BenchError::call("submitting")(&error))?;
        let answer = sender.send_request(request).await;
        let answer = answer.map_err(|error| BenchError::call("submitting")(&error))?;
        let status = answer.status();
        let stay_away =
            answer.headers().get(header::RETRY_AFTER).and_then(|text| text.to_str().ok()?.parse().ok());
        let mut body = answer.into_body();
        let mut text = Vec::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| BenchError::call("reading an answer")(&error))?;
            if let Some(data) = frame.data_ref().filter(|_| status != StatusCode::CREATED) {
                text.extend_from_slice(data);
            }
        }
        match status {
            StatusCode::CREATED => Ok(Sent::Stored),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                Ok(Sent::ComeAgain(stay_away.map_or(STAY_AWAY, Duration::from_secs)))
            }
            status => {
                let answer = String::from_utf8_lossy(&text);
                Err(BenchError::Call { what: "submitting", cause: format!("{status}: {answer}") })
            }
        }
    }
}

async fn connect(authority: &str) -> Result<SendRequest<Full<Bytes>>, BenchError> {
    let stream =
        TcpStream::connect(authority).await.map_err(|error| BenchError::call("connecting")(&error))?;
    stream.set_nodelay(true).map_err(|error| BenchError::call("connecting")(&error))?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| BenchError::call("connecting")(&error))?;
    tokio::spawn(async move {
        // Whoever uses it learns of its end.
        let _ = connection.await;
    });
    Ok(sender)
}

/// The microseconds that a call took.
pub(super) fn took(clock: Clock, began: u64) -> u64 {
    clock.micros().saturating_sub(began).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_json_of_the_size_asked_for_and_tells_its_time() {
        let template = Template::new("bench-x", 200, None);
        let body: serde_json::Value = serde_json::from_slice(&template.single(1_234_567)).unwrap();
        let input = body["input_data"].to_string();
        assert!((195..=205).contains(&input.len()), "{}", input.len());
        assert_eq!(submitted_at(input.as_bytes()), Some(1_234_567));
        // As PostgreSQL prints it.
        assert_eq!(submitted_at(br#"{"t": "0000000000000042", "payload": "1"}"#), Some(42));
        assert_eq!(submitted_at(b"{}"), None);
    }

    #[test]
    fn a_batch_is_so_many_jobs_each_with_its_time() {
        let body = Template::new("bench-x", 50, None).batch(3, 7);
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let jobs = body["jobs"].as_array().unwrap();
        assert_eq!(jobs.len(), 3);
        assert!(jobs.iter().all(|job| submitted_at(job["input_data"].to_string().as_bytes()) == Some(7)));
    }
}
