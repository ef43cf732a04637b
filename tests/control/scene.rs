//! A group with its stores, and what the tests do with it.

use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use cortex::dev::{DevCluster, DevClusterBuilder};
use cortex_client::{CancellationToken, SleepHandler, Worker};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::process::Command;
use tokio::sync::{Mutex, MutexGuard};

use crate::support::{Scratch, Stores, eventually};

pub const CORTEX: &str = env!("CARGO_BIN_EXE_cortex");

/// One group at a time.
static TURN: Mutex<()> = Mutex::const_new(());

pub struct Scene {
    pub cluster: DevCluster,
    pub database: PgPool,
    pub stores: Stores,
    pub scratch: Scratch,
    http: reqwest::Client,
    workers: CancellationToken,
    next_port: AtomicU16,
    _turn: MutexGuard<'static, ()>,
}

impl Scene {
    /// Three replicas.
    pub async fn start() -> Self {
        Self::with(|builder| builder).await
    }

    pub async fn with(configure: impl FnOnce(DevClusterBuilder) -> DevClusterBuilder) -> Self {
        let turn = TURN.lock().await;
        let (scratch, stores) = (Scratch::new(), Stores::fresh().await);
        let builder = DevCluster::builder(scratch.path().join("data"))
            .workers(0)
            .binary(CORTEX)
            .database_url(Some(stores.database_url.clone()))
            .redis_url(Some(stores.redis_url.clone()))
            .set(format!("queue.queue_prefix={}", stores.queue_prefix))
            // For a busy machine.
            .set("cluster.heartbeat_ms=100")
            .set("cluster.election_timeout_ms=[500, 1000]")
            .set("cluster.forward_timeout_ms=60000");
        let cluster = configure(builder).start().await.unwrap();
        let database = stores.pool(2).await;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build().unwrap();
        let (workers, next_port) = (CancellationToken::new(), AtomicU16::new(1));
        Self { cluster, database, stores, scratch, http, workers, next_port, _turn: turn }
    }

    /// Status and body of a request to a replica.
    pub async fn ask(&self, replica: usize, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        self.ask_at(&self.cluster.http(replica).to_string(), method, path, body).await
    }

    /// The same at any address.
    pub async fn ask_at(&self, http: &str, method: Method, path: &str, body: Option<Value>) -> (u16, Value) {
        let mut request = self.http.request(method, format!("http://{http}{path}"));
        if let Some(body) = body {
            request = request.json(&body);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    /// The body of a read that succeeds.
    pub async fn get(&self, replica: usize, path: &str) -> Value {
        let (status, body) = self.ask(replica, Method::GET, path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// The body of a change that succeeds.
    pub async fn post(&self, replica: usize, path: &str) -> Value {
        let (status, body) = self.ask(replica, Method::POST, path, None).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// Submits so many jobs of a model, and answers their ids.
    pub async fn submit(&self, replica: usize, model: &str, priority: u8, count: usize) -> Vec<String> {
        let job = json!({"name": "job", "model_name": model, "model_version": "1", "input_data": {"a": 1},
            "priority": priority});
        let jobs = json!({"jobs": vec![job; count]});
        let (status, body) = self.ask(replica, Method::POST, "/api/v1/jobs/batch", Some(jobs)).await;
        assert_eq!(status, 201, "{body}");
        let id = |job: &Value| job["id"].as_str().unwrap().to_owned();
        body["jobs"].as_array().unwrap().iter().map(id).collect()
    }

    /// A worker of these models, until the end of the scene.
    pub fn start_worker(&self, models: &[&str], slots: usize, takes: Duration) {
        let worker = Worker::builder()
            .endpoints(self.cluster.grpc_endpoints())
            .name("worker")
            .hostname("test")
            .port(self.next_port.fetch_add(1, Ordering::Relaxed))
            .models(models.iter().copied())
            .slots(slots)
            .build()
            .unwrap();
        let stop = self.workers.clone();
        tokio::spawn(async move {
            tokio::select! {
                ended = worker.run(SleepHandler { duration: takes }, CancellationToken::new()) => ended.unwrap(),
                () = stop.cancelled() => {}
            }
        });
    }

    /// How many jobs of a model are in a state.
    pub async fn count(&self, model: &str, status: &str) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM jobs WHERE model_name = $1 AND status = $2")
            .bind(model)
            .bind(status)
            .fetch_one(&self.database)
            .await
            .unwrap()
    }

    /// Waits until so many jobs of a model are in a state.
    pub async fn reach(&self, model: &str, status: &str, jobs: i64) {
        let what = format!("{jobs} jobs of {model} are {status}");
        eventually(&what, async || self.count(model, status).await == jobs).await;
    }

    pub async fn leader(&self) -> usize {
        self.cluster.wait_for_leader(None, Duration::from_secs(60)).await.unwrap()
    }

    /// A replica that does not lead.
    pub async fn follower(&self) -> usize {
        let leader = self.leader().await;
        (0..self.cluster.size()).find(|replica| *replica != leader).unwrap()
    }

    /// What a command says, on standard output, if it succeeds.
    pub async fn cortex(&self, line: &str) -> String {
        let output = self.run(line).await;
        assert!(output.status.success(), "{line}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a client command.
    pub async fn run(&self, line: &str) -> Output {
        let mut command = Command::new(CORTEX);
        command.args(line.split_whitespace()).args(["--endpoint", &self.cluster.http_endpoints()]);
        command.env_remove("CORTEX_TOKEN").stdin(Stdio::null()).kill_on_drop(true);
        command.output().await.unwrap()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.workers.cancel();
        if std::thread::panicking() {
            for replica in 0..self.cluster.size() {
                let log = std::fs::read_to_string(self.cluster.log(replica)).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                let end = lines[lines.len().saturating_sub(20)..].join("\n");
                eprintln!("the end of the log of replica {}:\n{end}", replica + 1);
            }
        }
    }
}
