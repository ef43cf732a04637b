//! The same commands, carried to the leader.
//!
//! The API holds a [`Router`] and never knows who leads. Leadership publishes a [`Route`]; the router runs
//! a command here or sends it over one multiplexed stream to the leader, whose [`ForwardServer`] runs it.
//!
//! Invariants:
//! - A command that may have been carried out is sent again only when it is repeatable; otherwise its
//!   caller is told that the outcome is unknown. "Nothing was done" is said only when it is certain.
//! - A call never outlives its stream: when the stream breaks, or the route names another leader, every
//!   call on it is settled at once as not sent or as unknown.
//! - Every queue is bounded, and submissions cannot hold up reports.
//!
//! What this module does not do: decide who leads, batch writes, or remember commands. Fencing in the
//! stores, not the route, keeps a leader that has been replaced from doing harm.

mod codec;
mod config;
mod lane;
mod link;
mod outbox;
mod relay;
mod route;
mod router;
mod server;
pub mod wire;

pub use config::{ForwardConfig, Limits};
pub use relay::keep_attached;
pub use route::Route;
pub use router::Router;
pub use server::{ForwardServer, tune};

/// The channel of the route; the simulation's wakes those who wait in an order that the seed decides.
#[cfg(test)]
pub use cortex_cluster::simulation::watch;
/// The channel of the route.
#[cfg(not(test))]
pub use tokio::sync::watch;
