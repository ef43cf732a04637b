//! The edges between replicas and stores, and what can be done to them.

use std::time::Duration;

/// Where an edge leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum End {
    /// The peer port of the replica with this index.
    Replica(usize),
    /// PostgreSQL.
    Postgres,
    /// Redis.
    Redis,
}

/// An edge: who dials, and whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Link {
    /// Index of the replica that dials.
    pub from: usize,
    /// Whom it dials.
    pub to: End,
}

/// What is the matter with an edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    Open,
    /// Nothing comes through either way; connections stay.
    Cut,
    /// What the dialler says is held back, what it is told comes through.
    Deaf,
    /// What the dialler says comes through, what it is told is held back.
    Mute,
    /// Whatever is said takes so much longer, either way.
    Slow(Duration),
    /// What is asked is carried out; the answer is thrown away and the connection broken.
    LoseReplies,
}

impl Link {
    /// Both edges between two replicas.
    pub fn between(one: usize, other: usize) -> [Self; 2] {
        [Self { from: one, to: End::Replica(other) }, Self { from: other, to: End::Replica(one) }]
    }
}
