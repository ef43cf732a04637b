//! Who may do what, through every replica of a group that requires tokens.

#[path = "../support/authority.rs"]
mod authority;
mod canaries;
#[path = "../support/collector.rs"]
mod collector;
mod corpus;
mod gate;
mod jwks;
mod scene;
mod sealed;
mod streams;
#[path = "../support/mod.rs"]
mod support;
mod table;
mod tls;
mod workers;
