//! Measurements of a running cluster from outside, as its users meet it, and of the statements alone.
//!
//! | file | what it does |
//! | --- | --- |
//! | `load.rs` | submissions over HTTP/1.1, one kept connection for each that is in flight |
//! | `crew.rs` | workers in this process, whose jobs do nothing |
//! | `cluster.rs` | what a run asks the replicas: addresses, and what PostgreSQL holds of its jobs |
//! | `runs.rs` | the workloads |
//! | `limit.rs` | CORTEX's statements in full batches, straight against PostgreSQL |
//! | `report.rs` | one JSON line per run |
//!
//! Every run has a model name of its own, checks what it has counted against PostgreSQL, and leaves the queue
//! as it found it: what it stored and did not run is run at the end by workers of its own. The load shares the
//! machine with what it measures, so it is built to cost little.

mod cluster;
mod crew;
mod limit;
mod load;
mod report;
mod runs;

use std::time::Duration;

use tokio_util::sync::CancellationToken;

pub use self::report::Line;
pub use self::runs::run;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Workload {
    /// Single submissions, so many in flight, nobody working on them
    Submit,
    /// Submissions in batches, one call at a time
    SubmitBatch,
    /// Stored jobs, from the start of the first one until all are completed
    Drain,
    /// From the start of a submission to the start of its job, at a steady rate
    Latency,
    /// Single submissions against running workers
    Pipeline,
    /// The pipeline at a steady rate for long, a line every 10 s
    Soak,
    /// CORTEX's own statements in full batches, straight against PostgreSQL
    Limit,
}

/// How it is measured.
#[derive(Debug, Clone)]
pub struct Options {
    /// What.
    pub workload: Workload,
    /// REST addresses; the first one takes the submissions.
    pub endpoints: Vec<String>,
    /// gRPC addresses for the workers; those of all members if empty.
    pub worker_endpoints: Vec<String>,
    /// Bearer token.
    pub token: Option<String>,
    /// A PostgreSQL in which a scratch database can be made; for the limit alone.
    pub database_url: Option<String>,
    /// How many jobs.
    pub jobs: Option<u64>,
    /// How many of them are measured, where jobs are drained; the others wait meanwhile. All if left out.
    pub first: Option<u64>,
    /// How long, where that is not said in jobs.
    pub seconds: Option<u64>,
    /// Submissions in flight.
    pub in_flight: usize,
    /// Jobs of one batch.
    pub batch: usize,
    /// Submissions a second, where they are paced.
    pub rate: u64,
    /// Workers.
    pub workers: usize,
    /// Jobs at a time, each.
    pub slots: usize,
    /// Size of a job's input, about.
    pub payload_bytes: usize,
    /// Shows how far it is on standard error.
    pub progress: bool,
    /// Breaks the run off: nothing more is submitted, and what was is run. The queue is left as it was found.
    pub stop: CancellationToken,
}

/// Why a run came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The run cannot be made as asked for.
    #[error("{0}")]
    Usage(String),
    /// A call failed.
    #[error("{what}: {cause}")]
    Call {
        /// Which.
        what: &'static str,
        /// Why.
        cause: String,
    },
    /// What was counted is not what PostgreSQL holds.
    #[error("{counted} jobs were counted and {stored} are in PostgreSQL")]
    Mismatch {
        /// By the run.
        counted: u64,
        /// By PostgreSQL.
        stored: u64,
    },
    /// It was called off.
    #[error("the run was broken off; nothing of it is left waiting")]
    BrokenOff,
    /// Something that must come did not.
    #[error("gave up after {0:?}: {1}")]
    Late(Duration, &'static str),
}

impl BenchError {
    fn call(what: &'static str) -> impl FnOnce(&dyn std::fmt::Display) -> Self {
        move |cause| Self::Call { what, cause: cause.to_string() }
    }
}

/// The moment that all times of a run are counted from.
#[derive(Debug, Clone, Copy)]
struct Clock(std::time::Instant);

impl Clock {
    #[expect(clippy::disallowed_methods, reason = "a benchmark measures")]
    fn start() -> Self {
        Self(std::time::Instant::now())
    }

    /// Microseconds since the start.
    fn micros(self) -> u64 {
        u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}
