//! The types that openraft is instantiated with.

use openraft::type_config::alias;

use crate::config::Addresses;
use crate::control::{ControlCommand, ControlOutcome};
use crate::store::StateMachine;

openraft::declare_raft_types!(
    /// Standard Raft: at most one leader per term.
    pub(crate) Types:
        D = ControlCommand,
        R = ControlOutcome,
        NodeId = u64,
        Node = Addresses,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = crate::ambient::Runtime,
);

pub(crate) type Raft = openraft::Raft<Types, StateMachine>;
pub(crate) type LogId = alias::LogIdOf<Types>;
pub(crate) type Vote = alias::VoteOf<Types>;
pub(crate) type Entry = alias::EntryOf<Types>;
pub(crate) type StoredMembership = alias::StoredMembershipOf<Types>;
pub(crate) type SnapshotMeta = alias::SnapshotMetaOf<Types>;
pub(crate) type Snapshot = alias::SnapshotOf<Types, Vec<u8>>;
pub(crate) type Metrics = openraft::RaftMetrics<Types>;
pub(crate) type Role = openraft::metrics::RaftServerMetrics<Types>;
