//! What a replica is told about itself and its first peers.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tonic::transport::ClientTlsConfig;

/// Where a member can be reached, each as `host:port`. This is the node data
/// that Raft membership carries.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Addresses {
    /// The port that replicas speak to each other on.
    pub peer: String,
    /// The REST API.
    pub http: String,
    /// The worker protocol.
    pub grpc: String,
}

impl std::fmt::Display for Addresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "peer {} http {} grpc {}", self.peer, self.http, self.grpc)
    }
}

/// One first member: its id and the address of its peer port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seed {
    pub id: u64,
    pub peer: String,
}

/// Configuration of one replica.
#[derive(Clone)]
pub struct ClusterConfig {
    /// This replica's id, greater than 0. Never reuse the id of a replica whose
    /// data is gone.
    pub node_id: u64,
    /// Directory of the Raft log; created if missing, used by one process.
    pub data_dir: PathBuf,
    /// Where the other members and clients reach this replica.
    pub advertise: Addresses,
    /// The first members, the same list on each of them. A replica added later
    /// lists the members that it can ask and is not in the list itself.
    pub seeds: Vec<Seed>,
    /// How often the leader shows that it lives. Default 50 ms.
    pub heartbeat: Duration,
    /// Least and greatest silence before a member stands for election. A leader
    /// counts as gone after the greatest. Default 150 to 300 ms.
    pub election_timeout: (Duration, Duration),
    /// Longest time for sending a snapshot. Default 2 s.
    pub install_snapshot_timeout: Duration,
    /// A snapshot is taken after so many log entries. Default 1000.
    pub snapshot_every: u64,
    /// When set, peers must show the same secret.
    pub secret: Option<String>,
    /// When set, peers are reached by TLS with it. The listener is the caller's.
    pub tls: Option<ClientTlsConfig>,
}

/// Why a configuration can't be used; the text names the key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("cluster.node_id must be greater than 0")]
    NodeId,
    #[error("cluster.advertise.{key} must be host:port, got \"{value}\"")]
    Advertise { key: &'static str, value: String },
    #[error("cluster.seeds must name at least one member")]
    NoSeeds,
    #[error("cluster.seeds names member {0} twice")]
    DuplicateSeed(u64),
    #[error("cluster.seeds: the peer address of member {id} must be host:port, got \"{value}\"")]
    SeedAddress { id: u64, value: String },
    #[error("cluster.seeds: member ids must be greater than 0")]
    SeedId,
    #[error("cluster.heartbeat must be at least 5 ms")]
    Heartbeat,
    #[error(
        "cluster.election_timeout: the minimum must be at least twice cluster.heartbeat and less than the maximum"
    )]
    ElectionTimeout,
    #[error("cluster.install_snapshot_timeout must be greater than 0")]
    InstallSnapshotTimeout,
    #[error("cluster.snapshot_every must be greater than 0")]
    SnapshotEvery,
    #[error("cluster.secret must be 1 to 256 visible ASCII characters")]
    Secret,
    #[error("the Raft settings are refused: {0}")]
    Raft(String),
}

impl std::fmt::Debug for ClusterConfig {
    /// Without the secret and the private key, which must not reach a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterConfig")
            .field("node_id", &self.node_id)
            .field("data_dir", &self.data_dir)
            .field("advertise", &self.advertise)
            .field("seeds", &self.seeds)
            .field("heartbeat", &self.heartbeat)
            .field("election_timeout", &self.election_timeout)
            .finish_non_exhaustive()
    }
}

impl ClusterConfig {
    /// A configuration with the default timings.
    pub fn new(node_id: u64, data_dir: impl Into<PathBuf>, advertise: Addresses, seeds: Vec<Seed>) -> Self {
        ClusterConfig {
            node_id,
            data_dir: data_dir.into(),
            advertise,
            seeds,
            heartbeat: Duration::from_millis(50),
            election_timeout: (Duration::from_millis(150), Duration::from_millis(300)),
            install_snapshot_timeout: Duration::from_secs(2),
            snapshot_every: 1000,
            secret: None,
            tls: None,
        }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// The first value that can't be used, by its key.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.node_id == 0 {
            return Err(ConfigError::NodeId);
        }
        let advertised =
            [("peer", &self.advertise.peer), ("http", &self.advertise.http), ("grpc", &self.advertise.grpc)];
        for (key, value) in advertised {
            if !is_host_port(value) {
                return Err(ConfigError::Advertise { key, value: value.clone() });
            }
        }
        self.validate_seeds()?;
        if self.heartbeat < Duration::from_millis(5) {
            return Err(ConfigError::Heartbeat);
        }
        let (min, max) = self.election_timeout;
        if min < self.heartbeat * 2 || min >= max {
            return Err(ConfigError::ElectionTimeout);
        }
        if self.install_snapshot_timeout.is_zero() {
            return Err(ConfigError::InstallSnapshotTimeout);
        }
        if self.snapshot_every == 0 {
            return Err(ConfigError::SnapshotEvery);
        }
        let usable = |secret: &String| {
            (1..=256).contains(&secret.len()) && secret.bytes().all(|b| b.is_ascii_graphic())
        };
        if !self.secret.as_ref().is_none_or(usable) {
            return Err(ConfigError::Secret);
        }
        Ok(())
    }

    fn validate_seeds(&self) -> Result<(), ConfigError> {
        if self.seeds.is_empty() {
            return Err(ConfigError::NoSeeds);
        }
        let mut ids = BTreeSet::new();
        for seed in &self.seeds {
            if seed.id == 0 {
                return Err(ConfigError::SeedId);
            }
            if !ids.insert(seed.id) {
                return Err(ConfigError::DuplicateSeed(seed.id));
            }
            if !is_host_port(&seed.peer) {
                return Err(ConfigError::SeedAddress { id: seed.id, value: seed.peer.clone() });
            }
        }
        Ok(())
    }

    /// The silence after which a leader counts as gone.
    pub(crate) fn lease(&self) -> Duration {
        self.election_timeout.1
    }

    /// True for the one first member that may found the cluster.
    pub(crate) fn may_initialise(&self) -> bool {
        self.seeds.iter().map(|seed| seed.id).min() == Some(self.node_id)
    }

    /// openraft's own settings.
    pub(crate) fn raft(&self) -> Result<openraft::Config, ConfigError> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let config = openraft::Config {
            cluster_name: "cortex".to_owned(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_timeout.0),
            election_timeout_max: millis(self.election_timeout.1),
            install_snapshot_timeout: millis(self.install_snapshot_timeout),
            snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            max_in_snapshot_log_to_keep: self.snapshot_every / 2,
            enable_pre_vote: Some(true),
            // A leader that comes back must be elected again: its word of before
            // the restart proves nothing.
            enable_leader_restore: Some(false),
            ..openraft::Config::default()
        };
        config.validate().map_err(|error| ConfigError::Raft(error.to_string()))
    }
}

fn is_host_port(value: &str) -> bool {
    value
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raft_keeps_the_configured_times() {
        let peer = "127.0.0.1:1".to_owned();
        let advertise = Addresses { peer: peer.clone(), http: peer.clone(), grpc: peer.clone() };
        let config = ClusterConfig {
            heartbeat: Duration::from_millis(100),
            election_timeout: (Duration::from_millis(300), Duration::from_millis(600)),
            ..ClusterConfig::new(1, "/data", advertise, vec![Seed { id: 1, peer }])
        };
        let raft = config.raft().unwrap();
        assert_eq!(raft.heartbeat_interval, 100);
        assert_eq!((raft.election_timeout_min, raft.election_timeout_max), (300, 600));
        assert_eq!(config.lease(), Duration::from_millis(600));
    }
}
