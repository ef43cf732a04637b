//! Hundreds of workers lose their connection and their leader at once.
//!
//! Each worker is attached to a replica of its own choice. So that all of them are with the leader when it is killed, the
//! followers are killed in turn before, until nobody has one left.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cortex::domain::ambient::{Ambient, System};
use futures::future::join_all;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::waits::{p99_ms, waits};
use super::{Figure, report};
use crate::cluster::{Cluster, ClusterOptions, Error};
use crate::history::{Act, History, Outcome, Recorder, Request, RunInfo};
use crate::workload::{Plan, Shared, Size, Workload, outcome_of};

/// Load before anything happens, and after.
const CALM: Duration = Duration::from_secs(8);
/// How long the jobs take that show which workers are there: until all have one, nobody is to have two.
const MARKER: Duration = Duration::from_secs(8);
/// Most jobs of one batch.
const BATCH: usize = 100;
/// Seconds after the kill that are looked at.
const LOOKED_AT: u32 = 12;
/// Seconds that are looked at together: the p99 of a single one's hundred waits is the longest of them.
const WINDOW: u64 = 3;
/// In microseconds.
const SECOND: u64 = 1_000_000;
/// Time between two looks at the memory.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The state of an open connection in the kernel's table.
const ESTABLISHED: &str = "01";
/// Longest wait for all workers.
const ALL_WITHIN: Duration = Duration::from_secs(60);

/// What to do.
#[derive(Debug, Clone)]
pub struct ReconnectOptions {
    /// Where all randomness comes from.
    pub seed: u64,
    /// How many workers.
    pub workers: usize,
    /// Where everything is written; must not exist.
    pub folder: PathBuf,
}

/// Kills the leader twice: once to see when every worker has been given a job again, and once to see when jobs wait no
/// longer than before.
///
/// # Errors
/// When the cluster does not come up or something cannot be written.
pub async fn reconnect(options: &ReconnectOptions) -> Result<bool, Error> {
    std::fs::create_dir_all(&options.folder)?;
    let cluster = Arc::new(Cluster::start(&options.folder.join("cluster"), ClusterOptions::default()).await?);
    let (recorder, writer) = Recorder::create(&options.folder.join("history.jsonl"))?;
    let recorder = Arc::new(recorder);
    let size = Size {
        submitters: 4,
        pace: Duration::from_millis(40),
        timed: false,
        // Whoever is in the middle of a long job is attached, too, and would begin no other one.
        longest: Duration::from_millis(60),
        readers: 0,
        cancellers: 0,
        intruders: 0,
        sessions: options.workers,
        session_slots: 1,
        pollers: 0,
        poller_slots: 0,
    };
    let info = describe(options, &size);
    std::fs::write(options.folder.join("run.json"), serde_json::to_vec_pretty(&info)?)?;
    let mut workload = Workload::start(&cluster, &recorder, options.seed, &size);
    let shared = Arc::clone(workload.shared());

    let workers = u32::try_from(options.workers).unwrap_or(u32::MAX);
    all_begin(&shared, &options.folder, options.workers).await?;
    sleep(CALM).await;
    let before = memory(&cluster).await;
    let surge = Surge::watch(&cluster);
    gather_at_leader(&cluster, workers).await?;
    sleep(CALM).await;
    let Kill { at: first_kill, leader: first, workers: first_lost } =
        kill_leader(&cluster, &recorder, workers).await?;
    let (attached, accepted) = all_begin(&shared, &options.folder, options.workers).await?;
    cluster.revive(first).await?;
    gather_at_leader(&cluster, workers).await?;
    sleep(MARKER + CALM).await;
    let Kill { at: second_kill, leader: second, workers: second_lost } =
        kill_leader(&cluster, &recorder, workers).await?;
    sleep(CALM * 2).await;
    let afterwards = memory(&cluster).await;
    let peak = surge.end().await;
    cluster.revive(second).await?;

    workload.end_load().await;
    workload.stop().await;
    drop(shared);
    drop(recorder);
    if let Some(cluster) = Arc::into_inner(cluster) {
        cluster.stop().await;
    }
    writer.finish()?;
    let history = History::read(&options.folder)?;
    let waits = waits(&history);
    let calm = p99_ms(&waits, second_kill - 6 * SECOND, second_kill).unwrap_or(0.0);
    let normal = normal_after(&waits, second_kill, calm);
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let since = |at: u64| (at - first_kill) as f64 / 1000.0;
    let figures = [
        Figure::new("workers attached to the leader, first kill", "", first_lost.into(), None),
        Figure::new("workers attached to the leader, second kill", "", second_lost.into(), None),
        Figure::new("until a submission was accepted again", "ms", since(accepted), None),
        Figure::new("until every worker had been given a job again", "ms", since(attached), Some(3000.0)),
        Figure::new("p99 of the wait for a worker, calm", "ms", calm, None),
        Figure::new("until p99 of the wait was normal again", "s", normal, Some(5.0)),
        Figure::new("memory of the largest replica, calm", "MiB", before, None),
        Figure::new("memory of the largest replica, at the most", "MiB", peak, Some(before * 3.0 + 128.0)),
        Figure::new(
            "memory of the largest replica, afterwards",
            "MiB",
            afterwards,
            Some(before * 2.0 + 64.0),
        ),
    ];
    report(&options.folder, &figures)
}

fn describe(options: &ReconnectOptions, size: &Size) -> RunInfo {
    RunInfo {
        seed: options.seed,
        duration_s: 0.0,
        network: "loopback".to_owned(),
        faults: vec!["kill-leader".to_owned()],
        not_allowed: Vec::new(),
        replicas: usize::from(ClusterOptions::default().replicas),
        slots: size.slots(),
        effects: true,
        started_at: System.now(),
        command: format!(
            "cargo run --release -p cortex-chaos -- reconnect --seed {} --workers {}",
            options.seed, options.workers
        ),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        planted: None,
    }
}

/// The first second after a moment from which on jobs wait no longer than twice as long as before.
fn normal_after(waits: &[(u64, u64)], moment: u64, calm: f64) -> f64 {
    let is_normal = |second: &u32| {
        let from = moment + u64::from(*second) * SECOND;
        // Where nothing is accepted nothing is normal.
        p99_ms(waits, from, from + WINDOW * SECOND).is_some_and(|p99| p99 <= (2.0 * calm).max(50.0))
    };
    (0..LOOKED_AT).rev().take_while(is_normal).last().unwrap_or(LOOKED_AT).into()
}

/// A leader that was killed.
struct Kill {
    at: u64,
    leader: usize,
    /// How many workers were attached to it.
    workers: u32,
}

/// Has all workers attached to the leader: whoever loses a follower goes to the next replica in an order of its own, and nobody
/// loses the leader.
async fn gather_at_leader(cluster: &Cluster, workers: u32) -> Result<(), Error> {
    let leader = cluster.leader_other_than(None).await?;
    let deadline = Instant::now() + ALL_WITHIN;
    let mut followers = (0..cluster.size()).filter(|index| *index != leader).cycle();
    while attached(cluster, leader)? < workers {
        if Instant::now() > deadline {
            return Err("the workers did not all come to the leader".into());
        }
        let follower = followers.next().ok_or("there are no followers")?;
        cluster.kill(follower).await;
        while (0..cluster.size()).map(|index| attached(cluster, index)).sum::<Result<u32, _>>()? < workers {
            if Instant::now() > deadline {
                return Err("the workers did not all come to the leader".into());
            }
            sleep(LOOK_EVERY).await;
        }
        cluster.revive(follower).await?;
    }
    Ok(())
}

async fn kill_leader(cluster: &Cluster, recorder: &Recorder, workers: u32) -> Result<Kill, Error> {
    let leader = cluster.leader_other_than(None).await?;
    let lost = attached(cluster, leader)?;
    if lost < workers {
        return Err(format!("only {lost} of {workers} workers were attached to the leader").into());
    }
    let at = recorder.now();
    cluster.kill(leader).await;
    Ok(Kill { at, leader, workers: lost })
}

/// How many workers are attached to a replica.
fn attached(cluster: &Cluster, replica: usize) -> Result<u32, Error> {
    let port = cluster.grpc(replica).rsplit(':').next().unwrap_or_default().parse()?;
    Ok(connections_to(&std::fs::read_to_string("/proc/net/tcp")?, port))
}

/// Connections to a port in the text of `/proc/net/tcp`: each worker has one.
fn connections_to(table: &str, port: u16) -> u32 {
    let remote = format!(":{port:04X}");
    let is_one = |line: &&str| {
        let mut fields = line.split_whitespace().skip(2);
        fields.next().is_some_and(|to| to.ends_with(&remote)) && fields.next() == Some(ESTABLISHED)
    };
    u32::try_from(table.lines().filter(is_one).count()).unwrap_or(u32::MAX)
}

/// Submits a long job for every worker and waits until each has begun one; answers when that was, and when the first of
/// these jobs was accepted.
async fn all_begin(shared: &Arc<Shared>, folder: &Path, workers: usize) -> Result<(u64, u64), Error> {
    let begun = shared.recorder.now();
    let first = submit(shared, workers).await?;
    let deadline = Instant::now() + ALL_WITHIN;
    loop {
        let starts = starts_since(folder, begun)?;
        if let Some(at) = starts.get(workers - 1) {
            return Ok((*at, first));
        }
        if Instant::now() > deadline {
            return Err(format!("only {} of {workers} workers had a job in time", starts.len()).into());
        }
        // The history has the times; reading it costs.
        sleep(Duration::from_secs(1)).await;
    }
}

/// When each worker has begun its first job since then, in order.
fn starts_since(folder: &Path, begun: u64) -> Result<Vec<u64>, Error> {
    let (mut seen, mut starts) = (BTreeSet::new(), Vec::new());
    for (at, worker, act) in History::read(folder)?.acts {
        if at >= begun && matches!(act, Act::Start { .. }) && seen.insert(worker) {
            starts.push(at);
        }
    }
    Ok(starts)
}

/// Submits so many long jobs, in batches at all replicas; answers when the first batch was accepted.
async fn submit(shared: &Arc<Shared>, count: usize) -> Result<u64, Error> {
    let cluster = &shared.cluster;
    let batches = (0..count.div_ceil(BATCH)).map(|batch| async move {
        let numbers: Vec<u64> = (0..BATCH.min(count - batch * BATCH)).map(|_| shared.next_number()).collect();
        let mut draw = shared.draw(&format!("markers-{}", numbers[0]));
        let jobs: Vec<_> = numbers
            .iter()
            .map(|number| {
                let work_ms = u64::try_from(MARKER.as_millis()).unwrap_or(u64::MAX);
                let plan =
                    Plan { number: *number, work_ms, fails: 0, run_at: None, overruns: false, poison: false };
                let mut body = plan.body(&mut draw);
                body["priority"] = 10.into();
                body
            })
            .collect();
        // With a key, so that a batch whose answer is lost can be sent again.
        let key = draw.uuid().to_string();
        let deadline = Instant::now() + ALL_WITHIN;
        let mut replica = batch % cluster.size();
        while Instant::now() < deadline {
            let url = format!("http://{}/api/v1/jobs/batch", cluster.rest(replica));
            let send = cluster.http.post(url).bearer_auth(&cluster.tokens().submitter);
            let send = send.header("Idempotency-Key", &key).json(&json!({"jobs": jobs}));
            let request = Request::Submit { key: Some(key.clone()), numbers: numbers.clone(), batch: true };
            let call = outcome_of(send.timeout(Duration::from_secs(6)));
            if let Outcome::Ok { .. } = shared.recorder.call("marker", replica, request, call).await {
                return Some(shared.recorder.now());
            }
            replica = (replica + 1) % cluster.size();
            sleep(Duration::from_millis(10)).await;
        }
        None
    });
    let accepted: Vec<Option<u64>> = join_all(batches).await;
    let all: Option<Vec<u64>> = accepted.into_iter().collect();
    Ok(all.and_then(|all| all.into_iter().min()).ok_or("a batch was not accepted")?)
}

/// A look at the memory that goes on until it is asked for its result.
struct Surge {
    stop: CancellationToken,
    task: JoinHandle<f64>,
}

impl Surge {
    fn watch(cluster: &Arc<Cluster>) -> Self {
        let stop = CancellationToken::new();
        let (cluster, stopped) = (Arc::clone(cluster), stop.clone());
        let task = tokio::spawn(async move {
            let mut largest = 0.0_f64;
            while timeout(LOOK_EVERY, stopped.cancelled()).await.is_err() {
                largest = largest.max(memory(&cluster).await);
            }
            largest
        });
        Self { stop, task }
    }

    /// The most that any replica has used.
    async fn end(self) -> f64 {
        self.stop.cancel();
        self.task.await.unwrap_or(f64::INFINITY)
    }
}

/// Memory in use by the largest replica, in MiB.
async fn memory(cluster: &Cluster) -> f64 {
    let mut largest = 0.0_f64;
    for index in 0..cluster.size() {
        let Some(pid) = cluster.pid(index).await else { continue };
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = resident.and_then(|text| text.trim().trim_end_matches(" kB").parse::<f64>().ok());
        largest = largest.max(kib.unwrap_or(0.0) / 1024.0);
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::connections_to;

    #[test]
    fn open_connections_to_a_port_are_counted_once() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 77 1 0 20 4\n\
            1: 0100007F:D431 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 78 1 0 20 4\n\
            2: 0100007F:D433 0100007F:1F90 06 00000000:00000000 00:00000000 00000000     0        0 79 1 0 20 4\n";
        assert_eq!(connections_to(table, 0x1F90), 1);
        assert_eq!(connections_to(table, 0x1F91), 0);
    }
}
