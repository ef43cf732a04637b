//! The replicated control state: who the cluster is and the few settings that
//! every replica must agree on. Pure; it never carries jobs.
//!
//! Invariants: the cluster id is set once and never changes; the epoch only
//! grows; an id that was removed stays removed.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Longest key of a setting, in bytes.
pub const MAX_SETTING_KEY: usize = 2 * 1024;
/// Longest value of a setting, in bytes.
pub const MAX_SETTING_VALUE: usize = 4 * 1024;
/// Most settings.
pub const MAX_SETTINGS: usize = 1024;

/// What all members agree on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlState {
    /// Given by the first leader ever.
    pub cluster_id: Option<Uuid>,
    /// Log index of the newest committed `LeaderEpoch`; 0 before the first.
    pub epoch: u64,
    /// Who proposed that entry; 0 before the first.
    pub epoch_leader: u64,
    /// Members whose log was seen to be durable. One of them that comes back
    /// without its log has lost its votes and is refused.
    pub joined: BTreeSet<u64>,
    /// Ids that may never be used again.
    pub removed: BTreeSet<u64>,
    /// Settings changed at run time, by key.
    pub settings: BTreeMap<String, String>,
}

/// A change of the control state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlCommand {
    /// The proposer leads; the index of this entry is its epoch. The cluster id
    /// counts only in the very first one.
    LeaderEpoch { cluster_id: Uuid, leader_id: u64 },
    /// The log of this member is durable.
    Joined { node_id: u64 },
    /// This id left the cluster for good.
    Removed { node_id: u64 },
    /// Sets a setting.
    Set { key: String, value: String },
    /// Forgets a setting.
    Unset { key: String },
}

impl std::fmt::Display for ControlCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            ControlCommand::LeaderEpoch { leader_id, .. } => {
                write!(f, "leader epoch of member {leader_id}")
            }
            ControlCommand::Joined { node_id } => write!(f, "member {node_id} joined"),
            ControlCommand::Removed { node_id } => write!(f, "member {node_id} removed"),
            ControlCommand::Set { key, .. } => write!(f, "set {key}"),
            ControlCommand::Unset { key } => write!(f, "unset {key}"),
        }
    }
}

/// What became of a committed command, the same on every member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlOutcome {
    /// It took effect; carries the cluster id after it.
    Applied { cluster_id: Option<Uuid> },
    /// It was committed and changed nothing.
    Refused { reason: String },
}

impl ControlState {
    /// Applies one committed command at its log index.
    pub fn apply(&mut self, index: u64, command: &ControlCommand) -> ControlOutcome {
        match command {
            ControlCommand::LeaderEpoch { cluster_id, leader_id } => {
                self.cluster_id.get_or_insert(*cluster_id);
                self.epoch = index;
                self.epoch_leader = *leader_id;
            }
            ControlCommand::Joined { node_id } => {
                if self.removed.contains(node_id) {
                    return refused(format!("member {node_id} was removed"));
                }
                self.joined.insert(*node_id);
            }
            ControlCommand::Removed { node_id } => {
                self.joined.remove(node_id);
                self.removed.insert(*node_id);
            }
            ControlCommand::Set { key, value } => {
                if key.is_empty() || key.len() > MAX_SETTING_KEY || value.len() > MAX_SETTING_VALUE {
                    return refused(format!("the setting is too large or has no key: \"{key:.64}\""));
                }
                if self.settings.len() >= MAX_SETTINGS && !self.settings.contains_key(key) {
                    return refused(format!("there are {MAX_SETTINGS} settings already"));
                }
                self.settings.insert(key.clone(), value.clone());
            }
            ControlCommand::Unset { key } => {
                self.settings.remove(key);
            }
        }
        ControlOutcome::Applied { cluster_id: self.cluster_id }
    }
}

fn refused(reason: String) -> ControlOutcome {
    ControlOutcome::Refused { reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_cluster_id_wins_and_the_epoch_is_the_index() {
        let mut state = ControlState::default();
        let (first, second) = (Uuid::from_u128(1), Uuid::from_u128(2));
        state.apply(2, &ControlCommand::LeaderEpoch { cluster_id: first, leader_id: 1 });
        let outcome = state.apply(9, &ControlCommand::LeaderEpoch { cluster_id: second, leader_id: 3 });
        assert_eq!(outcome, ControlOutcome::Applied { cluster_id: Some(first) });
        assert_eq!((state.cluster_id, state.epoch, state.epoch_leader), (Some(first), 9, 3));
    }

    #[test]
    fn a_removed_id_never_joins_again() {
        let mut state = ControlState::default();
        state.apply(1, &ControlCommand::Removed { node_id: 4 });
        let outcome = state.apply(2, &ControlCommand::Joined { node_id: 4 });
        assert!(matches!(outcome, ControlOutcome::Refused { .. }));
        assert!(!state.joined.contains(&4) && state.removed.contains(&4));
    }

    #[test]
    fn settings_are_bounded() {
        let mut state = ControlState::default();
        let mut set = |key: String, value: String| state.apply(1, &ControlCommand::Set { key, value });
        for number in 0..MAX_SETTINGS {
            assert!(matches!(set(number.to_string(), String::new()), ControlOutcome::Applied { .. }));
        }
        assert!(matches!(set("one more".into(), String::new()), ControlOutcome::Refused { .. }));
        assert!(matches!(set("0".into(), "x".repeat(MAX_SETTING_VALUE)), ControlOutcome::Applied { .. }));
        assert!(matches!(set("0".into(), "x".repeat(MAX_SETTING_VALUE + 1)), ControlOutcome::Refused { .. }));
    }
}
