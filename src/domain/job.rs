//! Jobs: their states, what a client may ask for, and how they are shown.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::ids::{JobId, WorkerId};
use super::matching::Shape;
use super::payload::Payload;
use super::retry::RetryPolicy;
use super::validate::{FieldError, Validator, check_text};

/// Longest attempt, in seconds: one day.
pub const MAX_TIMEOUT_SECONDS: u32 = 86_400;
/// Most retries that a job may ask for.
pub const MAX_RETRIES: u32 = 10;
/// Most tags of a job.
pub const MAX_TAGS: usize = 64;

/// Where a job is in its life.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum JobStatus {
    /// Durable and not in the ready queue: it waits for its retry time.
    Pending,
    /// Ready to be given to a worker.
    Queued,
    /// A worker has a lease on it.
    Assigned,
    /// That worker, or an outside driver, said that it runs.
    Running,
    /// Done.
    Completed,
    /// Given up after its last allowed attempt.
    Failed,
    /// Called off.
    Cancelled,
    /// Given up after its last allowed attempt ran too long.
    Timeout,
}

impl JobStatus {
    /// All states, in the order of a job's life.
    pub const ALL: [Self; 8] = [
        Self::Pending,
        Self::Queued,
        Self::Assigned,
        Self::Running,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::Timeout,
    ];

    /// The name used in SQL, in the API and on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Queued => "queued",
            Self::Assigned => "assigned",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Timeout => "timeout",
        }
    }

    /// Whether the job has ended.
    pub const fn is_terminal(self) -> bool {
        match self {
            Self::Pending | Self::Queued | Self::Assigned | Self::Running => false,
            Self::Completed | Self::Failed | Self::Cancelled | Self::Timeout => true,
        }
    }

    /// The one statement of the state machine: whether a job may go from here to `next`.
    pub const fn may_become(self, next: Self) -> bool {
        match self {
            // A worker may take it as soon as its time has come; a job driven from outside may be started, and fail,
            // without ever being assigned.
            Self::Pending => matches!(
                next,
                Self::Pending
                    | Self::Queued
                    | Self::Assigned
                    | Self::Running
                    | Self::Failed
                    | Self::Cancelled
            ),
            Self::Queued => matches!(
                next,
                Self::Pending | Self::Assigned | Self::Running | Self::Failed | Self::Cancelled
            ),
            // Back to queued: never reported running, so no retry is spent.
            Self::Assigned => matches!(
                next,
                Self::Pending
                    | Self::Queued
                    | Self::Running
                    | Self::Completed
                    | Self::Failed
                    | Self::Cancelled
                    | Self::Timeout
            ),
            Self::Running => matches!(
                next,
                Self::Pending | Self::Completed | Self::Failed | Self::Cancelled | Self::Timeout
            ),
            // Manual retry.
            Self::Failed | Self::Cancelled | Self::Timeout => matches!(next, Self::Pending),
            Self::Completed => false,
        }
    }
}

impl fmt::Display for JobStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for JobStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|status| status.as_str() == text).ok_or_else(|| {
            "must be one of pending, queued, assigned, running, completed, failed, cancelled, timeout"
                .to_owned()
        })
    }
}

/// A submission as it arrives: every field loosely typed, so that all that is wrong can be named.
#[derive(Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the fields of the specification's JobCreate, and `run_at`")]
pub struct JobDraft {
    pub name: Option<Value>,
    pub model_name: Option<Value>,
    pub model_version: Option<Value>,
    pub input_data: Option<Box<RawValue>>,
    pub priority: Option<Value>,
    pub max_retries: Option<Value>,
    pub timeout_seconds: Option<Value>,
    pub tags: Option<Value>,
    pub metadata: Option<Box<RawValue>>,
    pub created_by: Option<Value>,
    pub run_at: Option<Value>,
}

/// What a submission leaves open.
#[derive(Debug, Clone)]
pub struct JobDefaults {
    /// Used where neither the job nor its own retry policy says otherwise.
    pub retry: RetryPolicy,
    /// Used where the job names no `timeout_seconds`.
    pub timeout_seconds: u32,
}

/// A job that may be stored: every bound checked, its id chosen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewJob {
    /// Chosen where the request arrived, so that sending it twice stores it once.
    pub id: JobId,
    /// 1 to 255 characters.
    pub name: String,
    /// 1 to 255 characters.
    pub model_name: String,
    /// 1 to 50 characters.
    pub model_version: String,
    /// A JSON object with at least one member.
    pub input_data: Payload,
    /// 1 (lowest) to 10 (highest).
    pub priority: u8,
    /// 0 to 10.
    pub max_retries: u32,
    /// 1 to 86400.
    pub timeout_seconds: u32,
    /// Free labels, a JSON object of strings.
    pub tags: Payload,
    /// Free data, read for requirements and the retry policy.
    pub metadata: Payload,
    /// Who submitted it; at most 255 characters.
    pub created_by: Option<String>,
    /// Not before this time; until then it waits as `pending`.
    #[serde(default)]
    pub run_at: Option<DateTime<Utc>>,
    /// What it asks of a worker, read from the fields above.
    pub shape: Shape,
}

impl JobDraft {
    /// Checks every bound of the specification and names all fields that break one.
    pub fn check(self, id: JobId, defaults: &JobDefaults) -> Result<NewJob, Vec<FieldError>> {
        let mut v = Validator::default();
        let name = v.text("name", self.name.as_ref(), 255);
        let model_name = v.text("model_name", self.model_name.as_ref(), 255);
        let model_version = v.text("model_version", self.model_version.as_ref(), 50);
        let input_data = object(&mut v, "input_data", self.input_data.as_deref());
        if input_data.as_ref().is_none_or(Payload::is_empty) && !v.has("input_data") {
            v.reject("input_data", "is required and cannot be empty");
        }
        let priority = v.integer("priority", self.priority.as_ref(), 1, 10).unwrap_or(5);
        let max_retries = v.integer("max_retries", self.max_retries.as_ref(), 0, i64::from(MAX_RETRIES));
        let timeout_seconds = v
            .integer("timeout_seconds", self.timeout_seconds.as_ref(), 1, i64::from(MAX_TIMEOUT_SECONDS))
            .unwrap_or(i64::from(defaults.timeout_seconds));
        let tags = tags(&mut v, self.tags.as_ref());
        let metadata = object(&mut v, "metadata", self.metadata.as_deref()).unwrap_or_else(Payload::empty);
        let created_by = v.optional_text("created_by", self.created_by.as_ref(), 1, 255);
        let run_at = run_at(&mut v, self.run_at.as_ref());
        let members: Map<String, Value> = serde_json::from_str(metadata.as_str()).unwrap_or_default();
        let policy = retry_policy(&mut v, &members, &defaults.retry);
        let shape = Shape::of_job(model_name.as_deref().unwrap_or_default(), &members, &mut v);
        let complete = (|| {
            Some(NewJob {
                id,
                name: name?,
                model_name: model_name?,
                model_version: model_version?,
                input_data: input_data?,
                priority: u8::try_from(priority).ok()?,
                max_retries: max_retries.map_or(policy?.max_retries, |n| u32::try_from(n).unwrap_or(0)),
                timeout_seconds: u32::try_from(timeout_seconds).ok()?,
                tags: tags?,
                metadata,
                created_by,
                run_at,
                shape,
            })
        })();
        v.finish(complete)
    }
}

/// A member that must be a JSON object when present.
fn object(v: &mut Validator, field: &str, raw: Option<&RawValue>) -> Option<Payload> {
    let raw = raw.filter(|raw| raw.get() != "null")?;
    match Payload::parse(raw.get()) {
        Ok(payload) => Some(payload),
        Err(message) => {
            v.reject(field, message);
            None
        }
    }
}

fn tags(v: &mut Validator, value: Option<&Value>) -> Option<Payload> {
    let Some(value) = value.filter(|value| !value.is_null()) else { return Some(Payload::empty()) };
    let tags: BTreeMap<String, String> = v.typed("tags", Some(value), "an object of strings")?;
    if tags.len() > MAX_TAGS {
        v.reject("tags", format!("must have at most {MAX_TAGS} entries"));
    }
    for (key, text) in &tags {
        if let Err(message) = check_text(key, 1, 255).and_then(|()| check_text(text, 0, 4096)) {
            v.reject(format!("tags.{key:.64}"), message);
        }
    }
    serde_json::to_string(&tags).ok().map(Payload::trusted)
}

/// A time that PostgreSQL keeps as it is shown: to the microsecond. One that has passed means at once.
fn run_at(v: &mut Validator, value: Option<&Value>) -> Option<DateTime<Utc>> {
    let text = v.optional_text("run_at", value, 0, 64)?;
    // By way of a number, for which a leap second is the second after it, as it is for PostgreSQL.
    let time = DateTime::parse_from_rfc3339(&text).map(|time| time.timestamp_micros()).ok();
    let time =
        time.and_then(DateTime::from_timestamp_micros).filter(|time| (0..=9999).contains(&time.year()));
    if time.is_none() {
        v.reject("run_at", "must be an RFC 3339 time with its offset, in the years 0 to 9999");
    }
    time
}

fn retry_policy(
    v: &mut Validator,
    metadata: &Map<String, Value>,
    defaults: &RetryPolicy,
) -> Option<RetryPolicy> {
    match metadata.get("retry_policy") {
        None | Some(Value::Null) => Some(defaults.clone()),
        Some(Value::Object(policy)) => v.absorb(RetryPolicy::from_json(policy, defaults)),
        Some(_) => {
            v.reject("metadata.retry_policy", "must be an object");
            None
        }
    }
}

/// A job as it is shown: every column of the specification.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "the columns of the specification's table")]
pub struct Job {
    pub id: JobId,
    pub name: String,
    pub model_name: String,
    pub model_version: String,
    pub status: JobStatus,
    pub priority: u8,
    pub max_retries: u32,
    pub retry_count: u32,
    pub timeout_seconds: u32,
    pub input_data: Payload,
    pub output_data: Option<Payload>,
    pub error_message: Option<String>,
    pub error_stack: Option<String>,
    pub assigned_worker_id: Option<WorkerId>,
    pub assigned_at: Option<DateTime<Utc>>,
    pub submitted_at: DateTime<Utc>,
    pub queued_at: Option<DateTime<Utc>>,
    pub started_at: Option<DateTime<Utc>>,
    pub completed_at: Option<DateTime<Utc>>,
    pub execution_duration_ms: Option<i64>,
    pub queue_wait_time_ms: Option<i64>,
    pub tags: Payload,
    pub metadata: Payload,
    pub created_by: Option<String>,
    pub next_retry_at: Option<DateTime<Utc>>,
    pub retry_backoff_seconds: Option<i64>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

impl Job {
    /// A submission as it was accepted: durable, and on its way to the ready queue unless a worker took it
    /// at once.
    pub fn accepted(new: NewJob, submitted_at: DateTime<Utc>, assigned_to: Option<WorkerId>) -> Self {
        let taken_at = assigned_to.map(|_| submitted_at);
        Self {
            id: new.id,
            name: new.name,
            model_name: new.model_name,
            model_version: new.model_version,
            status: if assigned_to.is_some() { JobStatus::Assigned } else { JobStatus::Pending },
            priority: new.priority,
            max_retries: new.max_retries,
            retry_count: 0,
            timeout_seconds: new.timeout_seconds,
            input_data: new.input_data,
            output_data: None,
            error_message: None,
            error_stack: None,
            assigned_worker_id: assigned_to,
            assigned_at: taken_at,
            submitted_at,
            queued_at: taken_at,
            started_at: None,
            completed_at: None,
            execution_duration_ms: None,
            queue_wait_time_ms: taken_at.map(|_| 0),
            tags: new.tags,
            metadata: new.metadata,
            created_by: new.created_by,
            next_retry_at: new.run_at,
            retry_backoff_seconds: None,
            created_at: submitted_at,
            updated_at: submitted_at,
        }
    }
}

/// A page of jobs.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct JobList {
    /// Newest first.
    pub jobs: Vec<Job>,
    /// How many jobs match the filter.
    pub total: i64,
    /// From 1.
    pub page: i64,
    /// 1 to 100.
    pub page_size: i64,
    /// How many pages there are.
    pub pages: i64,
}

/// Which jobs to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Only jobs in this state.
    pub status: Option<JobStatus>,
    /// Only jobs of this priority.
    pub priority: Option<u8>,
    /// Only jobs for this model.
    pub model_name: Option<String>,
    /// Only jobs of this submitter.
    pub created_by: Option<String>,
    /// Only jobs that carry all of these tags.
    pub tags: BTreeMap<String, String>,
}

/// Jobs by state, and averages over finished attempts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "one counter per state")]
pub struct JobStats {
    pub total_jobs: i64,
    pub pending: i64,
    pub queued: i64,
    pub assigned: i64,
    pub running: i64,
    pub completed: i64,
    pub failed: i64,
    pub cancelled: i64,
    pub timeout: i64,
    /// Mean run time of completed jobs, in milliseconds.
    pub average_execution_time_ms: Option<f64>,
    /// Mean wait from queued to assigned, in milliseconds.
    pub average_queue_time_ms: Option<f64>,
    /// Completed jobs among completed, failed and timed out ones, 0 to 1.
    pub success_rate: Option<f64>,
}

#[cfg(test)]
#[path = "job_tests.rs"]
mod tests;
