//! What a replica can say about itself and its cluster, for people and probes.
//!
//! These views are the public shape of `/health` and `/cluster`. Whoever puts the process together fills
//! them from the stores and from Raft; the API only shows them.

use futures::future::BoxFuture;
use serde::Serialize;

/// Looks at the parts that a replica stands on.
pub trait Inspect: Send + Sync + 'static {
    /// Asks PostgreSQL, Redis and Raft how they are. Bounded: a store that does not answer soon is down.
    fn health(&self) -> BoxFuture<'_, Health>;

    /// Whether this process can still do its work, whatever the stores do: its Raft core runs. Asks
    /// nobody, so that a liveness probe never waits for a store.
    fn alive(&self) -> bool;

    /// Whether this replica was removed from its cluster, and so serves nobody any more. Asks nobody.
    fn removed(&self) -> bool;

    /// The cluster as this replica sees it.
    fn cluster(&self) -> ClusterView;
}

/// One part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Component {
    /// Whether it can be used.
    pub ok: bool,
    /// What is wrong, or worth knowing. Public: no addresses with credentials, no causes from drivers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

impl Component {
    /// A part that works.
    pub fn up() -> Self {
        Self { ok: true, detail: None }
    }

    /// A part that does not, and why.
    pub fn down(detail: impl Into<String>) -> Self {
        Self { ok: false, detail: Some(detail.into()) }
    }
}

/// The state of a replica's parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Health {
    /// The truth.
    pub postgres: Component,
    /// The ready queue.
    pub redis: Component,
    /// Whether the Raft core runs and a leader is known.
    pub raft: Component,
    /// What this replica does in the group.
    pub role: Role,
    /// The leader, if one is known.
    pub leader: Option<u64>,
}

/// A replica's health in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// All parts work.
    Ok,
    /// Requests are answered; jobs wait, because the ready queue is down.
    Degraded,
    /// Requests cannot be answered.
    Unavailable,
}

impl Health {
    /// The parts taken together. Redis can be lost without losing a request or a job.
    pub fn condition(&self) -> Condition {
        match (self.postgres.ok && self.raft.ok, self.redis.ok) {
            (false, _) => Condition::Unavailable,
            (true, false) => Condition::Degraded,
            (true, true) => Condition::Ok,
        }
    }
}

/// What a member does in the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Writes are carried out here.
    Leader,
    /// Stands for election just now.
    Candidate,
    /// Follows and votes.
    Follower,
    /// Follows without a vote.
    Learner,
}

/// The cluster as one replica sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct ClusterView {
    /// The replica that answers.
    pub id: u64,
    /// The cluster's identity, once it has one.
    pub cluster_id: Option<String>,
    /// The leader, if one is known.
    pub leader: Option<u64>,
    /// The Raft term.
    pub term: u64,
    /// The newest leader's fencing token.
    pub epoch: u64,
    /// What the answering replica does.
    pub role: Role,
    /// All members, by id.
    pub members: Vec<MemberView>,
}

/// One replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct MemberView {
    /// Greater than 0.
    pub id: u64,
    /// What it does.
    pub role: Role,
    /// Its listener for other replicas, `host:port`.
    pub peer: String,
    /// Its REST listener, `host:port`.
    pub http: String,
    /// Its listener for workers, `host:port`.
    pub grpc: String,
    /// Milliseconds since it last answered the leader; only the leader knows.
    pub last_contact_ms: Option<u64>,
    /// Log entries that it lacks; only the leader knows.
    pub log_lag: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losing_redis_degrades_and_losing_the_truth_or_the_group_is_fatal() {
        let healthy = Health {
            postgres: Component::up(),
            redis: Component::up(),
            raft: Component::up(),
            role: Role::Follower,
            leader: Some(1),
        };
        assert_eq!(healthy.condition(), Condition::Ok);
        let no_redis = Health { redis: Component::down("no answer"), ..healthy.clone() };
        assert_eq!(no_redis.condition(), Condition::Degraded);
        let no_postgres = Health { postgres: Component::down("no answer"), ..no_redis };
        assert_eq!(no_postgres.condition(), Condition::Unavailable);
        let no_leader = Health { raft: Component::down("no leader"), ..healthy };
        assert_eq!(no_leader.condition(), Condition::Unavailable);
    }
}
