//! The queue as a whole and the group of replicas, changed while all others look on: each test has a group of its
//! own, for what it does would stop the jobs of others.

mod clear;
mod genome;
mod members;
mod metrics;
mod pause;
mod scene;
mod settings;
#[path = "../support/mod.rs"]
mod support;
