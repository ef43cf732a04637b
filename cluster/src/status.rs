//! What a replica can say about its cluster, for people and probes.

use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, ServerState};
use serde::Serialize;
use uuid::Uuid;

use crate::config::Addresses;
use crate::control::ControlState;
use crate::leadership::Leadership;
use crate::raft::Metrics;

/// The cluster as one replica sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClusterStatus {
    pub node_id: u64,
    pub cluster_id: Option<Uuid>,
    /// The leader, when one was heard within its lease.
    pub leader: Option<u64>,
    pub term: u64,
    /// Of the newest leader that this replica knows of.
    pub epoch: u64,
    pub role: Role,
    pub last_log_index: Option<u64>,
    pub committed_index: Option<u64>,
    pub applied_index: Option<u64>,
    pub members: Vec<MemberStatus>,
    /// False once the Raft core has ended.
    pub running: bool,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberStatus {
    pub id: u64,
    pub addresses: Addresses,
    pub role: Role,
    /// Milliseconds since it last answered; known to the leader alone.
    pub last_contact_ms: Option<u64>,
    /// Log entries it lacks; known to the leader alone.
    pub log_lag: Option<u64>,
}

/// What a member does in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Leader,
    /// Stands for election just now; only ever the replica that reports.
    Candidate,
    Voter,
    Learner,
}

pub(crate) fn status(metrics: &Metrics, control: &ControlState, leadership: &Leadership) -> ClusterStatus {
    let leader = match leadership {
        Leadership::Leading { .. } => Some(metrics.id),
        Leadership::Following { leader } => leader.as_ref().map(|leader| leader.id),
        Leadership::Stopped { .. } => None,
    };
    let running = metrics.running_state.is_ok() && !matches!(leadership, Leadership::Stopped { .. });
    let membership = metrics.membership_config.membership();
    let role_of = |id: u64| {
        if leader == Some(id) {
            Role::Leader
        } else if membership.voter_ids().any(|voter| voter == id) {
            Role::Voter
        } else {
            Role::Learner
        }
    };
    let members =
        membership.nodes().map(|(id, addresses)| member(*id, addresses, role_of(*id), metrics)).collect();
    let candidate = running && metrics.state == ServerState::Candidate;
    ClusterStatus {
        node_id: metrics.id,
        cluster_id: control.cluster_id,
        leader,
        term: metrics.current_term,
        epoch: control.epoch,
        role: if candidate { Role::Candidate } else { role_of(metrics.id) },
        last_log_index: metrics.last_log_index,
        committed_index: metrics.local_committed.map(|id| id.index),
        applied_index: metrics.last_applied.map(|id| id.index),
        members,
        running,
    }
}

fn member(id: u64, addresses: &Addresses, role: Role, metrics: &Metrics) -> MemberStatus {
    let last_contact = metrics.heartbeat.as_ref().and_then(|all| all.get(&id)).copied().flatten();
    let last_contact_ms = match &metrics.heartbeat {
        Some(_) if id == metrics.id => Some(0),
        _ => last_contact.map(|at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX)),
    };
    let next = metrics.last_log_index.map_or(0, |index| index + 1);
    let log_lag = metrics
        .replication
        .as_ref()
        .and_then(|all| all.get(&id))
        .map(|matched| next.saturating_sub(matched.map_or(0, |matched| matched.index + 1)));
    MemberStatus { id, addresses: addresses.clone(), role, last_contact_ms, log_lag }
}

/// The newest metrics.
pub(crate) fn current(raft: &crate::raft::Raft) -> Metrics {
    raft.metrics().borrow_watched().clone()
}
