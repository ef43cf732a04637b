//! `retries`: how late the next attempt of a failed job starts, on a cluster of three, through followers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use cortex::domain::ambient::{Ambient, System};
use cortex_client::{AssignedJob, CancellationToken, Handler, JobFailure, Worker};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use tokio::task::JoinSet;

use crate::load::{Offered, Submitter};
use crate::report::{BARS, Bar, Report, bar_row, figure, table};
use crate::stage::{ROOMY, Stage};
use crate::{Failure, Options};

/// Jobs of a round.
const JOBS: usize = 24;
/// Attempts of each, which all fail.
const ATTEMPTS: usize = 3;
/// Workers, each with a model of its own: none fails so often in a row that it would have to rest.
const CREWS: usize = 4;
/// Longest wait for the end of a round.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked up which jobs wait until when. Much shorter than any delay.
const LOOK: Duration = Duration::from_millis(200);

/// Which job, and which of its attempts.
type Attempt = (String, i32);
type Times = HashMap<Attempt, DateTime<Utc>>;

/// Notes when an attempt starts, and fails it.
struct Broken(Arc<Mutex<Times>>);

impl Handler for Broken {
    async fn run(&self, job: AssignedJob, _: CancellationToken) -> Result<Value, JobFailure> {
        let mut starts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        starts.insert((job.id, job.attempt), System.now());
        Err(JobFailure::new("broken"))
    }
}

/// What the rounds have shown.
struct Seen {
    /// From the time that a retry was due to its grant, and to its start at the worker, in microseconds.
    grants: Histogram<u64>,
    starts: Histogram<u64>,
    early: u64,
}

pub async fn run(options: &Options, report: &mut Report) -> Result<(), Failure> {
    let stage = Stage::start(ROOMY).await?;
    let mut seen = Seen { grants: new()?, starts: new()?, early: 0 };
    for round in 1..=options.runs() {
        let line = one_round(&stage, round, &mut seen).await?;
        report.keep("cortex", "retries", round, &line)?;
    }
    stage.stop().await?;
    let row = |title: &str, times: &Histogram<u64>| {
        let at = |part| figure(milliseconds(times.value_at_quantile(part)));
        vec![title.to_owned(), times.len().to_string(), at(0.5), at(0.99), figure(milliseconds(times.max()))]
    };
    let head = ["from the time when a retry is due", "retries", "p50, ms", "p99, ms", "most, ms"];
    let rows = [row("to its grant", &seen.grants), row("to its start at the worker", &seen.starts)];
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let early = seen.early as f64;
    let most = Some(milliseconds(seen.starts.max()));
    let bars = [
        bar_row("retries that start before their time", "", Some(early), Bar::AtMost(0.0, 0.0)),
        bar_row("start of a retry after its time, most", "ms", most, Bar::AtMost(50.0, 50.0)),
    ];
    report.print("retries", &format!("{}\n{}", table(&head, &rows), table(&BARS, &bars)))
}

fn new() -> Result<Histogram<u64>, Failure> {
    Ok(Histogram::new_with_bounds(1, 600_000_000, 3)?)
}

#[expect(clippy::cast_precision_loss, reason = "microseconds below 2^52")]
fn milliseconds(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

/// Every strategy with and without jitter and a cap: delays of 2 to 5 s.
fn job(model: &str, number: usize) -> Value {
    let strategy = ["fixed", "linear", "exponential"][number % 3];
    let mut policy = json!({"strategy": strategy, "initial_delay_seconds": 2, "jitter": number / 3 % 2 == 1,
        "backoff_multiplier": if strategy == "linear" { 3.0 } else { 2.5 }});
    if number / 6 % 2 == 1 {
        policy["max_delay_seconds"] = json!(4);
    }
    json!({"name": "broken", "model_name": model, "model_version": "1", "input_data": {"n": number},
        "max_retries": ATTEMPTS - 1, "metadata": {"retry_policy": policy}})
}

/// Runs the jobs, and adds what was seen.
async fn one_round(stage: &Stage, round: u32, seen: &mut Seen) -> Result<Value, Failure> {
    let mut database = PgConnection::connect(stage.cluster.database_url()).await?;
    let leader = stage.leader().await?;
    let followers: Vec<usize> = (0..stage.cluster.size()).filter(|index| *index != leader).collect();
    let starts = Arc::new(Mutex::new(Times::new()));
    let (shutdown, mut workers) = (CancellationToken::new(), JoinSet::new());
    let model = |crew: usize| format!("broken-{round}-{crew}");
    for (crew, port) in (0..CREWS).zip(1..) {
        let worker = Worker::builder()
            .endpoints(format!("http://{}", stage.cluster.grpc(followers[crew % followers.len()])))
            .name(format!("broken-{crew}"))
            .hostname(format!("broken-{round}"))
            .port(port)
            .models([model(crew)])
            .slots(JOBS / CREWS)
            .build()?;
        workers.spawn(worker.run(Broken(Arc::clone(&starts)), shutdown.clone()));
    }
    // Side by side: the first ones wait already while the last ones are submitted.
    let (due, ()) = tokio::try_join!(
        watch(&mut database, &starts),
        submit(stage, &followers, |number| job(&model(number / (JOBS / CREWS)), number)),
    )?;
    shutdown.cancel();
    while let Some(ended) = workers.join_next().await {
        ended??;
    }
    let grants = grants(&mut database, &format!("broken-{round}-%")).await?;
    database.close().await?;
    let starts = starts.lock().unwrap_or_else(PoisonError::into_inner);
    if due.len() != JOBS * (ATTEMPTS - 1) {
        return Err(format!("{} retries were seen waiting", due.len()).into());
    }
    let (mut late, mut early) = (new()?, 0);
    for (attempt, due) in due {
        let after = |times: &Times| times.get(&attempt).map(|time| *time - due);
        let (Some(grant), Some(start)) = (after(&grants), after(&starts)) else {
            return Err(format!("{attempt:?} did not start").into());
        };
        early += u64::from(grant.min(start) < TimeDelta::zero());
        let micros =
            |time: TimeDelta| u64::try_from(time.num_microseconds().unwrap_or(i64::MAX)).unwrap_or(0);
        seen.grants.saturating_record(micros(grant));
        seen.starts.saturating_record(micros(start));
        late.saturating_record(micros(start));
    }
    seen.early += early;
    let at = |part| milliseconds(late.value_at_quantile(part));
    Ok(json!({"early": early, "p50_ms": at(0.5), "p99_ms": at(0.99), "most_ms": milliseconds(late.max())}))
}

async fn submit(stage: &Stage, followers: &[usize], job: impl Fn(usize) -> Value) -> Result<(), Failure> {
    let url = |index: &usize| format!("http://{}", stage.cluster.http(*index));
    let submitters = followers.iter().map(|index| Submitter::new(&url(index)));
    let submitters = submitters.collect::<Result<Vec<_>, _>>()?;
    for (number, submitter) in (0..JOBS).zip(submitters.iter().cycle()) {
        if submitter.single(&job(number)).await? != Offered::Stored {
            return Err("a job was refused".into());
        }
    }
    Ok(())
}

/// Until all attempts have started; answers when each retry was due, as the jobs have said while they waited.
async fn watch(database: &mut PgConnection, starts: &Mutex<Times>) -> Result<Times, Failure> {
    let deadline = System.instant() + PATIENCE;
    let mut due = Times::new();
    loop {
        let started = starts.lock().unwrap_or_else(PoisonError::into_inner).len();
        if started >= JOBS * ATTEMPTS {
            return Ok(due);
        }
        if System.instant() > deadline {
            return Err(format!("{started} attempts were started").into());
        }
        let waiting =
            "SELECT id::text, retry_count + 1, next_retry_at FROM jobs WHERE next_retry_at IS NOT NULL";
        let rows: Vec<(String, i32, DateTime<Utc>)> =
            sqlx::query_as(waiting).fetch_all(&mut *database).await?;
        due.extend(rows.into_iter().map(|(id, attempt, at)| ((id, attempt), at)));
        tokio::time::sleep(LOOK).await;
    }
}

/// When each attempt was granted.
async fn grants(database: &mut PgConnection, models: &str) -> Result<Times, Failure> {
    let granted =
        "SELECT job_id::text, attempt_number, e.created_at FROM executions e JOIN jobs j ON j.id = job_id
        WHERE model_name LIKE $1";
    let rows: Vec<(String, i32, DateTime<Utc>)> =
        sqlx::query_as(granted).bind(models).fetch_all(database).await?;
    Ok(rows.into_iter().map(|(id, attempt, at)| ((id, attempt), at)).collect())
}
