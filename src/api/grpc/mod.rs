//! The worker protocol: `cortex.JobService`, health (`grpc.health.v1`) and server reflection.

mod client;
mod jobs;
mod parse;
mod replies;
mod requests;
mod routes;
mod session;

pub(super) use requests::deadline;
#[cfg(test)]
pub(super) use routes::DESCRIPTORS;
pub use routes::{ServingStatus, routes};
