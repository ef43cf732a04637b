//! The cluster under test: replicas as processes, their stores, and the network between them.

mod diallers;
mod members;
mod namespaces;
mod network;
mod options;
mod relays;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::PoisonError;
use std::time::Duration;

use cortex::dev::{DevCluster, PortBlock, Postgres, Redis, Signal};
use cortex::security::Role;
use serde::Deserialize;
use sqlx::PgPool;
use tokio::sync::{Mutex, RwLock};
use tokio::time::{Instant, sleep};

use crate::history::{RedisState, View};

pub(crate) use members::log_in;
pub use namespaces::{enter as enter_network, keep_mounts};
use network::Network;
pub use network::{Condition, End, Link, NetworkKind};
use options::Started;
pub use options::{ClusterOptions, Error};

/// Time between two looks while waiting.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Longest wait for anything that must come about: long enough for a strike at something else, which may be under way
/// at the same time, to be over and done with.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// Prefix of all keys in Redis.
pub const QUEUE: &str = "cortex";

/// The name of one of the ready queue's keys.
pub fn queue_key(name: &str) -> String {
    format!("{QUEUE}:{{{QUEUE}}}:{name}")
}

/// Replicas, stores and the network.
pub struct Cluster {
    /// The replicas, addressed by index, from 0; their ids count from 1.
    pub replicas: RwLock<DevCluster>,
    /// PostgreSQL itself, to be struck.
    pub postgres: Mutex<Postgres>,
    /// Redis itself, to be struck.
    pub redis: Mutex<Redis>,
    /// Looks at the database past the relays; nothing that a replica does depends on it.
    pub pool: PgPool,
    /// Looks at Redis past the relays.
    pub redis_client: redis::Client,
    /// A client without retries and without a token.
    pub http: reqwest::Client,
    network: Network,
    /// Of REST and gRPC, by index; replicas that come later are added.
    addresses: std::sync::RwLock<Vec<(SocketAddr, SocketAddr)>>,
    founders: usize,
    folder: PathBuf,
    tokens: Tokens,
    _ports: Vec<PortBlock>,
}

/// A token for every role.
pub struct Tokens {
    /// May do everything.
    pub admin: String,
    /// May submit, cancel, retry.
    pub submitter: String,
    /// May look.
    pub viewer: String,
    /// May work.
    pub worker: String,
}

#[derive(Deserialize)]
struct ClusterView {
    id: u64,
    role: String,
    leader: Option<u64>,
    term: u64,
    epoch: u64,
}

impl Cluster {
    /// Starts everything in an empty folder, and waits until it serves.
    ///
    /// # Errors
    /// When a store or a replica does not come up.
    pub async fn start(folder: &Path, options: ClusterOptions) -> Result<Self, Error> {
        let Started { postgres, redis, network, replicas, ports } = options.start(folder).await?;
        let tokens = Tokens::read(replicas.tokens().ok_or("tokens were not made")?)?;
        let founders = replicas.size();
        let addresses: Vec<_> =
            (0..founders).map(|index| (replicas.http(index), replicas.grpc(index))).collect();
        let pool = sqlx::postgres::PgPoolOptions::new().max_connections(4).connect(&postgres.url()).await?;
        sqlx::raw_sql(include_str!("witness.sql")).execute(&pool).await?;
        let redis_client = redis::Client::open(redis.url())?;
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(15)).build()?;
        Ok(Self {
            replicas: RwLock::new(replicas),
            postgres: Mutex::new(postgres),
            redis: Mutex::new(redis),
            pool,
            redis_client,
            http,
            network,
            addresses: addresses.into(),
            founders,
            folder: folder.to_owned(),
            tokens,
            _ports: ports,
        })
    }

    /// Number of replicas that clients know: those of the beginning.
    pub fn size(&self) -> usize {
        self.founders
    }

    /// REST address of a replica.
    pub fn rest(&self, index: usize) -> SocketAddr {
        self.addresses(index).0
    }

    /// gRPC URL of a replica.
    pub fn grpc(&self, index: usize) -> String {
        format!("http://{}", self.addresses(index).1)
    }

    fn addresses(&self, index: usize) -> (SocketAddr, SocketAddr) {
        self.addresses.read().unwrap_or_else(PoisonError::into_inner)[index]
    }

    /// The tokens.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Where its data, logs and configuration are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Process id of a replica while it runs.
    pub async fn pid(&self, index: usize) -> Option<u32> {
        self.replicas.read().await.pid(index)
    }

    /// How the process of a replica ended, if it has.
    pub async fn exit(&self, index: usize) -> Option<ExitStatus> {
        let replicas = self.replicas.read().await;
        match replicas.pid(index) {
            Some(_) => None,
            None => replicas.wait_for_exit(index).await,
        }
    }

    /// The logs of all replicas, in the order of their indices.
    pub async fn logs(&self) -> Vec<PathBuf> {
        let replicas = self.replicas.read().await;
        (0..replicas.size()).map(|index| replicas.log(index).to_owned()).collect()
    }

    /// Index of the leader, as most replicas see it.
    pub async fn leader(&self) -> Option<usize> {
        self.replicas.read().await.leader().await
    }

    /// Waits for a leader, other than `not`.
    ///
    /// # Errors
    /// When there is none in time.
    pub async fn leader_other_than(&self, not: Option<usize>) -> Result<usize, String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // A look at a time: who starts the replica again that is waited for needs the lock, too.
            let looked = self.replicas.read().await.wait_for_leader(not, Duration::ZERO).await;
            match looked {
                Ok(leader) => return Ok(leader),
                Err(_) if Instant::now() > deadline => {
                    return Err(format!("no leader within {} s", PATIENCE.as_secs()));
                }
                Err(_) => sleep(LOOK_EVERY).await,
            }
        }
    }

    /// Sends a signal to a replica; answers whether it was there to take it.
    pub async fn signal(&self, index: usize, signal: Signal) -> bool {
        self.replicas.read().await.kill(index, signal)
    }

    /// Kills a replica the hard way and waits for its end.
    pub async fn kill(&self, index: usize) -> bool {
        let replicas = self.replicas.read().await;
        let there = replicas.kill(index, Signal::SIGKILL);
        replicas.wait_for_exit(index).await;
        there
    }

    /// Starts a replica again, killing it first if it runs, and waits until it is ready.
    ///
    /// # Errors
    /// When it cannot be started or is not ready in time.
    pub async fn revive(&self, index: usize) -> Result<(), String> {
        self.restart(index).await?;
        let ready = || async move { self.replicas.read().await.is_ready(index).await };
        self.until("the replica is ready again", ready).await
    }

    /// Starts a replica again, killing it first if it runs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn restart(&self, index: usize) -> Result<(), String> {
        let mut replicas = self.replicas.write().await;
        replicas.restart(index).await.map_err(|error| error.to_string())
    }

    /// Puts an edge of the network into a condition.
    ///
    /// # Errors
    /// When the kernel's packet filter refuses.
    pub async fn set(&self, link: Link, condition: Condition) -> Result<(), String> {
        self.network.set(link, condition).await
    }

    /// Breaks all connections of an edge.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn reset(&self, link: Link) -> Result<(), String> {
        self.network.reset(link).await
    }

    /// How often the conditions of these edges have done anything.
    ///
    /// # Errors
    /// When the kernel's packet filter does not say.
    pub async fn affected(&self, links: &[Link]) -> Result<u64, String> {
        let mut sum = 0;
        for link in links {
            sum += self.network.affected(*link).await?;
        }
        Ok(sum)
    }

    /// What a replica says of the group; `None` if it does not answer within a second.
    pub async fn view(&self, index: usize) -> Option<View> {
        let within = Duration::from_secs(1);
        let get = |path: &str| {
            let url = format!("http://{}{path}", self.rest(index));
            self.http.get(url).bearer_auth(&self.tokens.admin).timeout(within).send()
        };
        // The index is read first: it may only be older than the rest.
        let metrics = get("/metrics").await.ok()?.text().await.ok()?;
        let applied = value_of(&metrics, "cortex_raft_applied_index").map(|value| value.parse().unwrap_or(0));
        let view: ClusterView = get("/api/v1/cluster").await.ok()?.json().await.ok()?;
        let ClusterView { id, role, leader, term, epoch } = view;
        Some(View { id, role, leader, term, epoch: Some(epoch), applied })
    }

    /// The value of a metric without labels.
    pub async fn metric(&self, index: usize, name: &str) -> Option<f64> {
        let url = format!("http://{}/metrics", self.rest(index));
        let answer = self.http.get(url).bearer_auth(&self.tokens.admin).timeout(Duration::from_secs(2));
        let text = answer.send().await.ok()?.text().await.ok()?;
        value_of(&text, name)?.parse().ok()
    }

    /// Waits until something holds.
    ///
    /// # Errors
    /// When it does not come about.
    pub async fn until<F: Future<Output = bool> + Send>(
        &self,
        what: &str,
        mut holds: impl FnMut() -> F + Send,
    ) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        while !holds().await {
            if Instant::now() > deadline {
                return Err(format!("still not so after {} s: {what}", PATIENCE.as_secs()));
            }
            sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Types and lengths of everything that the ready queue has in Redis.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn redis_state(&self) -> Result<RedisState, redis::RedisError> {
        let mut connection = self.redis_client.get_multiplexed_async_connection().await?;
        let keys: Vec<String> =
            redis::cmd("KEYS").arg(format!("{QUEUE}:*")).query_async(&mut connection).await?;
        let mut state = RedisState::default();
        for key in keys {
            let kind: String = redis::cmd("TYPE").arg(&key).query_async(&mut connection).await?;
            let count = match kind.as_str() {
                "zset" => "ZCARD",
                "hash" => "HLEN",
                _ => "STRLEN",
            };
            let length = redis::cmd(count).arg(&key).query_async(&mut connection).await?;
            state.keys.insert(key, (kind, length));
        }
        Ok(state)
    }

    /// Ends everything in order.
    pub async fn stop(self) {
        self.pool.close().await;
        self.replicas.into_inner().stop().await;
        self.redis.into_inner().stop().await;
        self.postgres.into_inner().stop().await;
    }
}

impl Tokens {
    /// That of a role.
    pub fn of(&self, role: Role) -> &str {
        match role {
            Role::Viewer => &self.viewer,
            Role::Submitter => &self.submitter,
            Role::Worker => &self.worker,
            Role::Admin => &self.admin,
        }
    }

    /// The administrator's, under a signature that nobody has made.
    pub fn forged(&self) -> String {
        let mut forged = self.admin.clone();
        forged.truncate(forged.len() - 8);
        forged.push_str("AAAAAAAA");
        forged
    }

    fn read(folder: &Path) -> io::Result<Self> {
        let read = |role: &str| std::fs::read_to_string(folder.join(format!("{role}.token")));
        Ok(Self {
            admin: read("admin")?,
            submitter: read("submitter")?,
            viewer: read("viewer")?,
            worker: read("worker")?,
        })
    }
}

fn value_of<'a>(metrics: &'a str, name: &str) -> Option<&'a str> {
    metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
}
