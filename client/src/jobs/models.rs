//! What the REST interface takes and answers. Times are RFC 3339 strings, ids
//! are strings: a client has no reason to look into them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A job to be submitted. What is `None` is left to the server's defaults.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NewJob {
    /// 1 to 255 characters.
    pub name: String,
    /// 1 to 255 characters.
    pub model_name: String,
    /// 1 to 50 characters.
    pub model_version: String,
    /// A JSON object that is not empty.
    pub input_data: Value,
    /// 1 (lowest) to 10, by default 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// 0 to 10, by default 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_retries: Option<i32>,
    /// 1 to 86400, by default 3600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i32>,
    /// Free labels, to be filtered by.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tags: BTreeMap<String, String>,
    /// Requirements (`requires_gpu`, `required_memory_gb`), `retry_policy` and
    /// whatever else belongs to the job.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub metadata: Map<String, Value>,
    /// Who submits it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// Not before this time, in RFC 3339 with its offset; until then it waits as
    /// `pending`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_at: Option<String>,
}

impl NewJob {
    /// A job with the server's defaults for everything else.
    pub fn new(
        name: impl Into<String>,
        model_name: impl Into<String>,
        model_version: impl Into<String>,
        input_data: Value,
    ) -> Self {
        Self {
            name: name.into(),
            model_name: model_name.into(),
            model_version: model_version.into(),
            input_data,
            ..Self::default()
        }
    }
}

/// A change to a job; only what is `Some` is sent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct JobUpdate {
    /// The state to move to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<String>,
    /// The result, a JSON object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_data: Option<Value>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_message: Option<String>,
    /// Where it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_stack: Option<String>,
    /// How long it ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub execution_duration_ms: Option<i64>,
    /// Which worker runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assigned_worker_id: Option<String>,
}

/// A job as the server knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are the job's columns")]
pub struct Job {
    pub id: String,
    pub name: String,
    pub model_name: String,
    pub model_version: String,
    /// pending, queued, assigned, running, completed, failed, timeout or
    /// cancelled.
    pub status: String,
    pub priority: i32,
    pub max_retries: i32,
    pub retry_count: i32,
    pub timeout_seconds: i32,
    pub input_data: Value,
    #[serde(default)]
    pub output_data: Option<Value>,
    #[serde(default)]
    pub error_message: Option<String>,
    #[serde(default)]
    pub error_stack: Option<String>,
    #[serde(default)]
    pub assigned_worker_id: Option<String>,
    #[serde(default)]
    pub assigned_at: Option<String>,
    pub submitted_at: String,
    #[serde(default)]
    pub queued_at: Option<String>,
    #[serde(default)]
    pub started_at: Option<String>,
    #[serde(default)]
    pub completed_at: Option<String>,
    #[serde(default)]
    pub execution_duration_ms: Option<i64>,
    #[serde(default)]
    pub queue_wait_time_ms: Option<i64>,
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    #[serde(default)]
    pub metadata: Map<String, Value>,
    #[serde(default)]
    pub created_by: Option<String>,
    #[serde(default)]
    pub next_retry_at: Option<String>,
    #[serde(default)]
    pub retry_backoff_seconds: Option<i64>,
    pub created_at: String,
    pub updated_at: String,
}

impl Job {
    /// Whether nothing but an explicit retry will change it any more.
    pub fn is_terminal(&self) -> bool {
        matches!(self.status.as_str(), "completed" | "failed" | "timeout" | "cancelled")
    }
}

/// Why a job is where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// Which job.
    pub job_id: String,
    /// Where it is.
    pub status: String,
    /// Why, in one word, such as `no_workers`.
    pub reason: String,
    /// The same for people.
    pub detail: String,
    /// When a pending job is due.
    #[serde(default)]
    pub due_at: Option<String>,
    /// Where a queued job stands: `ahead`, and whether there are more (`at_least`).
    #[serde(default)]
    pub queue: Option<Value>,
    /// Who could take it: `total`, `able`, `obstacles` by kind, and a `list`.
    #[serde(default)]
    pub workers: Option<Value>,
    /// What becomes of it after a failed attempt: `can_retry`, and the `reason` if it cannot be retried.
    #[serde(default)]
    pub retry: Option<Value>,
    /// Its attempts so far, oldest first.
    #[serde(default)]
    pub attempts: Vec<Value>,
}

/// Which jobs to list; `None` does not restrict.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct JobFilter {
    /// One of the job states.
    pub status: Option<String>,
    /// 1 to 10.
    pub priority: Option<i32>,
    /// The exact name.
    pub model_name: Option<String>,
    /// The exact name.
    pub created_by: Option<String>,
    /// From 1.
    pub page: Option<u32>,
    /// At most 100.
    pub page_size: Option<u32>,
}

/// One page of jobs, newest first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as on the wire")]
pub struct JobList {
    pub jobs: Vec<Job>,
    pub total: i64,
    pub page: i64,
    pub page_size: i64,
    pub pages: i64,
}

/// How many jobs are in which state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "named as on the wire")]
pub struct JobStats {
    pub total_jobs: i64,
    pub pending: i64,
    pub queued: i64,
    pub assigned: i64,
    pub running: i64,
    pub completed: i64,
    pub failed: i64,
    pub timeout: i64,
    pub cancelled: i64,
    pub average_execution_time_ms: Option<f64>,
    pub average_queue_time_ms: Option<f64>,
    pub success_rate: Option<f64>,
}

/// One attempt at a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are the execution's columns")]
pub struct Execution {
    /// The lease token.
    pub id: String,
    pub job_id: String,
    pub worker_id: String,
    /// From 1.
    pub attempt_number: i32,
    /// started, running, completed, failed, timeout or cancelled.
    pub status: String,
    pub started_at: String,
    #[serde(default)]
    pub completed_at: Option<String>,
    #[serde(default)]
    pub duration_ms: Option<i64>,
    #[serde(default)]
    pub output_data: Option<Value>,
    #[serde(default)]
    pub error_message: Option<String>,
    #[serde(default)]
    pub error_stack: Option<String>,
    #[serde(default)]
    pub error_code: Option<String>,
    #[serde(default)]
    pub cpu_usage_percent: Option<f64>,
    #[serde(default)]
    pub memory_usage_mb: Option<i64>,
    #[serde(default)]
    pub gpu_usage_percent: Option<f64>,
    #[serde(default)]
    pub log_file_path: Option<String>,
    #[serde(default)]
    pub metadata: Map<String, Value>,
    pub created_at: String,
}

/// A worker as the server knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "the fields are the worker's columns")]
pub struct WorkerInfo {
    pub id: String,
    pub name: String,
    pub hostname: String,
    pub ip_address: String,
    pub port: i32,
    /// idle, busy, offline or unhealthy.
    pub status: String,
    /// It keeps what it runs and gets nothing new.
    #[serde(default)]
    pub draining: bool,
    /// When it was taken out of service, if it was.
    #[serde(default)]
    pub removed_at: Option<String>,
    #[serde(default)]
    pub capabilities: Map<String, Value>,
    pub max_concurrent_jobs: i32,
    pub current_job_count: i32,
    pub total_jobs_completed: i64,
    pub total_jobs_failed: i64,
    #[serde(default)]
    pub average_execution_time_ms: Option<f64>,
    pub last_heartbeat: String,
    pub heartbeat_interval_seconds: i32,
    pub consecutive_failures: i32,
    #[serde(default)]
    pub version: Option<String>,
    #[serde(default)]
    pub metadata: Map<String, Value>,
    pub registered_at: String,
    pub last_active_at: String,
    pub created_at: String,
    pub updated_at: String,
}

/// All workers, or those of one state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "named as on the wire")]
pub struct WorkerList {
    pub workers: Vec<WorkerInfo>,
    pub total: i64,
}

/// The replicas as the one that answered sees them. Everything but the members
/// may be missing, and what this crate does not know is kept in `other`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterStatus {
    /// The replica that answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// The cluster's identity.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_id: Option<String>,
    /// The leader, if there is one.
    pub leader: Option<u64>,
    /// The Raft term.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub term: Option<u64>,
    /// The leader's fencing token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// All members, by id.
    pub members: Vec<ClusterMember>,
    /// Fields that this crate does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One replica.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ClusterMember {
    /// Greater than 0.
    pub id: u64,
    /// leader, follower, learner or candidate.
    pub role: String,
    /// Where REST is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
    /// Where workers are served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<String>,
    /// Where other replicas are served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Milliseconds since the leader last heard from it; only the leader
    /// knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_contact_ms: Option<u64>,
    /// How many log entries it is behind; only the leader knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_lag: Option<u64>,
    /// Fields that this crate does not know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The answer of `/health`: a replica that is not ready says why instead of
/// failing.
#[derive(Debug, Clone, PartialEq)]
pub struct Health {
    /// Whether the status was 200.
    pub healthy: bool,
    /// The state of the replica's parts.
    pub detail: Value,
}
