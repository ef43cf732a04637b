//! The REST surface under `/api/v1`, the health probes and `/metrics`.

mod body;
mod events;
mod jobs;
mod path;
mod query;
mod router;
mod system;
mod workers;

pub use router::{router, routes};
