//! What all replicas agree on through Raft: who they are, and what is paused.
//!
//! Whoever puts the process together implements [`Control`] over the group; use cases know no more of it.

use std::sync::Arc;

use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};

use super::error::ServiceError;
use crate::domain::pause::Paused;

/// A change that is committed by the group of replicas, not by PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Holds back the jobs of one model, or all jobs.
    Pause(Option<String>),
    /// Lets the jobs of one model go on, or ends every pause.
    Resume(Option<String>),
    /// Takes a running replica in.
    AddMember(NewMember),
    /// Takes a replica out for good.
    RemoveMember(u64),
    /// Lets another replica lead: this one, or the one that is best prepared.
    Transfer(Option<u64>),
}

/// A replica that is to join, with its addresses as `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewMember {
    /// Greater than 0, never used before.
    pub id: u64,
    /// Its listener for other replicas.
    pub peer: String,
    /// Its REST listener; empty until it says so itself.
    pub http: String,
    /// Its listener for workers; empty until it says so itself.
    pub grpc: String,
}

/// What came of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Changed {
    /// What is paused now.
    Pauses(Paused),
    /// The replica votes; whether it did not before.
    Added(bool),
    /// The replica is a member no more.
    Removed,
    /// Who leads now.
    Leads(u64),
}

/// The part of a replica in the group.
pub trait Control: Send + Sync + 'static {
    /// What is paused, as far as this replica knows; a leader knows all that was committed. Asks nobody, and is
    /// cheap enough for every batch.
    fn paused(&self) -> Arc<Paused>;

    /// Carries a change out, on the leader alone. Dropping the future does not take it back.
    fn change(&self, change: Change) -> BoxFuture<'_, Result<Changed, ServiceError>>;

    /// The leader, if one is known.
    fn leader(&self) -> Option<u64>;

    /// Waits a little while until somebody other than `former` leads.
    fn leader_after(&self, former: Option<u64>) -> BoxFuture<'_, Option<u64>>;
}
