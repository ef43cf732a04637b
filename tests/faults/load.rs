//! Submissions that go on whatever happens, and what came of each.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cortex_client::CancellationToken;
use reqwest::header::RETRY_AFTER;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::scene::until;

/// Submitters at each replica.
const SUBMITTERS: usize = 2;
/// Pause of a submitter between two jobs.
const PACE: Duration = Duration::from_millis(15);

/// What came of one submission.
#[derive(Debug)]
pub enum Outcome {
    /// 201.
    Accepted(Uuid),
    /// 503 with `Retry-After`: nothing was done.
    Refused,
    /// 503 without it, or a connection that broke after the request was sent.
    Unknown,
    /// Nobody listened.
    Unreachable,
    /// What must not come: any other answer.
    Wrong(String),
}

/// What came of many.
#[derive(Debug, Default)]
pub struct Tally {
    pub accepted: Vec<Uuid>,
    pub refused: usize,
    pub unknown: usize,
    pub unreachable: usize,
    pub wrong: Vec<String>,
}

/// Submitters at work.
pub struct Load {
    stop: CancellationToken,
    accepted: Arc<AtomicUsize>,
    not_accepted: Arc<AtomicUsize>,
    tasks: Vec<JoinHandle<Tally>>,
}

impl Load {
    /// Starts submitting at these replicas.
    pub fn start(http: &reqwest::Client, replicas: &[SocketAddr]) -> Self {
        let mut load = Self {
            stop: CancellationToken::new(),
            accepted: Arc::default(),
            not_accepted: Arc::default(),
            tasks: Vec::new(),
        };
        for replica in replicas.iter().copied().cycle().take(SUBMITTERS * replicas.len()) {
            let (http, stop) = (http.clone(), load.stop.clone());
            let (accepted, not_accepted) = (Arc::clone(&load.accepted), Arc::clone(&load.not_accepted));
            load.tasks.push(tokio::spawn(async move {
                let mut tally = Tally::default();
                while !stop.is_cancelled() {
                    let outcome = submit(&http, replica, json!({})).await;
                    let counter =
                        if matches!(outcome, Outcome::Accepted(_)) { &accepted } else { &not_accepted };
                    counter.fetch_add(1, Ordering::Relaxed);
                    tally.note(outcome);
                    tokio::time::sleep(PACE).await;
                }
                tally
            }));
        }
        load
    }

    /// Waits until `more` further submissions were accepted.
    pub async fn accepts(&self, more: usize) {
        let goal = self.accepted.load(Ordering::Relaxed) + more;
        until("submissions are accepted", async || self.accepted.load(Ordering::Relaxed) >= goal).await;
    }

    /// Waits until a further submission was not accepted.
    pub async fn is_refused(&self) {
        let before = self.not_accepted.load(Ordering::Relaxed);
        until("a submission is refused", async || self.not_accepted.load(Ordering::Relaxed) > before).await;
    }

    /// Stops submitting.
    pub async fn finish(self) -> Tally {
        self.stop.cancel();
        let mut all = Tally::default();
        for task in self.tasks {
            all.add(task.await.unwrap());
        }
        all
    }
}

impl Tally {
    /// Counts one more.
    pub fn note(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Accepted(id) => self.accepted.push(id),
            Outcome::Refused => self.refused += 1,
            Outcome::Unknown => self.unknown += 1,
            Outcome::Unreachable => self.unreachable += 1,
            Outcome::Wrong(what) => self.wrong.push(what),
        }
    }

    /// Takes another tally in.
    pub fn add(&mut self, other: Self) {
        self.accepted.extend(other.accepted);
        self.refused += other.refused;
        self.unknown += other.unknown;
        self.unreachable += other.unreachable;
        self.wrong.extend(other.wrong);
    }
}

/// Submits one job; `fields` come on top of, or in place of, the usual ones.
pub async fn submit(http: &reqwest::Client, replica: SocketAddr, fields: Value) -> Outcome {
    let mut job = json!({"name": "job", "model_name": "m", "model_version": "1", "input_data": {"n": 1}});
    let (members, fields) = (job.as_object_mut().unwrap(), fields.as_object().cloned().unwrap());
    members.extend(fields);
    let request = http.post(format!("http://{replica}/api/v1/jobs")).json(&job);
    let answer = match request.send().await {
        Ok(answer) => answer,
        Err(error) if error.is_connect() => return Outcome::Unreachable,
        Err(_) => return Outcome::Unknown,
    };
    let (status, repeatable) = (answer.status().as_u16(), answer.headers().contains_key(RETRY_AFTER));
    let body: Value = match answer.json().await {
        Ok(body) => body,
        Err(_) if status == 201 => return Outcome::Unknown,
        Err(error) => return Outcome::Wrong(format!("{status} without a JSON body: {error}")),
    };
    match (status, repeatable) {
        (201, _) => Outcome::Accepted(body["id"].as_str().unwrap().parse().unwrap()),
        (503, true) => Outcome::Refused,
        (503, false) => Outcome::Unknown,
        _ => Outcome::Wrong(format!("{status}: {body}")),
    }
}

/// Submits a job that must be accepted.
pub async fn accepted(http: &reqwest::Client, replica: SocketAddr, fields: Value) -> Uuid {
    match submit(http, replica, fields).await {
        Outcome::Accepted(id) => id,
        other => panic!("the submission was not accepted: {other:?}"),
    }
}
