//! The description of the REST surface: OpenAPI 3.1, and pages to read it with.
//!
//! What an operation takes and answers is said beside its handler (`#[utoipa::path]`); what the router's table and the
//! layers around all handlers decide is added from there (`complete`). The bodies of requests are read loosely, so that all
//! that is wrong with them can be named; their bounds are told by types that only describe (`requests`), which tests hold
//! against what is read. Nothing here is on the way of any other request.

mod complete;
mod document;
mod examples;
mod pages;
pub(super) mod requests;
mod shapes;

pub use document::document;
pub(super) use pages::{file, page, redirect, served};

#[cfg(test)]
mod tests;
