//! One running group, from outside: REST and gRPC at all three replicas, then the rows that are left.

mod batch;
mod cancel;
mod failing;
mod flow;
mod group;
mod hand;
mod leases;
mod malformed;
mod poll;
mod reply;
mod rest;
mod retries;
mod roster;
mod session;
mod states;
#[path = "../support/mod.rs"]
mod support;
mod system;
mod talk;
mod whole;
