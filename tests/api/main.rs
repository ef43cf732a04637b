//! One running group, from outside: REST and gRPC at all three replicas, then the rows that are left.

mod batch;
mod cancel;
mod client;
mod documented;
mod events;
mod explain;
mod failing;
mod flow;
mod formats;
mod group;
mod hand;
mod leases;
mod malformed;
mod models;
mod once;
mod poll;
mod queues;
mod reply;
mod rest;
mod retries;
mod roster;
mod run_at;
mod session;
mod specification;
mod states;
#[path = "../support/mod.rs"]
mod support;
mod system;
mod talk;
mod whole;
