//! REST and gRPC: transport mapping, and nothing else.
//!
//! A handler parses what arrived, calls one use case of [`crate::services`], and shows the answer. What
//! went wrong, there or on the way there, is named by [`problem`] alone.
//!
//! Invariant: nothing that a client sends makes an answer of the 5xx kind; those say that a part of the
//! system is down or defective.

mod access;
mod answers;
mod convert;
mod gate;
pub mod grpc;
mod guard;
mod messagepack;
pub mod problem;
pub mod rest;
mod state;
mod tls;
mod trace;

pub use access::rpcs;
pub use answers::Answers;
pub use gate::Gate;
pub use guard::Observe;
pub use state::{Api, Limits, Parts};
pub use tls::{HANDSHAKE_WITHIN, TlsListener};
