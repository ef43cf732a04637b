//! Stores as users run them, beside the single servers of the other tests.

#[path = "../support/authority.rs"]
mod authority;
mod pgbouncer;
mod postgres_tls;
mod redis_cluster;
mod redis_secured;
mod scene;
#[path = "../support/mod.rs"]
mod support;
mod trouble;
