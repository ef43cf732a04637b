//! Bodies of requests, and events, as they are described. They are never read: what arrives is taken apart loosely, so that all that
//! is wrong can be named. `null` is the same as absent wherever it is allowed.

#![expect(dead_code, reason = "these types describe and are never made")]

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::domain::ids::{JobId, WorkerId};
use crate::domain::job::JobStatus;
use crate::domain::payload::Payload;
use crate::domain::retry::RetryStrategy;
use crate::domain::worker::WorkerStatus;

/// A job to submit.
#[derive(ToSchema)]
pub struct JobCreate {
    /// What people call it.
    #[schema(min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$")]
    name: String,
    /// The model that a worker must be able to run.
    #[schema(min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$")]
    model_name: String,
    /// Handed to the worker.
    #[schema(min_length = 1, max_length = 50, pattern = "^[^\\u0000]*$")]
    model_version: String,
    /// Handed to the worker: an object with at least one member.
    input_data: JobInput,
    /// 10 goes first; 5 by default.
    #[schema(minimum = 1, maximum = 10)]
    priority: Option<i32>,
    /// By default what the retry policy says.
    #[schema(minimum = 0, maximum = 10)]
    max_retries: Option<i32>,
    /// Longest that an attempt may run; `scheduler.job_timeout_default` by default.
    #[schema(minimum = 1, maximum = 86400)]
    timeout_seconds: Option<i32>,
    /// Labels to filter by.
    tags: Option<Tags>,
    /// Requirements, the retry policy, and whatever else is to be kept with the job.
    metadata: Option<JobMetadata>,
    /// Who submits it; by default whom the token names.
    #[schema(min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$")]
    created_by: Option<String>,
    /// Not before this time. One that has passed means at once.
    #[schema(min_length = 20, max_length = 64)]
    run_at: Option<DateTime<Utc>>,
}

/// What a job is to work on: numbers of at most 300 characters with exponents from -324 to 308, nested at most 120 levels.
#[derive(ToSchema)]
#[schema(value_type = Object)]
pub struct JobInput(Value);

/// Labels: at most 64, keys of 1 to 255 characters, values of at most 4096.
#[derive(ToSchema)]
#[schema(value_type = Object)]
pub struct Tags(BTreeMap<String, String>);

/// Free data, some members of which have a meaning.
#[derive(ToSchema)]
pub struct JobMetadata {
    /// Whether the worker must have a GPU.
    requires_gpu: Option<bool>,
    /// Memory that the worker must have.
    #[schema(minimum = 0, maximum = 1048576)]
    required_memory_gb: Option<f64>,
    /// How often and when a failed attempt is tried again; what is left out is as configured.
    retry_policy: Option<JobRetryPolicy>,
}

/// How, how often and after which errors a job is tried again.
#[derive(ToSchema)]
pub struct JobRetryPolicy {
    /// How the delay grows.
    strategy: Option<RetryStrategy>,
    /// Retries after the first attempt; the job's own `max_retries` counts before it.
    #[schema(minimum = 0, maximum = 10)]
    max_retries: Option<i32>,
    /// First delay in seconds.
    #[schema(minimum = 1, maximum = 2592000)]
    initial_delay_seconds: Option<i32>,
    /// Longest delay in seconds before jitter.
    #[schema(minimum = 1, maximum = 2592000)]
    max_delay_seconds: Option<i32>,
    /// Growth.
    #[schema(minimum = 1, maximum = 10)]
    backoff_multiplier: Option<f64>,
    /// Error codes that are tried again; all if there are none.
    retry_on_errors: Option<Vec<String>>,
    /// Whether the delay is spread by up to ten per cent either way.
    jitter: Option<bool>,
}

/// Jobs to submit together.
#[derive(ToSchema)]
pub struct JobBatchCreate {
    /// All are stored, or none.
    #[schema(min_items = 1, max_items = 1000)]
    jobs: Vec<JobCreate>,
}

/// What is to change of a job; at least one member.
#[derive(ToSchema)]
pub struct JobUpdate {
    /// The state that it is to come into, if its state allows it.
    status: Option<JobStatus>,
    /// What it put out.
    output_data: Option<Payload>,
    /// Why it failed.
    #[schema(max_length = 65536, pattern = "^[^\\u0000]*$")]
    error_message: Option<String>,
    /// Where it failed.
    #[schema(max_length = 65536, pattern = "^[^\\u0000]*$")]
    error_stack: Option<String>,
    /// How long it ran.
    #[schema(minimum = 0, maximum = 2147483647)]
    execution_duration_ms: Option<i32>,
    /// The registered worker that drives it: of a job that runs, or with `status: running`. Beside another status it is
    /// ignored.
    assigned_worker_id: Option<WorkerId>,
}

/// A worker to register.
#[derive(ToSchema)]
pub struct WorkerCreate {
    /// What people call it.
    #[schema(min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$")]
    name: String,
    /// With `port` the worker's identity.
    #[schema(min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$")]
    hostname: String,
    /// An IPv4 or IPv6 address.
    ip_address: IpAddress,
    /// With `hostname` the worker's identity.
    #[schema(minimum = 1, maximum = 65535)]
    port: i32,
    /// What it can do, at most 65536 bytes.
    capabilities: Option<WorkerCapabilities>,
    /// Jobs that it runs at a time, 1 by default.
    #[schema(minimum = 1, maximum = 100)]
    max_concurrent_jobs: Option<i32>,
    /// How often it will give a sign of life, 30 by default.
    #[schema(minimum = 5, maximum = 300)]
    heartbeat_interval_seconds: Option<i32>,
    /// Of its program.
    #[schema(max_length = 50, pattern = "^[^\\u0000]*$")]
    version: Option<String>,
    /// Whatever else it says of itself, at most 16384 bytes.
    metadata: Option<Payload>,
}

/// An IPv4 or IPv6 address.
#[derive(ToSchema)]
#[schema(value_type = String)]
pub struct IpAddress(String);

/// What a worker can do; other members are kept and have no meaning.
#[derive(ToSchema)]
pub struct WorkerCapabilities {
    /// The models that it runs; without them any.
    models: Option<Vec<StorableText>>,
    /// Whether it has a GPU.
    gpu: Option<bool>,
    /// Its memory.
    #[schema(minimum = 0, maximum = 1048576)]
    memory_gb: Option<f64>,
}

/// A text without the character U+0000.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^[^\\u0000]*$")]
pub struct StorableText(String);

/// A worker's sign of life.
#[derive(ToSchema)]
pub struct WorkerHeartbeat {
    /// The id in the path, if it is given again.
    worker_id: Option<Uuid>,
    /// How it fares.
    status: WorkerStatus,
    /// Jobs that it holds.
    #[schema(minimum = 0, maximum = 2147483647)]
    current_job_count: i32,
    /// Which they are; those that are not its own any more are named in the answer.
    #[schema(max_items = 1000)]
    current_jobs: Option<Vec<JobId>>,
    /// Load of its processors.
    #[schema(minimum = 0, maximum = 100)]
    cpu_usage_percent: Option<f64>,
    /// Memory in use.
    #[schema(minimum = 0, maximum = 2147483647)]
    memory_usage_mb: Option<i32>,
    /// Load of its GPU.
    #[schema(minimum = 0, maximum = 100)]
    gpu_usage_percent: Option<f64>,
    /// Models that it has loaded, which are preferred for it.
    #[schema(max_items = 100)]
    loaded_models: Option<Vec<ModelName>>,
    /// Whatever else it says of itself, at most 16384 bytes.
    metadata: Option<Payload>,
}

/// A model's name.
#[derive(ToSchema)]
#[schema(value_type = String, min_length = 1, max_length = 255, pattern = "^[^\\u0000]*$")]
pub struct ModelName(String);

/// A replica to take in.
#[derive(ToSchema)]
pub struct MemberCreate {
    /// Never used before in this cluster.
    #[schema(minimum = 1, maximum = 9223372036854775807_i64)]
    id: i64,
    /// Its listener for other replicas, `host:port`.
    #[schema(min_length = 3, max_length = 259)]
    peer: String,
    /// Its REST listener, `host:port`; by default as it says itself.
    #[schema(min_length = 3, max_length = 259)]
    http: Option<String>,
    /// Its listener for workers, `host:port`; by default as it says itself.
    #[schema(min_length = 3, max_length = 259)]
    grpc: Option<String>,
}

/// Who is to lead.
#[derive(ToSchema)]
pub struct Transfer {
    /// A replica; without it the best prepared one.
    #[schema(minimum = 1, maximum = 9223372036854775807_i64)]
    to: Option<i64>,
}

/// A tag to filter by, `key:value`.
#[derive(ToSchema)]
#[schema(value_type = String, pattern = "^[^:\\u0000]{1,255}:[^\\u0000]{0,4096}$")]
pub struct Tag(String);

/// One event of a stream.
#[derive(ToSchema)]
pub struct StreamedEvent {
    /// For `Last-Event-ID`.
    id: String,
    /// What has happened.
    event: EventKind,
    /// A JSON object: of a `status` the job's id, its state, its worker and the time, else empty.
    data: String,
}

/// What an event tells.
#[derive(ToSchema)]
#[schema(rename_all = "lowercase")]
pub enum EventKind {
    /// Changes are told from here on.
    Start,
    /// A job has come into a state.
    Status,
    /// Changes may be missing before this.
    Reset,
}
