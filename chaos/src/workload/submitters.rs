//! Clients that submit.

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::RETRY_AFTER;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Plan, Shared, Size, pause};
use crate::history::{Outcome, Request, Seen};

/// Longest wait of a client for its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(6);
/// Jobs of a batch at the most.
const BATCH: u64 = 8;
/// Pause before a request is sent again.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Submits one job or batch after the other. A key is sent again, to the next replica, until it is answered ok: also
/// then once more, now and again.
pub(super) async fn submit(shared: Arc<Shared>, number: usize, size: Size, stop: CancellationToken) {
    let client = format!("submitter-{number}");
    let mut draw = shared.draw(&client);
    let mut replica = number % shared.cluster.size();
    while pause(size.pace, &stop).await {
        let batch = draw.percent(5);
        let count = if batch { draw.between(2, BATCH + 1) } else { 1 };
        let numbers: Vec<_> = (0..count).map(|_| shared.next_number()).collect();
        let key = draw.percent(60).then(|| draw.uuid().to_string());
        let mut draw_body = |number: &u64| {
            let mut plan = Plan::draw(*number, &mut draw);
            plan.run_at = plan.run_at.filter(|_| size.timed);
            plan.shorten(size.longest);
            plan.body(&mut draw)
        };
        let mut bodies: Vec<_> = numbers.iter().map(&mut draw_body).collect();
        let (path, body) = if batch {
            ("/api/v1/jobs/batch", json!({"jobs": bodies}))
        } else {
            ("/api/v1/jobs", bodies.remove(0))
        };
        let twice = key.is_some() && draw.percent(5);
        for round in 0..=usize::from(twice) {
            if round > 0 {
                replica = (replica + 1) % shared.cluster.size();
            }
            loop {
                let request = Request::Submit { key: key.clone(), numbers: numbers.clone(), batch };
                let send = send(&shared, replica, path, &body, key.as_deref());
                let outcome = shared.recorder.call(&client, replica, request, send).await;
                if let Outcome::Ok { jobs, .. } = &outcome {
                    if round == 0 {
                        shared.accept(jobs.iter().map(|job| job.id));
                    }
                    break;
                }
                replica = (replica + 1) % shared.cluster.size();
                if key.is_none() || !pause(AGAIN_AFTER, &stop).await {
                    break;
                }
            }
        }
    }
}

async fn send(shared: &Shared, replica: usize, path: &str, body: &Value, key: Option<&str>) -> Outcome {
    let url = format!("http://{}{path}", shared.cluster.rest(replica));
    let mut request = shared.cluster.http.post(url).json(body).timeout(ANSWER_WITHIN);
    request = request.bearer_auth(&shared.cluster.tokens().submitter);
    if let Some(key) = key {
        request = request.header("Idempotency-Key", key);
    }
    outcome_of(request).await
}

/// Sends a request; without an answer it says what came of it.
pub(super) async fn send_off(request: reqwest::RequestBuilder) -> Result<reqwest::Response, Outcome> {
    request.send().await.map_err(|error| {
        if error.is_connect() {
            Outcome::Refused { status: 0, why: "nobody listened".to_owned() }
        } else {
            Outcome::Unknown { why: error.to_string() }
        }
    })
}

/// Sends a request and says what came of it.
pub async fn outcome_of(request: reqwest::RequestBuilder) -> Outcome {
    let answer = match send_off(request).await {
        Ok(answer) => answer,
        Err(outcome) => return outcome,
    };
    let (status, repeatable) = (answer.status().as_u16(), answer.headers().contains_key(RETRY_AFTER));
    if status == 204 {
        return Outcome::Ok { status, jobs: Vec::new() };
    }
    let body: Value = match answer.json().await {
        Ok(body) => body,
        Err(error) if status < 400 => return Outcome::Unknown { why: error.to_string() },
        Err(_) => Value::Null,
    };
    match status {
        200..300 => match seen(&body) {
            Some(jobs) => Outcome::Ok { status, jobs },
            None => Outcome::Unknown { why: format!("{status} without a job: {body}") },
        },
        // "Outcome unknown" is a 503 that does not invite to try again.
        503 if !repeatable => Outcome::Unknown { why: body["detail"].as_str().unwrap_or("503").to_owned() },
        500 | 502 | 504 => Outcome::Unknown { why: format!("{status}: {body}") },
        _ => {
            let why = body["type"].as_str().or(body["title"].as_str()).unwrap_or("no body").to_owned();
            Outcome::Refused { status, why }
        }
    }
}

/// The jobs of an answer: one, or those of a batch.
fn seen(body: &Value) -> Option<Vec<Seen>> {
    let one = |job: &Value| {
        Some(Seen {
            id: Uuid::parse_str(job["id"].as_str()?).ok()?,
            status: job["status"].as_str()?.to_owned(),
            retries: i32::try_from(job["retry_count"].as_i64()?).ok()?,
        })
    };
    match body["jobs"].as_array() {
        Some(jobs) => jobs.iter().map(one).collect(),
        None => Some(vec![one(body)?]),
    }
}
