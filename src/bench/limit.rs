//! What this schema can bear: CORTEX's own statements in full batches, straight against PostgreSQL.
//!
//! A scratch database gets the schema; each connection then stores, assigns and completes batch after batch in
//! fenced transactions, with nothing else in the way. Two ways of a job are measured: straight to a worker
//! (stored with its lease, completed), and through the queue (stored, assigned, completed).

use std::time::Duration;

use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::task::JoinSet;

use super::report::{Cpu, Line};
use super::{BenchError, Clock, Options};
use crate::domain::ambient::{Ambient, System};
use crate::domain::execution::Usage;
use crate::domain::ids::{ClusterId, Epoch, JobId, LeaseId, WorkerId};
use crate::domain::job::{JobDefaults, JobDraft, NewJob};
use crate::domain::payload::Payload;
use crate::domain::retry::RetryPolicy;
use crate::domain::worker::WorkerDraft;
use crate::storage::{Claim, Completion, Database, DatabaseOptions, Fence, Insertion, Origin, StorageError};

/// Jobs of one transaction.
const BATCH: usize = 500;
/// Connections side by side, as tried one after the other; the best counts.
const CONNECTIONS: [usize; 3] = [1, 2, 4];
/// How long a lease is good beyond a job's timeout, in seconds.
const FETCH_SECONDS: i32 = 30;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Queued,
}

/// Measures both ways.
pub(super) async fn run(options: &Options, mut say: impl FnMut(&Line)) -> Result<(), BenchError> {
    let url = options.database_url.as_deref();
    let url = url.ok_or_else(|| BenchError::Usage("limit needs --database-url".to_owned()))?;
    let name = format!("cortex_bench_{}", System.uuid().simple());
    let failed = |error: sqlx::Error| BenchError::call("preparing the scratch database")(&error);
    let mut admin = PgConnection::connect(url).await.map_err(failed)?;
    sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}")))
        .execute(&mut admin)
        .await
        .map_err(failed)?;
    let scratch = scratch_url(url, &name)?;
    let measured = options.stop.run_until_cancelled(measure_all(options, &scratch, &mut say)).await;
    let drop_it = AssertSqlSafe(format!("DROP DATABASE {name} WITH (FORCE)"));
    sqlx::query(drop_it).execute(&mut admin).await.map_err(failed)?;
    measured.unwrap_or(Err(BenchError::BrokenOff))
}

/// The same server, another database.
fn scratch_url(url: &str, name: &str) -> Result<String, BenchError> {
    let mut parsed =
        reqwest::Url::parse(url).map_err(|error| BenchError::Usage(format!("--database-url: {error}")))?;
    parsed.set_path(name);
    Ok(parsed.into())
}

async fn measure_all(options: &Options, url: &str, say: &mut impl FnMut(&Line)) -> Result<(), BenchError> {
    let failed = |error: StorageError| BenchError::call("running the statements")(&error);
    let seconds = Duration::from_secs(30);
    let database = Database::connect_lazily(&DatabaseOptions {
        url: url.to_owned(),
        max_connections: 8,
        acquire_timeout: seconds,
        max_lifetime: seconds * 60,
        pooler: false,
    })
    .map_err(failed)?;
    database.migrate().await.map_err(|error| BenchError::call("migrating the scratch database")(&error))?;
    let fence = Fence { cluster_id: ClusterId(System.uuid()), epoch: Epoch(1) };
    database.take_over(fence, 1, 1).await.map_err(failed)?;
    let worker = register(&database, fence).await.map_err(failed)?;
    let jobs = usize::try_from(options.jobs.unwrap_or(50_000)).unwrap_or(usize::MAX);
    let job = sample(options.payload_bytes)?;
    // Connections are opened, statements prepared, files grown; it counts nowhere.
    measure(&database, fence, worker, &job, BATCH * 8, 4, Way::Direct).await.map_err(failed)?;
    measure(&database, fence, worker, &job, BATCH * 8, 4, Way::Queued).await.map_err(failed)?;
    for (workload, way) in [("limit", Way::Direct), ("limit-queued", Way::Queued)] {
        let mut best: Option<Line> = None;
        for connections in CONNECTIONS {
            let (cpu, clock) = (Cpu::now(), Clock::start());
            let done =
                measure(&database, fence, worker, &job, jobs, connections, way).await.map_err(failed)?;
            let line = line(options, workload, done, connections, clock, cpu);
            if best.as_ref().is_none_or(|best| best.jobs_per_s < line.jobs_per_s) {
                best = Some(line);
            }
        }
        best.iter().for_each(&mut *say);
    }
    database.close().await;
    Ok(())
}

async fn register(database: &Database, fence: Fence) -> Result<WorkerId, StorageError> {
    let draft = WorkerDraft {
        name: "limit".into(),
        hostname: "limit".into(),
        ip_address: "127.0.0.1".into(),
        port: 1,
        capabilities: serde_json::Map::new(),
        max_concurrent_jobs: 100,
        heartbeat_interval_seconds: 30,
        version: None,
        metadata: serde_json::Map::new(),
    };
    let worker = draft.check(WorkerId(System.uuid())).map_err(|_| StorageError::timed_out())?;
    let mut transaction = database.begin(fence).await?;
    let (worker, _) = transaction.register_worker(&worker).await?;
    transaction.commit().await?;
    Ok(worker.id)
}

fn sample(payload_bytes: usize) -> Result<NewJob, BenchError> {
    let pad = "x".repeat(payload_bytes.saturating_sub(16));
    let body =
        json!({"name": "bench", "model_name": "bench", "model_version": "1", "input_data": {"payload": pad}});
    let failed = |cause: String| BenchError::Call { what: "making a job", cause };
    let draft: JobDraft = serde_json::from_value(body).map_err(|error| failed(error.to_string()))?;
    let defaults = JobDefaults { retry: RetryPolicy::default(), timeout_seconds: 3600 };
    draft.check(JobId(System.uuid()), &defaults).map_err(|_| failed("its fields are refused".to_owned()))
}

/// Runs so many jobs through on so many connections; answers how many that were.
async fn measure(
    database: &Database,
    fence: Fence,
    worker: WorkerId,
    job: &NewJob,
    jobs: usize,
    connections: usize,
    way: Way,
) -> Result<usize, StorageError> {
    let batches = jobs.div_ceil(BATCH * connections);
    let mut tasks = JoinSet::new();
    for slot in 0..connections {
        let (database, job) = (database.clone(), job.clone());
        let slot = i16::try_from(slot).unwrap_or(0);
        tasks.spawn(async move {
            for _ in 0..batches {
                run_batch(&database, fence, worker, &job, slot, way).await?;
            }
            Ok::<_, StorageError>(batches * BATCH)
        });
    }
    let mut done = 0;
    while let Some(task) = tasks.join_next().await {
        done += task.unwrap_or_else(|_| Err(StorageError::timed_out()))?;
    }
    Ok(done)
}

async fn run_batch(
    database: &Database,
    fence: Fence,
    worker_id: WorkerId,
    job: &NewJob,
    slot: i16,
    way: Way,
) -> Result<(), StorageError> {
    let new_job = || NewJob { id: JobId(System.uuid()), ..job.clone() };
    let jobs: Vec<NewJob> = std::iter::repeat_with(new_job).take(BATCH).collect();
    let claims: Vec<Claim> = jobs
        .iter()
        .map(|job| Claim { job_id: job.id, worker_id, lease: LeaseId(System.uuid()), delivery: None })
        .collect();
    let direct = way == Way::Direct;
    let rows: Vec<Insertion<'_>> = jobs
        .iter()
        .zip(&claims)
        .map(|(job, claim)| Insertion { job, claim: direct.then_some(*claim), trace: None })
        .collect();
    database.insert_jobs(fence, slot, &rows, FETCH_SECONDS).await?;
    if !direct {
        database.assign_jobs(fence, slot, Origin::Queue, &claims, FETCH_SECONDS).await?;
    }
    let output = Payload::trusted(r#"{"ok":true,"n":1}"#);
    let completions: Vec<Completion<'_>> = claims
        .iter()
        .map(|claim| Completion {
            job_id: claim.job_id,
            lease: claim.lease,
            worker_id,
            running: false,
            output: Some(&output),
            duration_ms: None,
            usage: Usage::default(),
        })
        .collect();
    let done = database.complete_jobs(fence, slot, &completions).await?;
    // What it measured is what it did.
    if done.len() == BATCH { Ok(()) } else { Err(StorageError::timed_out()) }
}

fn line(
    options: &Options,
    workload: &'static str,
    jobs: usize,
    connections: usize,
    clock: Clock,
    cpu: Cpu,
) -> Line {
    let cpu = cpu.since();
    #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
    let (seconds, count) = (clock.micros() as f64 / 1e6, jobs as f64);
    Line {
        workload,
        jobs: jobs as u64,
        seconds,
        jobs_per_s: count / seconds,
        p50_ms: 0.0,
        p99_ms: 0.0,
        max_ms: 0.0,
        cpu_s: cpu.machine,
        cpu_client_s: cpu.process,
        cpu_stolen_s: cpu.stolen,
        refused: 0,
        verified: jobs as u64,
        in_flight: connections,
        workers: 0,
        slots: 0,
        payload_bytes: options.payload_bytes,
    }
}
