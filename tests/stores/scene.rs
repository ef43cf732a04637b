//! A group of replicas over given stores, and those who use it.

use std::process::{Child, Command};
use std::time::Duration;

use chrono::DateTime;
use cortex::dev::{DevCluster, DevClusterBuilder};
use cortex::domain::ids::{Epoch, JobId};
use cortex::domain::matching::Shape;
use cortex::ready_queue::Entry;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Scratch, eventually};

pub const E1: Epoch = Epoch(1);

/// A process that ends with the test.
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Replicas, and a client of theirs.
pub struct Replicas {
    pub cluster: DevCluster,
    pub http: reqwest::Client,
    _scratch: Scratch,
}

impl Replicas {
    /// Three replicas, changed by `configure`, which names the stores.
    pub async fn start(configure: impl FnOnce(DevClusterBuilder) -> DevClusterBuilder) -> Self {
        let scratch = Scratch::new();
        let builder = DevCluster::builder(scratch.path().join("data"))
            .workers(0)
            // For a busy machine.
            .set("cluster.heartbeat_ms=100")
            .set("cluster.election_timeout_ms=[300, 600]")
            .binary(env!("CARGO_BIN_EXE_cortex"));
        let cluster = configure(builder).start().await.unwrap();
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(30)).build().unwrap();
        Self { cluster, http, _scratch: scratch }
    }

    /// Submits a job at a replica: its id, or what was said instead.
    pub async fn submit(&self, replica: usize, fields: &Value) -> Result<String, (u16, Value)> {
        let mut draft =
            json!({"name": "job", "model_name": "m", "model_version": "1", "input_data": {"a": 1}});
        draft.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        let url = format!("http://{}/api/v1/jobs", self.cluster.http(replica));
        let answer = self.http.post(url).json(&draft).send().await.unwrap();
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.unwrap();
        if status == 201 { Ok(body["id"].as_str().unwrap().to_owned()) } else { Err((status, body)) }
    }

    /// `GET` of a path of a replica: status and body.
    pub async fn get(&self, replica: usize, path: &str) -> (u16, Value) {
        let url = format!("http://{}{path}", self.cluster.http(replica));
        let answer = self.http.get(url).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or_default())
    }

    /// What `/health` says of a store.
    pub async fn health(&self, replica: usize, store: &str) -> Value {
        self.get(replica, "/health").await.1[store].clone()
    }

    /// Waits until so many jobs are completed, or more.
    pub async fn completes(&self, replica: usize, jobs: u64) {
        eventually(&format!("{jobs} jobs are completed"), async || {
            let completed = self.get(replica, "/api/v1/jobs/stats/summary").await.1["completed"].as_u64();
            completed.is_some_and(|completed| completed >= jobs)
        })
        .await;
    }

    /// A worker that runs a command for each job.
    pub fn worker(&self, slots: u16, work: &[&str]) -> Ended {
        let worker = Command::new(env!("CARGO_BIN_EXE_cortex"))
            .args(["worker", "--slots", &slots.to_string(), "--endpoint", &self.cluster.grpc_endpoints()])
            .args(work)
            .spawn();
        Ended(worker.unwrap())
    }
}

pub fn shape() -> Shape {
    Shape { model_name: "m".into(), requires_gpu: false, required_memory_mib: 0 }
}

pub fn entry(n: u8) -> Entry {
    Entry {
        job_id: JobId(Uuid::from_u128(n.into())),
        shape: shape(),
        priority: n,
        submitted_at: DateTime::UNIX_EPOCH,
    }
}
