//! Use cases: what happens between a request and its commit.

pub mod command;
pub mod error;
pub mod facade;
pub mod queries;

pub use error::ServiceError;
pub use facade::Services;
