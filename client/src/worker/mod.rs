//! The worker runtime: runs a [`Handler`] for every job that the replicas hand
//! to it.
//!
//! # What it keeps true
//!
//! - A worker registers once. It keeps its id through every reconnect, because
//!   registering again gives its leases up; it registers anew only when a
//!   replica answers `NOT_FOUND` for its id.
//! - No more handlers run at once than there are slots: a job is pushed only
//!   against a credit, and a slot that becomes free is one credit.
//! - A completion carries the lease token and is sent again, on one session after
//!   the other, until it is acknowledged or refused. Until then every session
//!   that is opened names the job as held.
//! - A handler hears once what became of each end that was reported ([`Handler::settled`]).
//! - A job that ends within 100 ms is never reported as running; its completion
//!   says as much.
//! - Jobs keep running while no replica can be reached.
//!
//! # What it does not do
//!
//! It does not judge leases: whether a job still belongs to this worker is for
//! the server to say (an ended lease, a refused report). It keeps nothing on
//! disk: a worker process that dies loses its jobs, and the server gives them to
//! another.

mod builder;
mod error;
mod handler;
mod identity;
mod job;
mod link;
mod outbox;
mod process;
mod registration;
mod report;
mod runtime;

pub use builder::{Worker, WorkerBuilder};
pub use error::WorkerError;
pub use handler::{AssignedJob, Handler, JobFailure};
pub use identity::Identity;
pub use report::{ReportOutcome, Settled};
