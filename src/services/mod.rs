//! Use cases: what happens between a request and its commit.

pub mod batcher;
pub mod command;
pub mod control;
mod crash;
pub mod error;
mod explain;
pub mod facade;
mod fleet;
pub mod inspect;
pub mod leader;
mod members;
mod models;
pub mod queries;
mod queues;
pub mod sessions;
pub mod watching;

pub use error::ServiceError;
pub use facade::Services;
