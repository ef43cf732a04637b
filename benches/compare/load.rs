//! Load that `cortex bench` does not make: workers of many kinds, jobs that nobody takes, offers at a rate.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cortex::domain::ambient::{Ambient, System};
use cortex_client::{AssignedJob, CancellationToken, Handler, JobFailure, Worker};
use futures::stream::{self, StreamExt, TryStreamExt};
use hdrhistogram::Histogram;
use reqwest::StatusCode;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::Failure;

/// Jobs of one call where they are stored ahead.
const BATCH: usize = 1_000;
/// Such calls side by side.
const CALLS: usize = 2;
/// Longest wait for what must come.
const PATIENCE: Duration = Duration::from_secs(120);

/// A kind of worker.
pub struct Kind {
    pub model: String,
    pub slots: usize,
    pub heartbeat: Duration,
}

/// Workers in this process, whose jobs do nothing.
pub struct Crew {
    pub tally: Arc<Tally>,
    shutdown: CancellationToken,
    workers: JoinSet<Result<(), cortex_client::WorkerError>>,
}

/// What they have seen.
pub struct Tally {
    origin: Instant,
    handled: AtomicU64,
    times: Mutex<Histogram<u64>>,
}

struct Nothing(Arc<Tally>);

impl Handler for Nothing {
    async fn run(&self, job: AssignedJob, _: CancellationToken) -> Result<Value, JobFailure> {
        self.0.note(&job);
        Ok(json!({"ok": true, "n": 1}))
    }
}

impl Tally {
    fn note(&self, job: &AssignedJob) {
        let now = self.micros();
        self.handled.fetch_add(1, Ordering::Relaxed);
        let submitted = job.input().ok().and_then(|input| input["t"].as_u64());
        if let Some(submitted) = submitted {
            let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
            times.saturating_record(now.saturating_sub(submitted).max(1));
        }
    }

    /// Microseconds since the crew was put together.
    pub fn micros(&self) -> u64 {
        let since = System.instant().saturating_duration_since(self.origin);
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    /// Jobs whose handler has started.
    pub fn handled(&self) -> u64 {
        self.handled.load(Ordering::Relaxed)
    }

    /// The times from the start of a submission to the start of its job, and begins anew.
    pub fn take_times(&self) -> Histogram<u64> {
        let mut times = self.times.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = times.clone();
        times.reset();
        taken
    }

    /// Waits until so many were handled.
    pub async fn reached(&self, jobs: u64) -> Result<(), Failure> {
        let deadline = System.instant() + PATIENCE;
        while self.handled() < jobs {
            if System.instant() > deadline {
                return Err(format!("{} of {jobs} jobs were handled", self.handled()).into());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

impl Crew {
    /// Starts one worker of each kind.
    pub fn start(endpoints: &str, kinds: impl Iterator<Item = Kind>) -> Result<Self, Failure> {
        let tally = Arc::new(Tally {
            origin: System.instant(),
            handled: AtomicU64::new(0),
            times: Mutex::new(Histogram::new_with_bounds(1, 600_000_000, 3)?),
        });
        let shutdown = CancellationToken::new();
        let mut workers = JoinSet::new();
        for (port, kind) in (1..).zip(kinds) {
            let worker = Worker::builder()
                .endpoints(endpoints)
                .name(format!("compare-{port}"))
                // Nobody is reached there; it makes the worker this one and no other.
                .hostname("compare")
                .port(port)
                .models([kind.model])
                .slots(kind.slots)
                .heartbeat_period(kind.heartbeat)
                .build()?;
            workers.spawn(worker.run(Nothing(Arc::clone(&tally)), shutdown.clone()));
        }
        Ok(Self { tally, shutdown, workers })
    }

    /// Lets the workers drain and waits for them.
    pub async fn dismiss(mut self) -> Result<(), Failure> {
        self.shutdown.cancel();
        while let Some(ended) = self.workers.join_next().await {
            ended??;
        }
        Ok(())
    }
}

/// What came of an offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    Stored,
    Refused,
}

/// Offers jobs over REST.
#[derive(Clone)]
pub struct Submitter {
    client: reqwest::Client,
    url: String,
}

impl Submitter {
    /// To the replica at `url`.
    pub fn new(url: &str) -> Result<Self, Failure> {
        let client = reqwest::Client::builder().tcp_nodelay(true).build()?;
        Ok(Self { client, url: url.to_owned() })
    }

    /// One job.
    pub async fn single(&self, job: &Value) -> Result<Offered, Failure> {
        self.post("/api/v1/jobs", job).await
    }

    /// Several jobs at once.
    pub async fn batch(&self, jobs: &[Value]) -> Result<Offered, Failure> {
        self.post("/api/v1/jobs/batch", &json!({"jobs": jobs})).await
    }

    /// Stores so many jobs, as `job` makes them of their numbers.
    pub async fn store(&self, jobs: usize, job: impl Fn(usize) -> Value) -> Result<(), Failure> {
        let calls = (0..jobs).step_by(BATCH).map(|from| {
            let batch: Vec<Value> = (from..jobs.min(from + BATCH)).map(&job).collect();
            async move {
                match self.batch(&batch).await? {
                    Offered::Stored => Ok(()),
                    Offered::Refused => Err(Failure::from("jobs that must wait were refused")),
                }
            }
        });
        stream::iter(calls).buffer_unordered(CALLS).try_collect().await
    }

    async fn post(&self, path: &str, body: &Value) -> Result<Offered, Failure> {
        let answer = self.client.post(format!("{}{path}", self.url)).json(body).send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        match status {
            StatusCode::CREATED => Ok(Offered::Stored),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Ok(Offered::Refused),
            status => Err(format!("a submission was answered {status}: {text}").into()),
        }
    }
}

/// A job of about 200 bytes that says when its submission began.
pub fn job(model: &str, micros: u64) -> Value {
    json!({
        "name": "compare", "model_name": model, "model_version": "1", "max_retries": 0,
        "input_data": {"t": micros, "payload": "x".repeat(166)},
    })
}
