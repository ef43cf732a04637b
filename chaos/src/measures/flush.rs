//! Redis loses everything while very many jobs wait.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cortex::domain::ambient::{Ambient, System};
use futures::{StreamExt, TryStreamExt, stream};
use reqwest::Method;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::waits::{p99_ms, waits};
use super::{Figure, report};
use crate::cluster::{Cluster, ClusterOptions, Error};
use crate::history::{History, Recorder, RunInfo};
use crate::workload::{Size, Workload};

/// Whose jobs wait.
const MODEL: &str = "held";
/// Jobs of a batch.
const BATCH: usize = 1000;
/// Batches under way at a time.
const AT_ONCE: usize = 4;
/// Load before, and after the queue is whole again.
const CALM: Duration = Duration::from_secs(6);
/// Longest wait for the queue to be whole.
const WHOLE_WITHIN: Duration = Duration::from_secs(120);
/// Time between two looks at Redis.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What to do.
#[derive(Debug, Clone)]
pub struct FlushOptions {
    /// Where all randomness comes from.
    pub seed: u64,
    /// How many jobs wait.
    pub waiting: usize,
    /// Where everything is written; must not exist.
    pub folder: PathBuf,
}

/// Has jobs of a paused model wait, empties Redis, and measures how long it takes until it has them all again, and how
/// jobs of others fare meanwhile.
///
/// # Errors
/// When the cluster does not come up or something cannot be written.
pub async fn flush(options: &FlushOptions) -> Result<bool, Error> {
    std::fs::create_dir_all(&options.folder)?;
    let cluster = Arc::new(Cluster::start(&options.folder.join("cluster"), ClusterOptions::default()).await?);
    let paused = format!("/api/v1/queues/pause?model_name={MODEL}");
    if cluster.administer(0, Method::POST, &paused, None).await?.0 != 200 {
        return Err("the model was not paused".into());
    }
    wait_in_line(&cluster, options.waiting).await?;
    let (recorder, writer) = Recorder::create(&options.folder.join("history.jsonl"))?;
    let recorder = Arc::new(recorder);
    let size = Size { timed: false, cancellers: 0, intruders: 0, ..Size::default() };
    let info = describe(options, &size);
    std::fs::write(options.folder.join("run.json"), serde_json::to_vec_pretty(&info)?)?;
    let mut workload = Workload::start(&cluster, &recorder, options.seed, &size);
    sleep(CALM).await;

    let full = held(&cluster).await?;
    let flushed = recorder.now();
    let began = Instant::now();
    let mut connection = cluster.redis_client.get_multiplexed_async_connection().await?;
    redis::cmd("FLUSHALL").query_async::<()>(&mut connection).await?;
    let emptied = held(&cluster).await?;
    while held(&cluster).await? < options.waiting as u64 {
        if began.elapsed() > WHOLE_WITHIN {
            break;
        }
        sleep(LOOK_EVERY).await;
    }
    let whole = recorder.now();
    sleep(CALM).await;
    workload.end_load().await;
    workload.stop().await;
    drop(recorder);
    if let Some(cluster) = Arc::into_inner(cluster) {
        cluster.stop().await;
    }
    writer.finish()?;
    let waits = waits(&History::read(&options.folder)?);
    let began = |(sent, wait): &&(u64, u64)| (flushed..whole).contains(&sent.saturating_add(*wait));
    let begun = waits.iter().filter(began).count();
    let over = 3_000_000;
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let (seconds, full, emptied, begun) =
        ((whole - flushed) as f64 / 1e6, full as f64, emptied as f64, begun as f64);
    let figures = [
        Figure::new("jobs in Redis before", "", full, None),
        Figure::new("jobs in Redis just after FLUSHALL", "", emptied, None),
        Figure::new("until all were there again", "s", seconds, Some(10.0)),
        Figure::new("other jobs that workers began meanwhile", "", begun, None),
        Figure::new(
            "p99 of the wait for a worker before",
            "ms",
            p99_ms(&waits, flushed - over, flushed).unwrap_or(0.0),
            None,
        ),
        Figure::new(
            "p99 of the wait for a worker meanwhile",
            "ms",
            p99_ms(&waits, flushed, whole).unwrap_or(0.0),
            None,
        ),
        Figure::new(
            "p99 of the wait for a worker afterwards",
            "ms",
            p99_ms(&waits, whole, whole + over).unwrap_or(0.0),
            None,
        ),
    ];
    Ok(report(&options.folder, &figures)? && begun > 0.0)
}

fn describe(options: &FlushOptions, size: &Size) -> RunInfo {
    RunInfo {
        seed: options.seed,
        duration_s: 0.0,
        network: "loopback".to_owned(),
        faults: vec!["flush-all".to_owned()],
        not_allowed: Vec::new(),
        replicas: usize::from(ClusterOptions::default().replicas),
        slots: size.slots(),
        effects: true,
        started_at: System.now(),
        command: format!(
            "cargo run --release -p cortex-chaos -- flush --seed {} --waiting {}",
            options.seed, options.waiting
        ),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        planted: None,
    }
}

/// Submits so many jobs of the paused model.
async fn wait_in_line(cluster: &Cluster, count: usize) -> Result<(), Error> {
    let batches = (0..count.div_ceil(BATCH)).map(|batch| async move {
        let job = |number: usize| {
            json!({
                "name": format!("held-{number}"), "model_name": MODEL, "model_version": "1",
                "input_data": {"held": number}, "priority": number % 10 + 1,
            })
        };
        let numbers = batch * BATCH..count.min((batch + 1) * BATCH);
        let jobs: Vec<_> = numbers.map(job).collect();
        let url = format!("http://{}/api/v1/jobs/batch", cluster.rest(batch % cluster.size()));
        let send =
            cluster.http.post(url).bearer_auth(&cluster.tokens().submitter).json(&json!({"jobs": jobs}));
        let answer = send.send().await?;
        if !answer.status().is_success() {
            return Err::<(), Error>(format!("{}: {}", answer.status(), answer.text().await?).into());
        }
        Ok(())
    });
    stream::iter(batches).buffer_unordered(AT_ONCE).try_collect().await
}

/// How many jobs Redis holds that wait.
async fn held(cluster: &Cluster) -> Result<u64, Error> {
    let state = cluster.redis_state().await?;
    Ok(state.keys.values().filter(|(kind, _)| kind == "zset").map(|(_, length)| length).sum())
}
