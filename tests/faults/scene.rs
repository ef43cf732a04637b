//! A cluster that takes a beating, and those who use it meanwhile.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use cortex::dev::{DevCluster, DevClusterBuilder, Signal};
use cortex_client::{CancellationToken, Worker};
use serde_json::Value;
use sqlx::PgPool;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::history;
use crate::ledger::{Ledger, Recorder};
use crate::support::{Scratch, Stores};

/// Longest wait for anything that must come about.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// For tests of writes that no leader takes: these are refused soon.
pub const REFUSED_SOON: &str = "cluster.forward_timeout_ms=2000";
/// Time between two looks while waiting.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Lines of each replica's log that a failed test shows.
const LOG_LINES: usize = 25;

/// One cluster at a time.
static TURN: Mutex<()> = Mutex::const_new(());

/// Three replicas, their stores, workers in this process, and the record of what they did.
pub struct Scene {
    pub cluster: DevCluster,
    pub stores: Stores,
    /// For looks at the database, and for nothing that a replica does.
    pub pool: PgPool,
    pub http: reqwest::Client,
    pub ledger: Ledger,
    workers: CancellationToken,
    _scratch: Scratch,
    _turn: MutexGuard<'static, ()>,
}

impl Scene {
    /// Three replicas on the stores that all tests share.
    pub async fn start() -> Self {
        Self::with(|builder, _| builder).await
    }

    /// The same, changed by `configure`, which is also given an empty folder.
    pub async fn with(configure: impl FnOnce(DevClusterBuilder, &Path) -> DevClusterBuilder) -> Self {
        let stores = Stores::fresh().await;
        Self::on(stores, |builder, stores, folder| {
            let builder = builder
                .database_url(Some(stores.database_url.clone()))
                .redis_url(Some(stores.redis_url.clone()));
            configure(builder, folder)
        })
        .await
    }

    /// Three replicas on a PostgreSQL and a Redis of their own, which may be away.
    pub async fn with_own_stores() -> Self {
        Self::on(Stores::fresh().await, |builder, _, _| builder.set(REFUSED_SOON)).await
    }

    async fn on(
        mut stores: Stores,
        configure: impl FnOnce(DevClusterBuilder, &Stores, &Path) -> DevClusterBuilder,
    ) -> Self {
        let turn = TURN.lock().await;
        let scratch = Scratch::new();
        let builder = DevCluster::builder(scratch.path().join("data"))
            .workers(0)
            .binary(env!("CARGO_BIN_EXE_cortex"))
            .set(format!("queue.queue_prefix={}", stores.queue_prefix))
            // For a busy machine.
            .set("cluster.heartbeat_ms=100")
            .set("cluster.election_timeout_ms=[300, 600]")
            // Less than a request may take as a whole, so that a refusal is told as one.
            .set("cluster.forward_timeout_ms=25000");
        let cluster = configure(builder, &stores, scratch.path()).start().await.unwrap();
        stores.database_url = cluster.database_url().to_owned();
        stores.redis_url = cluster.redis_url().to_owned();
        let pool = stores.pool(4).await;
        history::watch_writers(&pool).await;
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        Self {
            cluster,
            stores,
            pool,
            http,
            ledger: Ledger::default(),
            workers: CancellationToken::new(),
            _scratch: scratch,
            _turn: turn,
        }
    }

    /// Starts a worker in this process that takes `takes` for each job and writes the ledger.
    pub fn start_worker(&self, number: u16, slots: usize, takes: Duration) {
        let worker = Worker::builder()
            .endpoints(self.cluster.grpc_endpoints())
            .name(format!("worker-{number}"))
            .hostname("test")
            .port(number)
            .slots(slots)
            .build()
            .unwrap();
        let recorder = Recorder { ledger: self.ledger.clone(), takes };
        let stop = self.workers.clone();
        tokio::spawn(async move {
            tokio::select! {
                ended = worker.run(recorder, CancellationToken::new()) => ended.unwrap(),
                () = stop.cancelled() => {}
            }
        });
    }

    /// Waits for the leader.
    pub async fn leader(&self) -> usize {
        self.cluster.wait_for_leader(None, PATIENCE).await.unwrap()
    }

    /// Waits for another leader.
    pub async fn leader_other_than(&self, former: usize) -> usize {
        self.cluster.wait_for_leader(Some(former), PATIENCE).await.unwrap()
    }

    /// The replicas but `one`.
    pub fn others(&self, one: usize) -> Vec<usize> {
        (0..self.cluster.size()).filter(|index| *index != one).collect()
    }

    /// REST addresses of replicas.
    pub fn http_of(&self, replicas: &[usize]) -> Vec<SocketAddr> {
        replicas.iter().map(|index| self.cluster.http(*index)).collect()
    }

    /// Kills a replica the hard way.
    pub async fn kill(&self, index: usize) {
        assert!(self.cluster.kill(index, Signal::SIGKILL));
        self.cluster.wait_for_exit(index).await;
    }

    /// Starts a replica again and waits until it serves.
    pub async fn revive(&mut self, index: usize) {
        self.cluster.restart(index).await.unwrap();
        until("the replica is ready again", async || self.cluster.is_ready(index).await).await;
    }

    /// `GET` of a path of a replica's REST surface: status and body.
    pub async fn get(&self, replica: usize, path: &str) -> (u16, Value) {
        let url = format!("http://{}{path}", self.cluster.http(replica));
        let answer = self.http.get(url).send().await.unwrap();
        let status = answer.status().as_u16();
        (status, answer.json().await.unwrap_or_default())
    }

    /// The value of a metric without labels.
    pub async fn metric(&self, replica: usize, name: &str) -> f64 {
        let url = format!("http://{}/metrics", self.cluster.http(replica));
        let text = self.http.get(url).send().await.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no metric {name}")).parse().unwrap()
    }

    /// A number from the database.
    pub async fn count(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(&self.pool).await.unwrap()
    }

    /// Waits until every job has come to its end.
    pub async fn quiet(&self) {
        let open = "SELECT status, count(*) FROM jobs WHERE completed_at IS NULL GROUP BY status";
        let mut left: Vec<(String, i64)> = Vec::new();
        let mut deadline = Instant::now() + PATIENCE;
        loop {
            match sqlx::query_as(open).fetch_all(&self.pool).await {
                Ok(now) if now.is_empty() => return,
                Ok(now) => {
                    // It may take long as long as it goes on.
                    if now != left {
                        deadline = Instant::now() + PATIENCE;
                    }
                    left = now;
                }
                Err(error) => println!("PostgreSQL: {error}"),
            }
            assert!(Instant::now() < deadline, "these jobs do not go on: {left:?}");
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.workers.cancel();
        if std::thread::panicking() {
            for index in 0..self.cluster.size() {
                let log = std::fs::read_to_string(self.cluster.log(index)).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                let end = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
                eprintln!("--- replica {}:\n{end}", index + 1);
            }
        }
    }
}

/// Waits until something holds.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "still not so after {} s: {what}", PATIENCE.as_secs());
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
