//! The edges between replicas and stores, and what can be done to them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::namespaces::Namespaces;
use super::relays::Relays;

/// How replicas and stores reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NetworkKind {
    /// Through relays on loopback.
    #[default]
    Loopback,
    /// Each replica has a network namespace of its own; packets are dropped by the kernel. Needs root.
    Namespaces,
}

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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
    /// Whatever is said takes `delay` longer, and up to `jitter` more, either way.
    Slow {
        /// At the least.
        delay: Duration,
        /// Beyond that, at the most.
        jitter: Duration,
    },
    /// So many packets in a hundred are lost, either way, and sent again by TCP.
    Lossy(u64),
    /// What is asked is carried out; the answer is thrown away and the connection broken.
    LoseReplies,
}

/// The network between replicas and stores, of either kind.
pub(super) enum Network {
    /// Through relays.
    Loopback(Relays),
    /// Through the kernel, and through relays for what packet filters cannot do.
    Namespaces(Namespaces),
}

impl NetworkKind {
    /// The kind with this name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Loopback, Self::Namespaces].into_iter().find(|kind| kind.name() == name)
    }

    /// As `--network` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Namespaces => "netns",
        }
    }
}

impl Link {
    /// Both edges between two replicas.
    pub fn between(one: usize, other: usize) -> [Self; 2] {
        [Self { from: one, to: End::Replica(other) }, Self { from: other, to: End::Replica(one) }]
    }

    /// Both edges between two replicas, in the condition in which nothing that `speaker` says reaches `hearer`.
    pub fn silenced(speaker: usize, hearer: usize) -> [(Self, Condition); 2] {
        let [dialled, answered] = Self::between(speaker, hearer);
        [(dialled, Condition::Deaf), (answered, Condition::Mute)]
    }
}

impl Network {
    pub(super) async fn set(&self, link: Link, condition: Condition) -> Result<(), String> {
        match self {
            Self::Loopback(relays) => relays.set(link, condition),
            Self::Namespaces(namespaces) => namespaces.set(link, condition).await?,
        }
        Ok(())
    }

    pub(super) async fn reset(&self, link: Link) -> Result<(), String> {
        match self {
            Self::Loopback(relays) => relays.reset(link),
            Self::Namespaces(namespaces) => namespaces.reset(link).await?,
        }
        Ok(())
    }

    pub(super) async fn affected(&self, link: Link) -> Result<u64, String> {
        match self {
            Self::Loopback(relays) => Ok(relays.affected(link)),
            Self::Namespaces(namespaces) => namespaces.affected(link).await,
        }
    }
}

/// Where each end listens, and where it is dialled.
pub(super) type Places = BTreeMap<End, SocketAddr>;
