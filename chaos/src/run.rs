//! One run: a cluster, its users, faults, quiet, and the record of it all.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use cortex::domain::ambient::{Ambient, System};
use tokio::sync::Mutex;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, ClusterOptions, Error, NetworkKind};
use crate::draw::Draw;
use crate::faults::{self, Fault, Miss, Subject};
use crate::history::{self, NO_SUCCESSOR, Record, Recorder, RunInfo, Stage};
use crate::monitor;
use crate::workload::{Size, Workload};

/// Time between two looks at the views of the group and at the counters.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Load without faults before the first one.
const CALM: Duration = Duration::from_secs(2);
/// What L1 allows beyond the work itself, and as much again before the wait is given up.
const QUIET: Duration = Duration::from_secs(60);
/// By when a leader has compared the queue with the tables once more.
const COMPARES_WITHIN: Duration = Duration::from_secs(12);

/// How a process tells of a panic, a stack that is full, and memory that is not to be had.
const PANICS: [&str; 4] =
    ["panicked", "has overflowed its stack", "memory allocation of", "fatal runtime error"];

/// How the product's log begins to tell of a panic, and what stands before its place.
const LOGGED: &str = "panicked: ";
const PLACE: &str = "location=";
/// Most lines of a panic's message, after the first.
const MESSAGE_LINES: usize = 20;

/// What to run.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// Where all randomness comes from.
    pub seed: u64,
    /// How long load and faults last.
    pub duration: Duration,
    /// Names of the faults that may strike.
    pub faults: Vec<&'static str>,
    /// How replicas and stores are connected.
    pub network: NetworkKind,
    /// Where everything is written; must not exist.
    pub folder: PathBuf,
    /// How many of everybody there are.
    pub size: Size,
    /// The planted defect, if any.
    pub planted: Option<String>,
}

/// Runs once. The folder then holds the history, ready to be judged.
///
/// # Errors
/// When the cluster does not come up, or something could not be written.
pub async fn run(options: &RunOptions) -> Result<(), Error> {
    fs::create_dir_all(&options.folder)?;
    let info = describe(options);
    fs::write(options.folder.join("run.json"), serde_json::to_vec_pretty(&info)?)?;
    let mut cluster_options =
        ClusterOptions { network: options.network, seed: options.seed, ..ClusterOptions::default() };
    if let Some(defect) = &options.planted {
        cluster_options.environment.push(("CORTEX_PLANT".to_owned(), defect.clone()));
    }
    let cluster = Arc::new(Cluster::start(&options.folder.join("cluster"), cluster_options).await?);
    let (recorder, writer) = Recorder::create(&options.folder.join("history.jsonl"))?;
    let recorder = Arc::new(recorder);
    recorder.note(Record::Stage { stage: Stage::Calm });
    let watching = CancellationToken::new();
    let mut watchers = JoinSet::new();
    for index in 0..cluster.size() {
        watchers.spawn(watch_views(Arc::clone(&cluster), Arc::clone(&recorder), index, watching.clone()));
    }
    watchers.spawn(monitor::watch(Arc::clone(&cluster), Arc::clone(&recorder), watching.clone()));
    watchers.spawn(watch_depth(Arc::clone(&cluster), Arc::clone(&recorder), watching.clone()));

    let workload = Workload::start(&cluster, &recorder, options.seed, &options.size);
    let workload = Arc::new(Mutex::new(workload));
    sleep(CALM).await;
    recorder.note(Record::Stage { stage: Stage::Faults });
    strike_until(Instant::now() + options.duration, options, &cluster, &workload, &recorder).await;

    workload.lock().await.end_load().await;
    recorder.note(Record::Stage { stage: Stage::Quiet });
    wait_for_quiet(&cluster).await;
    recorder.note(Record::Stage { stage: Stage::Over });
    wait_until_ready(&cluster, &recorder).await;
    if let Some(workload) = Arc::into_inner(workload) {
        workload.into_inner().stop().await;
    }
    watching.cancel();
    while watchers.join_next().await.is_some() {}
    let redis = cluster.redis_state().await?;
    history::dump(&options.folder, &cluster.pool, &redis).await?;
    verify(&options.folder, &cluster).await?;
    drop(recorder);
    if let Some(cluster) = Arc::into_inner(cluster) {
        let logs = cluster.logs().await;
        cluster.stop().await;
        fs::write(options.folder.join("panics.json"), serde_json::to_vec_pretty(&panics(&logs)?)?)?;
    }
    writer.finish()?;
    Ok(())
}

/// Removes the data of the replicas and stores from a run's folder, and leaves logs and history.
pub fn tidy(folder: &Path) {
    for part in ["postgres", "redis", "cluster/raft-1", "cluster/raft-2", "cluster/raft-3", "cluster/auth"] {
        // What cannot be removed takes up space and does no other harm.
        let _ = fs::remove_dir_all(folder.join("cluster").join(part));
    }
}

fn describe(options: &RunOptions) -> RunInfo {
    let seconds = options.duration.as_secs_f64();
    let not_allowed = faults::ALL.iter().filter(|fault| !fault.is_possible());
    RunInfo {
        seed: options.seed,
        duration_s: seconds,
        network: options.network.name().to_owned(),
        faults: options.faults.iter().map(ToString::to_string).collect(),
        not_allowed: not_allowed.map(|fault| fault.name.to_owned()).collect(),
        replicas: usize::from(ClusterOptions::default().replicas),
        slots: options.size.slots(),
        effects: true,
        started_at: System.now(),
        command: format!(
            "cargo run --release -p cortex-chaos -- run --seed {} --duration {seconds}s --network {} --pace {}s \
             --faults {}",
            options.seed,
            options.network.name(),
            options.size.pace.as_secs_f64(),
            options.faults.join(",")
        ),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        planted: options.planted.clone(),
    }
}

/// Strikes until it is time. Faults of different subjects may overlap: now and again the next one does not wait.
async fn strike_until(
    end: Instant,
    options: &RunOptions,
    cluster: &Arc<Cluster>,
    workload: &Arc<Mutex<Workload>>,
    recorder: &Arc<Recorder>,
) {
    let kinds: Vec<&'static Fault> = options
        .faults
        .iter()
        .filter_map(|name| Fault::named(name))
        .filter(|fault| fault.is_possible())
        .collect();
    let mut draw = Draw::new(options.seed, "faults");
    let mut under_way: JoinSet<faults::Subject> = JoinSet::new();
    let mut subjects = Vec::new();
    let mut number = 0_u64;
    while Instant::now() < end && !kinds.is_empty() {
        sleep(draw.milliseconds(300, 1500)).await;
        let fault = *draw.choose(&kinds);
        let overlaps = draw.percent(25) && !subjects.contains(&fault.subject);
        let most = usize::from(overlaps);
        while under_way.len() > most {
            if let Some(struck) = under_way.join_next().await {
                let subject = subject_of(struck);
                subjects.retain(|other| *other != subject);
            }
        }
        if Instant::now() >= end {
            break;
        }
        number += 1;
        subjects.push(fault.subject);
        let (cluster, workload, recorder) = (Arc::clone(cluster), Arc::clone(workload), Arc::clone(recorder));
        let own = Draw::new(options.seed, &format!("fault-{number}"));
        under_way.spawn(async move {
            let struck = fault.strike_once(&cluster, &workload, &recorder, own).await;
            match struck {
                Ok(proof) => println!("  {}: {proof}", fault.name),
                Err(Miss::Idle(why)) => println!("  {}: did not bite: {why}", fault.name),
                Err(Miss::Broke(why)) => println!("  {}: BROKEN: {why}", fault.name),
                Err(Miss::NoSuccessor) => println!("  {}: BROKEN: {NO_SUCCESSOR}", fault.name),
            }
            fault.subject
        });
    }
    while let Some(struck) = under_way.join_next().await {
        subject_of(struck);
    }
}

/// What a strike was about. One that panicked ends the run.
fn subject_of(struck: Result<Subject, JoinError>) -> Subject {
    struck.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Waits until every job has come to its end; gives up when nothing goes on any more.
async fn wait_for_quiet(cluster: &Cluster) {
    let open = "SELECT count(*) FROM jobs WHERE completed_at IS NULL";
    let (mut left, mut deadline) = (i64::MAX, Instant::now() + QUIET);
    while Instant::now() < deadline {
        match sqlx::query_scalar::<_, i64>(open).fetch_one(&cluster.pool).await {
            Ok(0) => return,
            Ok(now) if now < left => (left, deadline) = (now, Instant::now() + QUIET),
            _ => {}
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Waits until every replica serves, and notes those that do not come to.
async fn wait_until_ready(cluster: &Cluster, recorder: &Recorder) {
    for replica in 0..cluster.size() {
        let ready = || async move { cluster.replicas.read().await.is_ready(replica).await };
        if cluster.until("the replica is ready", ready).await.is_err() {
            recorder.note(Record::NotReady { replica });
        }
    }
}

async fn watch_views(
    cluster: Arc<Cluster>,
    recorder: Arc<Recorder>,
    replica: usize,
    stop: CancellationToken,
) {
    let (mut last, mut ended) = (None, None);
    while timeout(LOOK_EVERY, stop.cancelled()).await.is_err() {
        let exit = cluster.exit(replica).await;
        if exit != ended
            && let Some(status) = exit
        {
            recorder.note(Record::Exit { replica, status: status.to_string() });
        }
        ended = exit;
        let pid = cluster.pid(replica).await;
        let Some(view) = cluster.view(replica).await else { continue };
        if last.as_ref() != Some(&(pid, view.clone())) {
            recorder.note(Record::View { replica, pid, view: view.clone() });
            last = Some((pid, view));
        }
    }
}

async fn watch_depth(cluster: Arc<Cluster>, recorder: Arc<Recorder>, stop: CancellationToken) {
    let sums = "SELECT sum(pending)::bigint, sum(queued)::bigint, sum(assigned + running)::bigint,
        sum(completed + failed + cancelled + timeout)::bigint FROM job_counters";
    while timeout(LOOK_EVERY * 2, stop.cancelled()).await.is_err() {
        if let Ok((pending, queued, active, finished)) = sqlx::query_as(sums).fetch_one(&cluster.pool).await {
            recorder.note(Record::Depth { pending, queued, active, finished });
        }
    }
}

/// By index of the replica, the lines of its log that tell of a panic or of an end that no code answers for.
fn panics(logs: &[PathBuf]) -> Result<BTreeMap<usize, Vec<String>>, Error> {
    let mut panics = BTreeMap::new();
    for (replica, log) in logs.iter().enumerate() {
        panics.insert(replica, told_panics(&String::from_utf8_lossy(&fs::read(log)?)));
    }
    Ok(panics)
}

/// The lines of a log that tell of a panic. One that the product logs ends with its place: where its message has several
/// lines, they become one.
fn told_panics(log: &str) -> Vec<String> {
    let tells = |line: &str| PANICS.iter().any(|sign| line.contains(sign));
    let (mut told, mut lines) = (Vec::new(), log.lines());
    while let Some(line) = lines.next() {
        if !tells(line) {
            continue;
        }
        let mut whole = line.to_owned();
        if line.contains(LOGGED) && !line.contains(PLACE) {
            let mut more = lines.clone().take(MESSAGE_LINES).take_while(|line| !tells(line));
            let until = more.position(|line| line.contains(PLACE)).map_or(0, |last| last + 1);
            for line in lines.by_ref().take(until) {
                whole = format!("{whole} {}", line.trim());
            }
        }
        told.push(whole);
    }
    told
}

/// Asks `cortex verify` and keeps what it says.
async fn verify(folder: &Path, cluster: &Cluster) -> Result<(), Error> {
    let mut said = ask_verify(cluster).await?;
    if said["verdict"] == "off" {
        // What was done to the queue behind the product's back shows when it compares.
        sleep(COMPARES_WITHIN).await;
        said = ask_verify(cluster).await?;
    }
    fs::write(folder.join("verify.json"), serde_json::to_vec_pretty(&said)?)?;
    Ok(())
}

async fn ask_verify(cluster: &Cluster) -> Result<serde_json::Value, Error> {
    let config = cluster.folder().join("cluster").join("replica-1.yaml");
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.arg("verify").arg("--config").arg(config).args(["--output", "json"]).stdin(Stdio::null());
    let output = command.output().await?;
    // What is no JSON is kept as a text: it is not a clean answer either way.
    Ok(serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        serde_json::json!({"error": String::from_utf8_lossy(&output.stderr), "status": output.status.code()})
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_told_with_its_place() {
        let log = "INFO cortex: ready\n\
            ERROR cortex::telemetry::logging: panicked: left == right\n  left: 1\n right: 2 location=/r/redb-4.6.0/a.rs:1:2 thread=\"main\"\n\
            ERROR cortex::telemetry::logging: panicked: index location=src/b.rs:3:4 thread=\"main\"\n\
            thread 'main' panicked at src/c.rs:5:6:\n\
            thread 'main' has overflowed its stack\n\
            ERROR cortex::telemetry::logging: panicked: without a place\n\
            INFO cortex: gone\n";
        let told = [
            "ERROR cortex::telemetry::logging: panicked: left == right left: 1 right: 2 location=/r/redb-4.6.0/a.rs:1:2 thread=\"main\"",
            "ERROR cortex::telemetry::logging: panicked: index location=src/b.rs:3:4 thread=\"main\"",
            "thread 'main' panicked at src/c.rs:5:6:",
            "thread 'main' has overflowed its stack",
            "ERROR cortex::telemetry::logging: panicked: without a place",
        ];
        assert_eq!(told_panics(log), told);
    }
}
