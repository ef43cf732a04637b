//! Executions: one row per attempt, whose id is the lease token.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::event::Failure;
use super::ids::{JobId, LeaseId, WorkerId};
use super::payload::Payload;
use super::transition::{POISON, WORKER_LOST};

/// Where an attempt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ExecutionStatus {
    /// Leased to a worker that has not said yet that it runs.
    Started,
    /// The worker said that it runs.
    Running,
    /// Ended well.
    Completed,
    /// Ended badly; `error_code` says how.
    Failed,
    /// Ran past its deadline.
    Timeout,
    /// Called off, or taken back before it ran.
    Cancelled,
}

impl ExecutionStatus {
    const ALL: [Self; 6] =
        [Self::Started, Self::Running, Self::Completed, Self::Failed, Self::Timeout, Self::Cancelled];

    /// The name used in SQL and in the API.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the lease is live.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Started | Self::Running)
    }
}

impl fmt::Display for ExecutionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ExecutionStatus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| format!("{text} is no execution status"))
    }
}

/// An attempt as it is shown.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "the columns of the specification's table")]
pub struct Execution {
    pub id: LeaseId,
    pub job_id: JobId,
    pub worker_id: WorkerId,
    pub attempt_number: u32,
    pub status: ExecutionStatus,
    pub started_at: DateTime<Utc>,
    pub completed_at: Option<DateTime<Utc>>,
    pub duration_ms: Option<i64>,
    pub output_data: Option<Payload>,
    pub error_message: Option<String>,
    pub error_stack: Option<String>,
    pub error_code: Option<String>,
    pub cpu_usage_percent: Option<f64>,
    pub memory_usage_mb: Option<i64>,
    pub gpu_usage_percent: Option<f64>,
    pub log_file_path: Option<String>,
    pub metadata: Payload,
    pub created_at: DateTime<Utc>,
}

/// Resource use that a worker reports, in per cent and MB.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Usage {
    pub cpu_usage_percent: Option<f64>,
    pub memory_usage_mb: Option<f64>,
    pub gpu_usage_percent: Option<f64>,
}

/// What is to be written to an execution.
#[derive(Debug, Clone, PartialEq)]
#[expect(missing_docs, reason = "the columns of the specification's table")]
pub struct ExecutionChange {
    pub lease: LeaseId,
    pub worker_id: WorkerId,
    pub status: ExecutionStatus,
    pub started_at: Option<DateTime<Utc>>,
    pub expires_at: DateTime<Utc>,
    pub completed_at: Option<DateTime<Utc>>,
    pub duration_ms: Option<i64>,
    pub output_data: Option<Payload>,
    pub error: Option<Failure>,
    pub usage: Usage,
}

impl ExecutionChange {
    /// Whether the attempt ended badly in a way that speaks against its worker. For being lost a worker's silence
    /// answers.
    pub fn blames_worker(&self) -> bool {
        let code = self.error.as_ref().and_then(|error| error.code.as_deref());
        matches!(self.status, ExecutionStatus::Failed | ExecutionStatus::Timeout)
            && !matches!(code, Some(WORKER_LOST | POISON))
    }
}
