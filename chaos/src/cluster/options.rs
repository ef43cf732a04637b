//! How the cluster under test is put together.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use cortex::dev::{DevCluster, PortBlock, Postgres, PostgresOptions, Redis, RedisOptions, ReplicaOptions};

use super::QUEUE;
use super::diallers::{by_process, replica_of_process};
use super::namespaces::{self, Namespaces};
use super::network::{End, Network, NetworkKind, Places};
use super::relays::Relays;

/// Why something cannot go on: said in one line.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Options of a cluster under test.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Number of replicas.
    pub replicas: u16,
    /// `dotted.key=value` for every replica.
    pub overrides: Vec<String>,
    /// Added to the environment of every replica.
    pub environment: Vec<(String, String)>,
    /// How replicas and stores reach each other.
    pub network: NetworkKind,
    /// Where the randomness of the network between them comes from.
    pub seed: u64,
}

/// What was started.
pub(super) struct Started {
    pub(super) postgres: Postgres,
    pub(super) redis: Redis,
    pub(super) network: Network,
    pub(super) replicas: DevCluster,
    pub(super) ports: Vec<PortBlock>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            replicas: 3,
            overrides: Vec::new(),
            environment: Vec::new(),
            network: NetworkKind::default(),
            seed: 0,
        }
    }
}

impl ClusterOptions {
    /// Stores first, then the network, then the replicas, which reach everything through it alone.
    pub(super) async fn start(self, folder: &Path) -> Result<Started, Error> {
        std::fs::create_dir_all(folder)?;
        if self.network == NetworkKind::Namespaces {
            namespaces::create(self.replicas).await?;
        }
        let stores = PortBlock::reserve(2)?;
        let redis_options = RedisOptions {
            data_dir: folder.join("redis"),
            log: folder.join("redis.log"),
            port: stores.first() + 1,
        };
        let postgres_options = PostgresOptions {
            data_dir: folder.join("postgres"),
            log: folder.join("postgres.log"),
            port: stores.first(),
            settings: Vec::new(),
        };
        let (postgres, redis) =
            tokio::try_join!(Postgres::start(postgres_options), Redis::start(redis_options))?;
        let reserve = || PortBlock::reserve(self.replicas);
        let blocks = [reserve()?, reserve()?, reserve()?];
        let [http, grpc, peer] = blocks.each_ref().map(PortBlock::first);
        let (network, places) = self.connect(stores.first(), peer).await?;
        let at = |end| places.get(&end).copied().ok_or("a place is missing");
        let mut builder = DevCluster::builder(folder.join("cluster"))
            .replicas(self.replicas)
            .workers(0)
            .ports(http, grpc, peer)
            .require_auth(true)
            .database_url(Some(format!("postgres://cortex@{}/cortex", at(End::Postgres)?)))
            .redis_url(Some(format!("redis://{}", at(End::Redis)?)))
            .set(format!("queue.queue_prefix={QUEUE}"));
        for index in 0..self.replicas {
            let mut options = ReplicaOptions {
                advertised_peer: Some(at(End::Replica(index.into()))?),
                ..ReplicaOptions::default()
            };
            if self.network == NetworkKind::Namespaces {
                options.host = Some(namespaces::address(index));
                options.wrapper = namespaces::wrapper(index);
            }
            builder = builder.replica(index, options);
        }
        for text in self.overrides {
            builder = builder.set(text);
        }
        for (name, value) in self.environment {
            builder = builder.env(name, value);
        }
        let replicas = builder.start().await?;
        let ports = blocks.into_iter().chain([stores]).collect();
        Ok(Started { postgres, redis, network, replicas, ports })
    }

    /// Puts up the network, and says where replicas dial each end.
    async fn connect(&self, stores: u16, peer: u16) -> Result<(Network, Places), Error> {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let host = |index| match self.network {
            NetworkKind::Loopback => Ipv4Addr::LOCALHOST.into(),
            NetworkKind::Namespaces => namespaces::address(index),
        };
        let peers = (0..self.replicas)
            .map(|index| (End::Replica(index.into()), SocketAddr::from((host(index), peer + index))));
        let mut listening: Places = peers.collect();
        listening.insert(End::Postgres, local(stores));
        listening.insert(End::Redis, local(stores + 1));
        match self.network {
            NetworkKind::Loopback => {
                let replicas = self.replicas;
                let dialler = by_process(move |pid| replica_of_process(pid, peer, replicas));
                let relays =
                    Relays::start(Ipv4Addr::LOCALHOST.into(), &listening, dialler, self.seed).await?;
                let places = relays.places();
                Ok((Network::Loopback(relays), places))
            }
            NetworkKind::Namespaces => {
                let dialler = namespaces::by_address(self.replicas);
                let relays = Relays::start(namespaces::hub(), &listening, dialler, self.seed).await?;
                let mut places = relays.places();
                places.extend(listening.into_iter().filter(|(end, _)| matches!(end, End::Replica(_))));
                let namespaces = Namespaces::start(self.replicas, places.clone(), relays).await?;
                Ok((Network::Namespaces(namespaces), places))
            }
        }
    }
}
