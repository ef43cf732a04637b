//! Raft membership, leadership and control state for CORTEX replicas.
//!
//! Replicas form a Raft group that decides who leads and holds a small
//! replicated control state. The crate knows nothing of jobs. openraft is an
//! implementation detail and appears in no public type.
//!
//! # Use
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use cortex_cluster::{Addresses, ClusterConfig, Leadership, Node, Seed};
//!
//! let advertise =
//!     Addresses { peer: "10.0.0.1:7100".into(), http: "10.0.0.1:8000".into(), grpc: "10.0.0.1:50051".into() };
//! let seeds = vec![Seed { id: 1, peer: advertise.peer.clone() }];
//! let (node, service) = Node::start(ClusterConfig::new(1, "data/raft", advertise, seeds)).await?;
//!
//! // One listener for all that replicas say to each other.
//! tokio::spawn(tonic::transport::Server::builder().add_service(service).serve("0.0.0.0:7100".parse()?));
//!
//! let mut leadership = node.leadership();
//! loop {
//!     match leadership.borrow_and_update().clone() {
//!         Leadership::Leading { epoch, .. } => println!("leading with epoch {epoch}"),
//!         Leadership::Following { leader } => println!("following {leader:?}"),
//!         Leadership::Stopped { reason, .. } => break println!("{reason}"),
//!     }
//!     leadership.changed().await?;
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # The interface
//!
//! | | |
//! | --- | --- |
//! | [`Node::start`] | opens the data, starts Raft, returns the node and its gRPC service |
//! | [`Node::leadership`] | watch channel of [`Leadership`]; `Leading` carries the epoch, the fencing token |
//! | [`Node::control`] | watch channel of the replicated [`ControlState`] |
//! | [`Node::status`] | [`ClusterStatus`] for people and probes |
//! | [`Node::propose`] | commits a [`ControlCommand`]; leader only |
//! | [`Node::add_member`], [`Node::remove_member`] | membership; leader only |
//! | [`Node::transfer`] | hands the leadership over |
//! | [`Node::shutdown`] | stops and releases the data directory |
//!
//! # Invariants
//!
//! - At most one leader per term; every published epoch belongs to one replica
//!   and is the log index of its committed claim.
//! - Vote, log, committed index and snapshot are on disk before they count.
//! - A replica without its log takes part only once others vouch that it is new.
//! - A removed id is never used again.

#![warn(clippy::expect_used, clippy::unwrap_used)]
#![allow(missing_docs, reason = "a field or an error variant says what it is by its name or its message")]

mod ambient;
mod codec;
mod config;
mod control;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod join;
mod leadership;
mod membership;
mod node;
mod raft;
#[cfg(any(test, feature = "simulation"))]
#[doc(hidden)]
pub mod simulation;
mod status;
mod store;
mod transport;

pub use codec::CodecError;
pub use config::{Addresses, ClusterConfig, ConfigError, Seed};
pub use control::{
    ControlCommand, ControlOutcome, ControlState, MAX_SETTING_KEY, MAX_SETTING_VALUE, MAX_SETTINGS,
};
pub use leadership::{Leader, Leadership, Quorum};
pub use membership::ChangeError;
pub use node::{Node, RaftServer, StartError, TransferError};
pub use status::{ClusterStatus, MemberStatus, Role};
pub use store::StoreError;
pub use transport::RaftService;
