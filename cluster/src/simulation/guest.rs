//! What runs on the simulated replicas beside Raft, and is watched with it.

use std::pin::Pin;

#[cfg(test)]
use tonic::transport::Server;
use tonic::transport::server::Router;

use super::world::World;
use crate::node::{Node, RaftServer};

/// A future of one host.
pub type Life = Pin<Box<dyn Future<Output = ()>>>;

/// The part of a replica that is above this crate. All of it runs on the thread of the simulation.
pub trait Guest: 'static {
    /// The process of a replica has begun: what its peer port serves, and what it does until it ends.
    fn begin(&self, node: Node, raft: RaftServer) -> (Router, Life);

    /// A replica was asked to stop: done once it leads no more, or the others have to elect somebody.
    fn retire(&self, id: u64) -> Life;

    /// The process of a replica was ended.
    fn ended(&self, id: u64);

    /// Does and checks what is due in this millisecond. After all was mended nothing more may go wrong.
    fn act(&self, world: &World, mended: bool);

    /// Whether it works as it should on all members, once all was mended.
    fn is_calm(&self, members: &[u64]) -> bool;

    /// Checks what must hold in the end.
    fn settle(&self);
}

/// Raft alone.
#[cfg(test)]
pub(super) struct Nobody;

#[cfg(test)]
impl Guest for Nobody {
    fn begin(&self, _: Node, raft: RaftServer) -> (Router, Life) {
        (Server::builder().add_service(raft), Box::pin(std::future::ready(())))
    }

    fn retire(&self, _: u64) -> Life {
        Box::pin(std::future::ready(()))
    }

    fn ended(&self, _: u64) {}

    fn act(&self, _: &World, _: bool) {}

    fn is_calm(&self, _: &[u64]) -> bool {
        true
    }

    fn settle(&self) {}
}
