//! The messages between replicas, generated from `proto/peer.proto`.
#![allow(missing_docs, clippy::all, clippy::pedantic, clippy::allow_attributes_without_reason)]

tonic::include_proto!("cortex.peer");

/// Metadata that carries `cluster.secret`; Raft's calls on the same port use the same.
pub const SECRET_HEADER: &str = "x-cortex-cluster-secret";
/// Largest message that is accepted, in bytes.
pub const MAX_MESSAGE: usize = 16 << 20;
/// Largest command or answer in bytes: a message has to hold at least one, and what goes around it.
pub const MAX_ITEM: usize = MAX_MESSAGE - (1 << 10);
