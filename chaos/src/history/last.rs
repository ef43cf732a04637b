//! What the stores held after quiet, and the trail that was kept beside the tables meanwhile.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use uuid::Uuid;

/// A row of `jobs`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// Its id.
    pub id: Uuid,
    /// Its state.
    pub status: String,
    /// 1 to 10.
    pub priority: i32,
    /// Which models' workers may take it.
    pub model_name: String,
    /// Failed attempts that may be tried again.
    pub max_retries: i32,
    /// Failed attempts that were tried again, and explicit retries.
    pub retry_count: i32,
    /// `input_data.number`.
    pub number: Option<i64>,
    /// When it was submitted, by PostgreSQL's clock.
    pub submitted_at: DateTime<Utc>,
    /// When it came to its end.
    pub completed_at: Option<DateTime<Utc>>,
    /// `run_at`, as it was submitted.
    pub run_at: Option<DateTime<Utc>>,
    /// Why it failed.
    pub error_message: Option<String>,
    /// `output_data.result`.
    pub result: Option<i64>,
}

/// A row of `executions`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Execution {
    /// The lease token.
    pub id: Uuid,
    /// The job.
    pub job_id: Uuid,
    /// The worker.
    pub worker_id: Uuid,
    /// From 1.
    pub attempt_number: i32,
    /// started, running, completed, failed, timeout, cancelled.
    pub status: String,
    /// When it was granted.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
    /// Until when it was good at the most.
    pub lease_expires_at: Option<DateTime<Utc>>,
    /// For the retry policy.
    pub error_code: Option<String>,
    /// Why it failed, in histories that have it.
    #[serde(default)]
    pub error_message: Option<String>,
}

/// A row of `leases`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lease {
    /// The job.
    pub job_id: Uuid,
    /// The lease token.
    pub id: Uuid,
}

/// A row of `idempotency_keys`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Key {
    /// The key.
    pub key: String,
    /// The jobs that it stands for.
    pub job_ids: Vec<Uuid>,
}

/// One change to a job, noted by a trigger in the transaction that made it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Audit {
    /// Ascends with every change to the same job; between jobs it says nothing about the order of commits.
    pub id: i64,
    /// The job.
    pub job_id: Uuid,
    /// The state before; `None` when it was inserted.
    pub old_status: Option<String>,
    /// The state after; `None` when it was deleted.
    pub new_status: Option<String>,
    /// The lease before.
    pub old_lease: Option<Uuid>,
    /// The lease after.
    pub new_lease: Option<Uuid>,
    /// The retry time before.
    pub old_due: Option<DateTime<Utc>>,
    /// The retry time after.
    pub new_due: Option<DateTime<Utc>>,
    /// The lease's end after.
    pub new_expires: Option<DateTime<Utc>>,
    /// The number of retries after, in histories that have it.
    #[serde(default)]
    pub retries: Option<i32>,
    /// The epoch that the writer has shown to the fence; `None` if it has shown none.
    pub epoch: Option<i64>,
    /// When, by PostgreSQL's clock at that very moment.
    pub at: DateTime<Utc>,
}

/// One statement that changed scheduling state, noted by a trigger.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Write {
    /// Ascends in the order of execution.
    pub id: i64,
    /// The table.
    pub relation: String,
    /// The epoch that the writer has shown to the fence; `None` if it has shown none.
    pub writer: Option<i64>,
    /// The epoch that was the current one.
    pub current: Option<i64>,
}

/// What Redis held.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct RedisState {
    /// Each key under the queue's prefix with its type and length.
    pub keys: BTreeMap<String, (String, u64)>,
}

/// The stores after quiet.
#[derive(Debug, Default)]
pub struct Final {
    /// `jobs`.
    pub jobs: Vec<Job>,
    /// `executions`, by job and then by time.
    pub executions: Vec<Execution>,
    /// `leases`.
    pub leases: Vec<Lease>,
    /// `idempotency_keys`.
    pub keys: Vec<Key>,
    /// Every change to a job.
    pub audit: Vec<Audit>,
    /// Every statement that changed scheduling state, in its order.
    pub writes: Vec<Write>,
    /// The ready queue.
    pub redis: RedisState,
}

/// Files of `final/` and the statement that fills each with one JSON object a line.
const TABLES: [(&str, &str); 6] = [
    (
        "jobs",
        "SELECT jsonb_build_object('id', id, 'status', status, 'priority', priority, 'model_name', model_name,
            'max_retries', max_retries, 'retry_count', retry_count, 'number', input_data->'number',
            'submitted_at', submitted_at, 'completed_at', completed_at, 'run_at', input_data->'run_at',
            'error_message', error_message, 'result', output_data->'result')::text
         FROM jobs ORDER BY submitted_at, id",
    ),
    (
        "executions",
        "SELECT jsonb_build_object('id', id, 'job_id', job_id, 'worker_id', worker_id,
            'attempt_number', attempt_number, 'status', status, 'created_at', created_at,
            'completed_at', completed_at,
            'lease_expires_at', CASE WHEN isfinite(lease_expires_at) THEN lease_expires_at END,
            'error_code', error_code, 'error_message', error_message)::text
         FROM executions ORDER BY job_id, created_at, id",
    ),
    ("leases", "SELECT jsonb_build_object('job_id', job_id, 'id', id)::text FROM leases ORDER BY job_id"),
    ("keys", "SELECT jsonb_build_object('key', key, 'job_ids', job_ids)::text FROM idempotency_keys ORDER BY key"),
    ("audit", "SELECT to_jsonb(a)::text FROM chaos_audit a ORDER BY id"),
    ("writes", "SELECT to_jsonb(w)::text FROM chaos_writes w ORDER BY id"),
];

/// Writes the stores' content to `final/` of the run's folder.
///
/// # Errors
/// When a store does not answer or a file cannot be written.
pub async fn dump(folder: &Path, pool: &PgPool, redis: &RedisState) -> io::Result<()> {
    let folder = folder.join("final");
    fs::create_dir_all(&folder)?;
    let mut transaction = pool.begin().await.map_err(io::Error::other)?;
    sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        .execute(&mut *transaction)
        .await
        .map_err(io::Error::other)?;
    for (name, statement) in TABLES {
        let rows: Vec<String> =
            sqlx::query_scalar(statement).fetch_all(&mut *transaction).await.map_err(io::Error::other)?;
        let mut file = BufWriter::new(File::create(folder.join(format!("{name}.jsonl")))?);
        for row in rows {
            writeln!(file, "{row}")?;
        }
        file.flush()?;
    }
    fs::write(folder.join("redis.json"), serde_json::to_vec(redis)?)
}

impl Final {
    /// Reads `final/` of a run's folder; `None` if it is not there.
    ///
    /// # Errors
    /// When a file is missing or cannot be read.
    pub fn read(folder: &Path) -> io::Result<Option<Self>> {
        let folder = folder.join("final");
        let redis = match fs::read(folder.join("redis.json")) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(Self {
            jobs: rows(&folder, "jobs")?,
            executions: rows(&folder, "executions")?,
            leases: rows(&folder, "leases")?,
            keys: rows(&folder, "keys")?,
            audit: rows(&folder, "audit")?,
            writes: rows(&folder, "writes")?,
            redis,
        }))
    }
}

fn rows<T: DeserializeOwned>(folder: &Path, name: &str) -> io::Result<Vec<T>> {
    let text = fs::read_to_string(folder.join(format!("{name}.jsonl")))?;
    text.lines().map(|line| serde_json::from_str(line).map_err(io::Error::from)).collect()
}
