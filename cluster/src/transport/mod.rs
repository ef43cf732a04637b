//! How replicas reach each other: the peer protocol, its client and its server.

mod network;
mod peers;
mod service;
#[cfg(test)]
mod tests;

/// Generated from `proto/raft.proto`.
pub(crate) mod proto {
    #![allow(clippy::all, clippy::pedantic, clippy::allow_attributes_without_reason)]
    tonic::include_proto!("cortex.cluster");
}

pub(crate) use network::NetworkFactory;
pub(crate) use peers::{PeerError, Peers};
pub use service::RaftService;
pub(crate) use service::{Contact, Gate};

/// Largest message either way, in bytes: a full control state fits in easily.
pub(crate) const MAX_MESSAGE: usize = 16 * 1024 * 1024;
/// Carries `cluster.secret`.
const SECRET_HEADER: &str = "x-cortex-cluster-secret";

impl From<crate::config::Addresses> for proto::Addresses {
    fn from(addresses: crate::config::Addresses) -> Self {
        proto::Addresses { peer: addresses.peer, http: addresses.http, grpc: addresses.grpc }
    }
}

impl From<proto::Addresses> for crate::config::Addresses {
    fn from(addresses: proto::Addresses) -> Self {
        crate::config::Addresses { peer: addresses.peer, http: addresses.http, grpc: addresses.grpc }
    }
}
