//! The queue as a whole, and the group of replicas.

use std::collections::BTreeSet;

use reqwest::Method;
use serde::{Deserialize, Serialize};

use super::client::JobsClient;
use super::error::ClientError;
use super::models::Job;
use super::transport::Call;

/// The queue at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueView {
    /// Jobs that wait.
    pub depth: u64,
    /// Milliseconds that the job has waited which is next of its priority; the longest of them.
    pub oldest_wait_ms: Option<i64>,
    /// What is held back.
    #[serde(flatten)]
    pub paused: Paused,
    /// The most urgent priority first.
    pub priorities: Vec<PriorityView>,
}

/// The jobs of one priority that wait.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PriorityView {
    /// 10 to 1.
    pub priority: i32,
    /// How many.
    pub depth: u64,
    /// Milliseconds that the next one has waited.
    pub oldest_wait_ms: Option<i64>,
}

/// What is held back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Paused {
    /// Whether all jobs are.
    #[serde(rename = "paused")]
    pub all: bool,
    /// The models whose jobs are, whatever holds for all.
    #[serde(rename = "paused_models")]
    pub models: BTreeSet<String>,
}

/// A replica that is to join, with its addresses as `host:port`. It announces the others itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewMember {
    /// Greater than 0, never used before.
    pub id: u64,
    /// Its listener for other replicas.
    pub peer: String,
    /// Its REST listener.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Its listener for workers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<String>,
}

#[derive(Deserialize)]
struct Depth {
    depth: u64,
}

#[derive(Deserialize)]
struct Cleared {
    cancelled: u64,
}

#[derive(Deserialize)]
struct Leads {
    leader: u64,
}

#[derive(Serialize)]
struct Transfer {
    to: Option<u64>,
}

impl JobsClient {
    /// What waits by priority, and what is paused.
    pub async fn queue(&self) -> Result<QueueView, ClientError> {
        self.json(Call::get(&["api", "v1", "queues"])).await
    }

    /// How many jobs wait, of one priority or of all.
    pub async fn queue_depth(&self, priority: Option<i32>) -> Result<u64, ClientError> {
        let call = Call::get(&["api", "v1", "queues", "depth"]).query("priority", priority);
        self.json::<Depth>(call).await.map(|answer| answer.depth)
    }

    /// The jobs that are next, in dispatch order; of one priority or of all.
    pub async fn queue_peek(&self, limit: u32, priority: Option<i32>) -> Result<Vec<Job>, ClientError> {
        let call = Call::get(&["api", "v1", "queues", "peek"]);
        self.json(call.query("limit", Some(limit)).query("priority", priority)).await
    }

    /// Holds the jobs of a model back, or all jobs.
    pub async fn pause_queue(&self, model: Option<&str>) -> Result<Paused, ClientError> {
        let call = Call::write(Method::POST, &["api", "v1", "queues", "pause"]);
        self.json(call.query("model_name", model)).await
    }

    /// Lets the jobs of a model go on, or ends every pause.
    pub async fn resume_queue(&self, model: Option<&str>) -> Result<Paused, ClientError> {
        let call = Call::write(Method::POST, &["api", "v1", "queues", "resume"]);
        self.json(call.query("model_name", model)).await
    }

    /// Cancels the jobs that wait, of one priority or of all, and answers how many. Where many wait it takes
    /// longer than a client has patience by default.
    pub async fn clear_queue(&self, priority: Option<i32>) -> Result<u64, ClientError> {
        let call = Call::write(Method::DELETE, &["api", "v1", "queues"]).query("priority", priority);
        self.json::<Cleared>(call).await.map(|answer| answer.cancelled)
    }

    /// Takes a running replica into the cluster.
    pub async fn add_member(&self, member: &NewMember) -> Result<NewMember, ClientError> {
        self.json(Call::write(Method::POST, &["api", "v1", "cluster", "members"]).with_json(member)?).await
    }

    /// Takes a replica out of the cluster; its id is never used again.
    pub async fn remove_member(&self, id: u64) -> Result<(), ClientError> {
        let id = id.to_string();
        self.nothing(Call::write(Method::DELETE, &["api", "v1", "cluster", "members", &id])).await
    }

    /// Lets another replica lead, and answers which one does.
    pub async fn transfer_leadership(&self, to: Option<u64>) -> Result<u64, ClientError> {
        let call = Call::write(Method::POST, &["api", "v1", "cluster", "transfer"]);
        self.json::<Leads>(call.with_json(&Transfer { to })?).await.map(|answer| answer.leader)
    }
}
