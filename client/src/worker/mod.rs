//! The worker runtime: runs a [`Handler`] for every job that the replicas hand
//! to it.
//!
//! # What it keeps true
//!
//! - A worker registers once. It keeps its id through every reconnect, because
//!   registering again gives its leases up; it registers anew only when a
//!   replica answers `NOT_FOUND` for its id.
//! - No more handlers run at once than there are slots, and a job is only
//!   fetched when a slot is free for it.
//! - A completion carries the lease token and is sent again, to one replica
//!   after the other, until it is acknowledged or refused. Until then the job
//!   is named in every heartbeat.
//! - Jobs keep running while no replica can be reached.
//!
//! # What it does not do
//!
//! It does not judge leases: whether a job still belongs to this worker is for
//! the server to say (`cancelled_jobs`, a refused report). It keeps nothing on
//! disk: a worker process that dies loses its jobs, and the server gives them to
//! another.

mod builder;
mod core;
mod error;
mod handler;
mod heartbeat;
mod held;
mod identity;
mod job;
mod link;
mod poll;
mod process;
mod report;
mod runtime;
mod session;

pub use builder::{Worker, WorkerBuilder};
pub use error::WorkerError;
pub use handler::{AssignedJob, Handler, JobFailure};
pub use identity::Identity;
