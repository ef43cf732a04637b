//! The commands of the `cortex` program: each takes its arguments apart, calls, and prints.
//!
//! Exit status: 0 done, 1 the request was refused or failed, 2 usage; `verify` has a further one.

pub mod args;
pub mod bench;
pub mod cluster;
pub mod cluster_args;
pub mod dev;
pub mod jobs;
pub mod migrate;
mod output;
pub mod queue_args;
pub mod queues;
pub mod serve;
mod signals;
mod submit;
pub mod token;
mod traced;
pub mod verify;
mod watch;
pub mod worker;
pub mod workers;
