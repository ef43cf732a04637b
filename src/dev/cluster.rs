//! A running development cluster.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::future::join_all;
use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use super::builder::{DevClusterBuilder, check_alive};
use super::error::DevError;
use super::events::{DevEvent, EventSink};
use super::manifest::{Manifest, ReplicaEntry, Store, WorkerEntry};
use super::ports::PortBlock;
use super::postgres::Postgres;
use super::probe::{Probe, SeenWorker};
use super::process::Child;
use super::redis::Redis;
use super::replica::{Common, Replica};
use super::worker::DemoWorker;

/// How long workers, and then replicas, may take to end before they are killed.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// Time between two questions while waiting.
const ASK_EVERY: Duration = Duration::from_millis(25);

/// Replicas, demo workers and their stores, as child processes of this one.
///
/// Replicas are addressed by index, from 0; their ids and the names of their files count from 1.
/// Dropping it kills the replicas and workers and ends the stores at once; [`DevCluster::stop`] is the
/// orderly way.
pub struct DevCluster {
    // The order of the fields is the order in which things end when the value is dropped.
    workers: Vec<DemoWorker>,
    pub(super) replicas: Vec<Replica>,
    /// The highest id that a replica ever had.
    pub(super) last_id: u64,
    redis: Option<Redis>,
    postgres: Option<Postgres>,
    pub(super) common: Common,
    binary: PathBuf,
    environment: BTreeMap<String, String>,
    probe: Probe,
    events: EventSink,
    stopping: Arc<AtomicBool>,
    pub(super) blocks: Vec<PortBlock>,
    _lock: File,
}

/// What a cluster is put together from, with the replicas started.
pub(super) struct Parts {
    pub(super) common: Common,
    pub(super) binary: PathBuf,
    pub(super) environment: BTreeMap<String, String>,
    pub(super) postgres: Option<Postgres>,
    pub(super) redis: Option<Redis>,
    pub(super) replicas: Vec<Replica>,
    pub(super) probe: Probe,
    pub(super) events: EventSink,
    pub(super) blocks: Vec<PortBlock>,
    pub(super) lock: File,
}

impl DevCluster {
    /// A cluster whose files are in `data_dir`, not started yet.
    pub fn builder(data_dir: impl Into<PathBuf>) -> DevClusterBuilder {
        DevClusterBuilder::new(data_dir)
    }

    pub(super) fn new(parts: Parts) -> Self {
        let cluster = Self {
            workers: Vec::new(),
            last_id: parts.replicas.iter().map(|replica| replica.id).max().unwrap_or(0),
            replicas: parts.replicas,
            redis: parts.redis,
            postgres: parts.postgres,
            common: parts.common,
            binary: parts.binary,
            environment: parts.environment,
            probe: parts.probe,
            events: parts.events,
            stopping: Arc::default(),
            blocks: parts.blocks,
            _lock: parts.lock,
        };
        cluster.processes().for_each(|child| cluster.report_end(child));
        let stores =
            [cluster.postgres.as_ref().map(Postgres::server), cluster.redis.as_ref().map(Redis::server)];
        stores.into_iter().flatten().for_each(|child| cluster.report_end(child));
        cluster
    }

    /// Number of replicas, running or not.
    pub fn size(&self) -> usize {
        self.replicas.len()
    }

    /// The folder with a token for every role, named `<role>.token`, if they were made.
    pub fn tokens(&self) -> Option<&Path> {
        self.common.keys.as_ref().map(|keys| keys.folder.as_path())
    }

    /// The data directory, absolute.
    pub fn data_dir(&self) -> &Path {
        &self.common.data_dir
    }

    /// URL of the PostgreSQL in use.
    pub fn database_url(&self) -> &str {
        &self.common.database_url
    }

    /// URL of the Redis in use.
    pub fn redis_url(&self) -> &str {
        &self.common.redis_url
    }

    /// The private PostgreSQL, if there is one.
    pub fn postgres(&mut self) -> Option<&mut Postgres> {
        self.postgres.as_mut()
    }

    /// The private Redis, if there is one.
    pub fn redis(&mut self) -> Option<&mut Redis> {
        self.redis.as_mut()
    }

    /// HTTP address of replica `index`.
    pub fn http(&self, index: usize) -> SocketAddr {
        self.replicas[index].http
    }

    /// gRPC address of replica `index`.
    pub fn grpc(&self, index: usize) -> SocketAddr {
        self.replicas[index].grpc
    }

    /// Peer address of replica `index`.
    pub fn peer(&self, index: usize) -> SocketAddr {
        self.replicas[index].peer
    }

    /// Log of replica `index`.
    pub fn log(&self, index: usize) -> &Path {
        &self.replicas[index].log
    }

    /// HTTP URLs of all replicas, comma-separated.
    pub fn http_endpoints(&self) -> String {
        join_urls(self.replicas.iter().map(|replica| replica.http))
    }

    /// gRPC URLs of all replicas, comma-separated.
    pub fn grpc_endpoints(&self) -> String {
        join_urls(self.replicas.iter().map(|replica| replica.grpc))
    }

    /// Process id of replica `index` while it runs.
    pub fn pid(&self, index: usize) -> Option<u32> {
        self.replicas[index].process.as_ref().filter(|child| child.is_running()).map(Child::pid)
    }

    /// Names and process ids of the demo workers.
    pub fn worker_pids(&self) -> Vec<(String, u32)> {
        self.workers.iter().map(|worker| (worker.name.clone(), worker.process.pid())).collect()
    }

    /// Sends a signal to replica `index`; answers whether it was there to take it.
    pub fn kill(&self, index: usize, signal: Signal) -> bool {
        self.replicas[index].process.as_ref().is_some_and(|child| child.signal(signal))
    }

    /// Stops replica `index` in its tracks (SIGSTOP).
    pub fn pause(&self, index: usize) -> bool {
        self.kill(index, Signal::SIGSTOP)
    }

    /// Lets replica `index` go on (SIGCONT).
    pub fn resume(&self, index: usize) -> bool {
        self.kill(index, Signal::SIGCONT)
    }

    /// Sends a signal to demo worker `index`; answers whether it was there to take it.
    pub fn kill_worker(&self, index: usize, signal: Signal) -> bool {
        self.workers[index].process.signal(signal)
    }

    /// Waits until replica `index` has ended, and answers how; `None` if it was never started.
    pub async fn wait_for_exit(&self, index: usize) -> Option<ExitStatus> {
        let child = self.replicas[index].process.as_ref()?;
        Some(child.exited().await)
    }

    /// Starts replica `index` again, killing it first if it runs. Does not wait until it is ready.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn restart(&mut self, index: usize) -> Result<(), DevError> {
        if let Some(child) = self.replicas[index].process.take() {
            child.stop(Signal::SIGKILL, STOP_WITHIN).await;
        }
        self.replicas[index].start(&self.binary, &self.environment)?;
        if let Some(child) = &self.replicas[index].process {
            self.report_end(child);
        }
        self.write_manifest()
    }

    /// Whether replica `index` says that it is ready.
    pub async fn is_ready(&self, index: usize) -> bool {
        self.probe.is_ready(self.http(index)).await
    }

    /// Waits until every replica is ready.
    ///
    /// # Errors
    /// When one has ended, or is not ready in time; its log is quoted.
    pub async fn wait_until_ready(&self, within: Duration) -> Result<(), DevError> {
        let deadline = Instant::now() + within;
        for (index, replica) in self.replicas.iter().enumerate() {
            while !self.is_ready(index).await {
                check_alive(self.processes()).await?;
                if Instant::now() > deadline {
                    let what = format!("replica {} was not ready within {} s", replica.id, within.as_secs());
                    return Err(DevError::child(what, &replica.log));
                }
                sleep(ASK_EVERY).await;
            }
            (self.events)(DevEvent::Progress(format!("replica {} is ready", replica.id)));
        }
        Ok(())
    }

    /// Index of the replica that leads, as seen by most of those that answer.
    pub async fn leader(&self) -> Option<usize> {
        self.leader_as_seen_by(|_| true).await
    }

    async fn leader_as_seen_by(&self, asked: impl Fn(usize) -> bool) -> Option<usize> {
        let present = self.replicas.iter().enumerate().filter(|(_, replica)| !replica.retired);
        let asked = present.filter(|(index, _)| asked(*index));
        let votes = join_all(asked.map(|(_, replica)| self.probe.leader(replica.http))).await;
        let count = |id: u64| votes.iter().flatten().filter(|vote| **vote == id).count();
        let winner = self.replicas.iter().enumerate().max_by_key(|(_, replica)| count(replica.id));
        winner.filter(|(_, replica)| count(replica.id) > 0).map(|(index, _)| index)
    }

    /// Waits for a leader other than replica `not`, which is not asked: it may be unable to answer.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn wait_for_leader(&self, not: Option<usize>, within: Duration) -> Result<usize, DevError> {
        let deadline = Instant::now() + within;
        loop {
            match self.leader_as_seen_by(|index| Some(index) != not).await {
                Some(leader) if Some(leader) != not => return Ok(leader),
                _ if Instant::now() > deadline => {
                    return Err(DevError::Failed(format!("no leader within {} s", within.as_secs())));
                }
                _ => sleep(ASK_EVERY).await,
            }
        }
    }

    /// Ends everything that was started: workers, then replicas, then the stores. What does not end
    /// within ten seconds is killed. The data stays for the next run.
    pub async fn stop(self) {
        self.stopping.store(true, Ordering::Release);
        Manifest::remove(&self.common.data_dir);
        join_all(self.workers.iter().map(|worker| worker.process.stop(Signal::SIGTERM, STOP_WITHIN))).await;
        join_all(self.processes().map(|child| child.stop(Signal::SIGTERM, STOP_WITHIN))).await;
        if let Some(redis) = &self.redis {
            redis.stop().await;
        }
        if let Some(postgres) = &self.postgres {
            postgres.stop().await;
        }
    }

    pub(super) fn start_workers(&mut self, count: u16, token: Option<&str>) -> Result<(), DevError> {
        let mut environment = self.environment.clone();
        if let Some(token) = token {
            environment.insert("CORTEX_TOKEN".to_owned(), token.to_owned());
        }
        let endpoints = self.grpc_endpoints();
        for number in 1..=count {
            let worker =
                DemoWorker::start(number, &self.binary, &endpoints, &self.common.data_dir, &environment)?;
            self.report_end(&worker.process);
            self.workers.push(worker);
        }
        Ok(())
    }

    pub(super) fn demo_workers(&self) -> &[DemoWorker] {
        &self.workers
    }

    pub(super) async fn seen_workers(&self) -> Option<Vec<SeenWorker>> {
        self.probe.workers(self.http(0)).await
    }

    pub(super) fn write_manifest(&self) -> Result<(), DevError> {
        let postgres =
            Store { url: self.common.database_url.clone(), pid: self.postgres.as_ref().map(Postgres::pid) };
        let redis = Store { url: self.common.redis_url.clone(), pid: self.redis.as_ref().map(Redis::pid) };
        let entry = |replica: &Replica| {
            Some(ReplicaEntry {
                id: replica.id,
                pid: replica.process.as_ref()?.pid(),
                http: replica.http.to_string(),
                grpc: replica.grpc.to_string(),
                peer: replica.peer.to_string(),
                config: replica.config.clone(),
            })
        };
        let workers = self.worker_pids().into_iter().map(|(name, pid)| WorkerEntry { name, pid });
        let replicas = self.replicas.iter().filter_map(entry).collect();
        Manifest { postgres, redis, replicas, workers: workers.collect() }.write(&self.common.data_dir)
    }

    fn processes(&self) -> impl Iterator<Item = &Child> {
        self.replicas.iter().filter_map(|replica| replica.process.as_ref())
    }

    /// Tells the user when the process ends, unless the cluster is being stopped.
    fn report_end(&self, child: &Child) {
        let exited = child.exited();
        let (name, pid, log) = (child.name().to_owned(), child.pid(), child.log().to_owned());
        let (events, stopping) = (Arc::clone(&self.events), Arc::clone(&self.stopping));
        tokio::spawn(async move {
            let status = exited.await.to_string();
            if !stopping.load(Ordering::Acquire) {
                events(DevEvent::Exited { name, pid, status, log });
            }
        });
    }
}

impl Drop for DevCluster {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Release);
        Manifest::remove(&self.common.data_dir);
    }
}

fn join_urls(addresses: impl Iterator<Item = SocketAddr>) -> String {
    addresses.map(|address| format!("http://{address}")).collect::<Vec<_>>().join(",")
}
