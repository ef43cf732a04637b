//! One replica with its stores, jobs in every state, and the command.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cortex::dev::DevCluster;
use cortex::verify::{Outcome, Report};
use cortex_client::{AssignedJob, CancellationToken, Handler, JobFailure, Worker};
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::process::Command;

use crate::support::{Scratch, Stores};

pub const CORTEX: &str = env!("CARGO_BIN_EXE_cortex");

pub struct Scene {
    cluster: Option<DevCluster>,
    pub config: PathBuf,
    pub stores: Stores,
    pub pool: PgPool,
    http: reqwest::Client,
    requests: AtomicU32,
    workers: CancellationToken,
    _scratch: Scratch,
}

/// Does what a job's input asks for.
struct AsAsked;

impl Handler for AsAsked {
    async fn run(&self, job: AssignedJob, cancel: CancellationToken) -> Result<Value, JobFailure> {
        let input: Value = serde_json::from_slice(&job.input_data).unwrap_or_default();
        if input["fails"].as_i64().unwrap_or(0) >= i64::from(job.attempt) {
            return Err(JobFailure::new("as asked"));
        }
        if input["stays"] == true {
            cancel.cancelled().await;
        }
        Ok(json!({}))
    }
}

impl Scene {
    /// A replica without workers.
    pub async fn start() -> Self {
        let (scratch, stores) = (Scratch::new(), Stores::fresh().await);
        let cluster = DevCluster::builder(scratch.path().join("data"))
            .replicas(1)
            .workers(0)
            .binary(CORTEX)
            .database_url(Some(stores.database_url.clone()))
            .redis_url(Some(stores.redis_url.clone()))
            .set(format!("queue.queue_prefix={}", stores.queue_prefix))
            .start()
            .await
            .unwrap();
        let config = scratch.path().join("data/replica-1.yaml");
        let pool = stores.pool(2).await;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap();
        let workers = CancellationToken::new();
        Self {
            cluster: Some(cluster),
            config,
            stores,
            pool,
            http,
            requests: AtomicU32::new(0),
            workers,
            _scratch: scratch,
        }
    }

    /// The replica's cluster, until it is stopped.
    pub fn cluster(&self) -> &DevCluster {
        self.cluster.as_ref().expect("the replica runs")
    }

    /// Stops the replica, then the workers, which keep what they hold.
    pub async fn stop(&mut self) {
        if let Some(cluster) = self.cluster.take() {
            cluster.stop().await;
        }
        self.workers.cancel();
    }

    /// A worker of these models.
    pub fn start_worker(&self, port: u16, models: &[&str], slots: usize) {
        let worker = Worker::builder()
            .endpoints(self.cluster().grpc_endpoints())
            .name(format!("worker-{port}"))
            .hostname("test")
            .port(port)
            .models(models.iter().copied())
            .slots(slots)
            .build()
            .unwrap();
        let stop = self.workers.clone();
        tokio::spawn(async move {
            tokio::select! {
                ended = worker.run(AsAsked, CancellationToken::new()) => ended.unwrap(),
                () = stop.cancelled() => {}
            }
        });
    }

    /// A request that succeeds.
    pub async fn ask(&self, method: Method, path: &str, body: Value) -> Value {
        let mut request = self.http.request(method, format!("http://{}{path}", self.cluster().http(0)));
        if path.ends_with("/batch") {
            request =
                request.header("idempotency-key", self.requests.fetch_add(1, Ordering::Relaxed).to_string());
        }
        let answer = request.json(&body).send().await.unwrap();
        let status = answer.status();
        let body: Value = answer.json().await.unwrap_or_default();
        assert!(status.is_success(), "{path}: {status} {body}");
        body
    }

    /// Submits so many jobs of a model, and answers their ids.
    pub async fn submit(&self, model: &str, count: usize, fields: Value) -> Vec<String> {
        let mut job =
            json!({"name": "job", "model_name": model, "model_version": "1", "input_data": {"a": 1}});
        job.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let body = self.ask(Method::POST, "/api/v1/jobs/batch", json!({"jobs": vec![job; count]})).await;
        let id = |job: &Value| job["id"].as_str().unwrap().to_owned();
        body["jobs"].as_array().unwrap().iter().map(id).collect()
    }

    pub async fn count(&self, model: &str, status: &str) -> i64 {
        let count = sqlx::query_scalar("SELECT count(*) FROM jobs WHERE model_name = $1 AND status = $2");
        count.bind(model).bind(status).fetch_one(&self.pool).await.unwrap()
    }

    /// What the command says of the installation, and its exit status.
    pub async fn verify(&self, settle: u32) -> (Report, i32) {
        verify(&self.config, settle, &[]).await
    }
}

/// Runs the command with these keys of the configuration changed.
pub async fn verify(config: &std::path::Path, settle: u32, keys: &[(&str, &str)]) -> (Report, i32) {
    let mut command = Command::new(CORTEX);
    command.args(["verify", "--output", "json", "--settle", &settle.to_string(), "--config"]).arg(config);
    command.envs(keys.iter().copied()).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.unwrap();
    let report = serde_json::from_slice(&output.stdout);
    let report = report.unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (report, output.status.code().unwrap())
}

/// The checks that found something.
pub fn off(report: &Report) -> Vec<&str> {
    report.findings().map(|(check, _)| check.name.as_str()).collect()
}

/// The checks that could not be made.
pub fn unknown(report: &Report) -> Vec<&str> {
    let unknown = report.checks.iter().filter(|check| matches!(check.outcome, Outcome::Unknown { .. }));
    unknown.map(|check| check.name.as_str()).collect()
}
