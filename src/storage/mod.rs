//! PostgreSQL, which holds the truth: every SQL statement, the mapping of rows, and the fence.
//!
//! Functions that change scheduling state take a [`FencedTransaction`], which cannot be had without passing
//! the fence, or a [`Fence`], which their single statement passes before it writes. Nothing here knows of
//! Redis, Raft or the API.

mod assignments;
mod audit;
mod completions;
mod connections;
mod counters;
mod database;
mod error;
mod executions;
mod fence;
mod idempotency;
mod jobs;
mod leases;
mod lists;
mod queue;
mod queue_metrics;
mod reconcile;
mod retention;
mod retries;
mod sealed;
mod submissions;
mod tags;
mod transitions;
mod workers;

pub use assignments::{Claim, Origin, Taken};
pub use audit::{AuditLimits, AuditRow, SchemaAudit};
pub use completions::{Completed, Completion};
pub use counters::Deltas;
pub use database::{Database, DatabaseOptions};
pub use error::StorageError;
pub use fence::{Fence, FencedTransaction};
pub use idempotency::{HeldKey, KeyClaim};
pub use leases::LiveLease;
pub use queue_metrics::{NewQueueMetrics, Totals};
pub use reconcile::{QueuedJob, StoredPlace};
pub use retention::OldJob;
pub use retries::{Due, Promoted};
pub use submissions::{Inserted, Insertion};
pub use transitions::Reported;
pub use workers::{Vitals, WorkerTally};
