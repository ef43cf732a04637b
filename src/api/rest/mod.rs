//! The REST surface under `/api/v1`, the health probes and `/metrics`.

mod body;
pub mod cors;
mod events;
mod heartbeat;
mod jobs;
mod members;
mod openapi;
mod path;
mod query;
mod queues;
mod router;
mod system;
mod workers;

pub use openapi::document;
pub use router::{router, routes};
