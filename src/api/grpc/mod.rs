//! The worker protocol: `cortex.JobService`, health (`grpc.health.v1`) and server reflection.

mod access;
mod client;
mod jobs;
mod parse;
mod replies;
mod requests;
mod routes;
mod session;

pub use access::RPCS;
pub(super) use access::{access_of, name_of};
pub(super) use requests::deadline;
#[cfg(test)]
use routes::DESCRIPTORS;
pub use routes::{ServingStatus, routes};
