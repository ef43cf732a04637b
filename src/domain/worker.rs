//! Workers: what they declare and how they are shown.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::ids::WorkerId;
use super::matching::Capabilities;
use super::payload::Payload;
use super::validate::{FieldError, Validator, check_text};

/// Most bytes of what a worker says of itself, at registration or in a heartbeat.
pub const MAX_METADATA: usize = 16 << 10;
/// Most bytes of what a worker says that it can do: replicas hold it in memory.
const MAX_CAPABILITIES: usize = 64 << 10;

/// How a worker fares.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum WorkerStatus {
    /// Has a free slot.
    Idle,
    /// All slots are taken.
    Busy,
    /// Silent for too long, or removed.
    Offline,
    /// Says so itself, or failed too often in a row.
    Unhealthy,
}

impl WorkerStatus {
    /// All states.
    pub const ALL: [Self; 4] = [Self::Idle, Self::Busy, Self::Offline, Self::Unhealthy];

    /// The name used in SQL and in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Busy => "busy",
            Self::Offline => "offline",
            Self::Unhealthy => "unhealthy",
        }
    }
}

impl fmt::Display for WorkerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for WorkerStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| "must be one of idle, busy, offline, unhealthy".to_owned())
    }
}

/// A registration whose bounds were checked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NewWorker {
    /// The id it gets if its hostname and port are new.
    pub id: WorkerId,
    /// 1 to 255 characters.
    pub name: String,
    /// 1 to 255 characters; with `port` the worker's identity.
    pub hostname: String,
    /// An IPv4 or IPv6 address.
    pub ip_address: IpAddr,
    /// 1 to 65535.
    pub port: u16,
    /// As declared, in the typed form.
    pub capabilities: Payload,
    /// 1 to 100.
    pub max_concurrent_jobs: u32,
    /// 5 to 300 seconds.
    pub heartbeat_interval_seconds: u32,
    /// At most 50 characters.
    pub version: Option<String>,
    /// Whatever else the worker says of itself, at most [`MAX_METADATA`] bytes.
    #[serde(default)]
    pub metadata: Payload,
}

/// A registration as it arrives.
#[derive(Debug)]
#[expect(missing_docs, reason = "the fields of NewWorker, unchecked")]
pub struct WorkerDraft {
    pub name: String,
    pub hostname: String,
    pub ip_address: String,
    pub port: i64,
    pub capabilities: Map<String, Value>,
    pub max_concurrent_jobs: i64,
    pub heartbeat_interval_seconds: i64,
    pub version: Option<String>,
    pub metadata: Map<String, Value>,
}

impl WorkerDraft {
    /// Checks every bound of the specification and names all fields that break one.
    pub fn check(self, id: WorkerId) -> Result<NewWorker, Vec<FieldError>> {
        let mut v = Validator::default();
        for (field, text) in [("name", &self.name), ("hostname", &self.hostname)] {
            if let Err(message) = check_text(text, 1, 255) {
                v.reject(field, message);
            }
        }
        let ip_address = self.ip_address.trim().parse::<IpAddr>();
        if ip_address.is_err() {
            v.reject("ip_address", "must be an IPv4 or IPv6 address");
        }
        let within = |v: &mut Validator, field: &str, value: i64, min: i64, max: i64| {
            if !(min..=max).contains(&value) {
                v.reject(field, format!("must be a whole number from {min} to {max}"));
            }
            u32::try_from(value).ok()
        };
        let port = within(&mut v, "port", self.port, 1, 65_535);
        let slots = within(&mut v, "max_concurrent_jobs", self.max_concurrent_jobs, 1, 100);
        let interval = within(&mut v, "heartbeat_interval_seconds", self.heartbeat_interval_seconds, 5, 300);
        if let Some(Err(message)) = self.version.as_deref().map(|version| check_text(version, 0, 50)) {
            v.reject("version", message);
        }
        v.absorb(Capabilities::from_json(&self.capabilities));
        let mut declared = self.capabilities;
        if declared.is_empty() {
            declared.insert("gpu".to_owned(), Value::Bool(false));
        }
        let capabilities = storable(&mut v, "capabilities", &declared, MAX_CAPABILITIES);
        let metadata = storable(&mut v, "metadata", &self.metadata, MAX_METADATA);
        let complete = (|| {
            Some(NewWorker {
                id,
                name: self.name,
                hostname: self.hostname,
                ip_address: ip_address.ok()?,
                port: u16::try_from(port?).ok()?,
                capabilities: capabilities?,
                max_concurrent_jobs: slots?,
                heartbeat_interval_seconds: interval?,
                version: self.version.filter(|version| !version.is_empty()),
                metadata: metadata?,
            })
        })();
        v.finish(complete)
    }
}

/// Checks that an object can be stored and takes at most `most` bytes.
pub fn storable(
    v: &mut Validator,
    field: &str,
    members: &Map<String, Value>,
    most: usize,
) -> Option<Payload> {
    let text = serde_json::to_string(members).map_err(|error| error.to_string());
    let read = text.and_then(|text| match text.len() > most {
        true => Err(format!("may have at most {most} bytes, has {}", text.len())),
        false => Payload::parse(&text),
    });
    read.map_err(|message| v.reject(field, message)).ok()
}

/// A worker as it is shown.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "the columns of the specification's table")]
pub struct Worker {
    pub id: WorkerId,
    pub name: String,
    pub hostname: String,
    pub ip_address: String,
    pub port: u16,
    pub status: WorkerStatus,
    /// It keeps what it runs and gets nothing new.
    #[serde(default)]
    pub draining: bool,
    /// When it was taken out of service; until it registers again nothing that it says counts.
    #[serde(default)]
    pub removed_at: Option<DateTime<Utc>>,
    pub capabilities: Payload,
    pub max_concurrent_jobs: u32,
    pub current_job_count: i64,
    pub total_jobs_completed: i64,
    pub total_jobs_failed: i64,
    pub average_execution_time_ms: Option<i64>,
    pub last_heartbeat: DateTime<Utc>,
    pub heartbeat_interval_seconds: u32,
    pub consecutive_failures: i64,
    pub version: Option<String>,
    pub owner: Option<String>,
    pub metadata: Payload,
    pub registered_at: DateTime<Utc>,
    pub last_active_at: DateTime<Utc>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// Workers by state, and how much of what they can run at a time they do run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "one counter per state")]
pub struct WorkerStats {
    pub total_workers: i64,
    pub idle_workers: i64,
    pub busy_workers: i64,
    pub offline_workers: i64,
    pub unhealthy_workers: i64,
    /// Slots of all workers that are not offline.
    pub total_capacity: i64,
    /// Jobs that these workers hold.
    pub current_utilization: i64,
    /// 0 to 100; 0 where there is no capacity.
    pub utilization_percent: f64,
}

/// A list of workers.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
pub struct WorkerList {
    /// By name.
    pub workers: Vec<Worker>,
    /// How many there are.
    pub total: i64,
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn names_every_bad_field_at_once() {
        let draft = WorkerDraft {
            name: String::new(),
            hostname: "h\0".into(),
            ip_address: "localhost".into(),
            port: 0,
            capabilities: json!({"models": "a", "x": "x".repeat(MAX_CAPABILITIES)})
                .as_object()
                .unwrap()
                .clone(),
            max_concurrent_jobs: 101,
            heartbeat_interval_seconds: 1,
            version: Some("v".repeat(51)),
            metadata: json!({"text": "t".repeat(MAX_METADATA)}).as_object().unwrap().clone(),
        };
        let fields: Vec<_> =
            draft.check(WorkerId(Uuid::nil())).unwrap_err().into_iter().map(|error| error.field).collect();
        assert_eq!(
            fields,
            [
                "name",
                "hostname",
                "ip_address",
                "port",
                "max_concurrent_jobs",
                "heartbeat_interval_seconds",
                "version",
                "capabilities.models",
                "capabilities",
                "metadata"
            ]
        );
    }
}
