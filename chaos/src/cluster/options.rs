//! How the cluster under test is put together.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use cortex::dev::{DevCluster, PortBlock, Postgres, PostgresOptions, Redis, RedisOptions, ReplicaOptions};

use super::QUEUE;
use super::network::End;
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
}

/// What was started.
pub(super) struct Started {
    pub(super) postgres: Postgres,
    pub(super) redis: Redis,
    pub(super) relays: Relays,
    pub(super) replicas: DevCluster,
    pub(super) ports: Vec<PortBlock>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self { replicas: 3, overrides: Vec::new(), environment: Vec::new() }
    }
}

impl ClusterOptions {
    /// Stores first, then the relays in front of everything, then the replicas, which know the relays alone.
    pub(super) async fn start(self, folder: &Path) -> Result<Started, Error> {
        std::fs::create_dir_all(folder)?;
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
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut destinations =
            vec![(End::Postgres, local(stores.first())), (End::Redis, local(stores.first() + 1))];
        destinations
            .extend((0..self.replicas).map(|index| (End::Replica(index.into()), local(peer + index))));
        let relays = Relays::start(&destinations).await?;

        let at = |end| relays.address(end).ok_or("a relay is missing");
        let mut builder = DevCluster::builder(folder.join("cluster"))
            .replicas(self.replicas)
            .workers(0)
            .ports(http, grpc, peer)
            .require_auth(true)
            .database_url(Some(format!("postgres://cortex@{}/cortex", at(End::Postgres)?)))
            .redis_url(Some(format!("redis://{}", at(End::Redis)?)))
            .set(format!("queue.queue_prefix={QUEUE}"));
        for index in 0..self.replicas {
            let advertised_peer = Some(at(End::Replica(index.into()))?);
            builder = builder.replica(index, ReplicaOptions { advertised_peer, ..ReplicaOptions::default() });
        }
        for text in self.overrides {
            builder = builder.set(text);
        }
        for (name, value) in self.environment {
            builder = builder.env(name, value);
        }
        let replicas = builder.start().await?;
        let ports = blocks.into_iter().chain([stores]).collect();
        Ok(Started { postgres, redis, relays, replicas, ports })
    }
}
