//! The embedded default: a whole cluster on one machine, as child processes.
//!
//! [`DevCluster`] is what `cortex dev`, the tests, the fault injection and the benches start: its own
//! PostgreSQL and Redis unless URLs are given, each replica a separate process, and demo workers.
//!
//! Invariants:
//! - Nothing outlives the process that started it: every child asks the kernel for a signal at the
//!   death of its parent, and [`Janitor`] removes folders that only tests need.
//! - A data directory is used by one process at a time, and finds its jobs again on the next run, also
//!   after an unclean end.
//! - PostgreSQL never runs as root: as root it gets an unprivileged account.
//!
//! It does not restart what dies (it reports it), and it is no way to run CORTEX in production.

mod account;
mod binaries;
mod builder;
mod cluster;
mod error;
mod events;
mod janitor;
mod keys;
mod manifest;
mod members;
mod orphan;
mod ports;
mod postgres;
mod probe;
mod process;
mod redis;
mod replica;
mod worker;

pub use self::redis::{Redis, RedisOptions};
pub use builder::{DevClusterBuilder, MAX_REPLICAS, MAX_WORKERS};
pub use cluster::DevCluster;
pub use error::DevError;
pub use events::DevEvent;
pub use janitor::Janitor;
pub use nix::sys::signal::Signal;
pub use ports::PortBlock;
pub use postgres::{Postgres, PostgresOptions};
pub use replica::ReplicaOptions;
