//! Stores as users run them, beside the single servers of the other tests.

mod redis_cluster;
#[path = "../support/mod.rs"]
mod support;
