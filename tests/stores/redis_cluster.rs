//! A Redis Cluster of three masters.

use std::process::{Command, Stdio};
use std::time::Duration;

use cortex::dev::PortBlock;
use cortex::domain::ids::{Epoch, JobId};
use cortex::ready_queue::{Group, Offer, QueueError, ReadyQueue};
use cortex::security::RedisTls;
use serde_json::json;

use crate::authority::Authority;
use crate::scene::{E1, Ended, Replicas, entry, shape};
use crate::support::{Scratch, Stores, eventually};

const MASTERS: u16 = 3;
/// Slots of a Redis Cluster.
const SLOTS: u16 = 16_384;
/// Of a cluster with TLS.
const PASSWORD: &str = "correct-horse";

struct RedisCluster {
    masters: Vec<Ended>,
    ports: PortBlock,
    /// Who signed the masters' certificate, if they speak TLS.
    authority: Option<Authority>,
    _scratch: Scratch,
}

impl RedisCluster {
    /// Starts the masters, each with a third of the slots, and waits until they know each other.
    async fn start() -> Self {
        Self::start_with(None).await
    }

    /// The same with TLS everywhere and a password.
    async fn start_secured() -> Self {
        Self::start_with(Some(Authority::new())).await
    }

    async fn start_with(authority: Option<Authority>) -> Self {
        let certificate =
            authority.as_ref().map(|authority| (authority.issue("redis"), authority.file("ca.pem")));
        let scratch = Scratch::new();
        let ports = PortBlock::reserve(2 * MASTERS).unwrap();
        let masters = (0..MASTERS).map(|master| {
            let folder = scratch.path().join(master.to_string());
            std::fs::create_dir(&folder).unwrap();
            let (port, bus) = (ports.first() + master, ports.first() + MASTERS + master);
            let mut master = Command::new("redis-server");
            master.args(["--bind", "127.0.0.1", "--save", "", "--cluster-enabled", "yes"]);
            master.args(["--cluster-port", &bus.to_string()]).arg("--dir").arg(folder).stdout(Stdio::null());
            if let Some(((cert, key), ca)) = &certificate {
                master.args(["--port", "0", "--tls-port", &port.to_string(), "--tls-cluster", "yes"]);
                master.args(["--tls-auth-clients", "no", "--requirepass", PASSWORD]);
                master.arg("--tls-cert-file").arg(cert).arg("--tls-key-file").arg(key);
                master.arg("--tls-ca-cert-file").arg(ca);
            } else {
                master.args(["--port", &port.to_string()]);
            }
            Ended(master.spawn().expect("redis-server is installed"))
        });
        let cluster = Self { masters: masters.collect(), ports, authority, _scratch: scratch };
        for master in 0..MASTERS {
            eventually("Redis answers", async || cluster.ask::<String>(master, "PING").await.is_ok()).await;
        }
        for master in 0..MASTERS {
            let (first, after) = (SLOTS / MASTERS * master, SLOTS / MASTERS * (master + 1));
            let last = if master + 1 == MASTERS { SLOTS } else { after } - 1;
            cluster.ask::<()>(master, &format!("CLUSTER ADDSLOTSRANGE {first} {last}")).await.unwrap();
            let (port, bus) = (cluster.ports.first() + master, cluster.ports.first() + MASTERS + master);
            cluster.ask::<()>(0, &format!("CLUSTER MEET 127.0.0.1 {port} {bus}")).await.unwrap();
        }
        for master in 0..MASTERS {
            eventually("the masters know each other", async || {
                let info: String = cluster.ask(master, "CLUSTER INFO").await.unwrap();
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
            })
            .await;
        }
        cluster
    }

    fn url(&self, master: u16) -> String {
        let port = self.ports.first() + master;
        match self.authority {
            Some(_) => format!("rediss://:{PASSWORD}@127.0.0.1:{port}"),
            None => format!("redis://127.0.0.1:{port}"),
        }
    }

    /// Several nodes; the first one says how to reach them all.
    fn url_of_all(&self) -> String {
        let others = (1..MASTERS).map(|master| format!(",127.0.0.1:{}", self.ports.first() + master));
        std::iter::once(self.url(0)).chain(others).collect()
    }

    /// Sends a command to this very node.
    async fn ask<T: redis::FromRedisValue>(&self, master: u16, command: &str) -> redis::RedisResult<T> {
        let client = match &self.authority {
            None => redis::Client::open(self.url(master))?,
            Some(authority) => {
                let root_cert = Some(authority.pem.clone().into_bytes());
                let certificates = redis::TlsCertificates { client_tls: None, root_cert };
                redis::Client::build_with_tls(self.url(master), certificates)?
            }
        };
        let mut words = command.split(' ');
        let mut asked = redis::cmd(words.next().unwrap());
        asked.arg(words.collect::<Vec<_>>());
        asked.query_async(&mut client.get_multiplexed_async_connection().await?).await
    }

    /// The master that has the keys of a queue.
    async fn owner(&self, prefix: &str) -> u16 {
        let slot: u16 = self.ask(0, &format!("CLUSTER KEYSLOT {{{prefix}}}")).await.unwrap();
        (slot / (SLOTS / MASTERS)).min(MASTERS - 1)
    }

    /// Stops a node, or lets it go on.
    fn signal(&self, master: u16, signal: cortex::dev::Signal) {
        let pid = i32::try_from(self.masters[usize::from(master)].0.id()).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).unwrap();
    }
}

#[tokio::test]
async fn the_queue_is_found_by_any_node_of_its_cluster() {
    let redis = RedisCluster::start().await;
    let mut urls: Vec<String> = (0..MASTERS).map(|master| redis.url(master)).collect();
    urls.push(redis.url_of_all());
    for (number, url) in urls.iter().enumerate() {
        let prefix = format!("found-{number}");
        let queue = ReadyQueue::connect(url, &prefix).unwrap();
        queue.ping().await.unwrap();
        queue.enqueue(E1, &[entry(3), entry(9), entry(5)]).await.unwrap();
        let offer = Offer { shape: shape(), groups: vec![0] };
        let claims = queue.claim(E1, 2, &[Group { free_slots: 2 }], &[offer]).await.unwrap();
        let claimed: Vec<JobId> = claims.iter().map(|claim| claim.job_id).collect();
        assert_eq!(claimed, [entry(9).job_id, entry(5).job_id]);
        assert_eq!(queue.put_back(E1, &claimed[..1]).await.unwrap(), 1);
        assert_eq!(queue.claims_older_than(Duration::ZERO).await.unwrap(), claimed[1..]);
        assert_eq!(queue.confirm(E1, &claimed[1..]).await.unwrap(), 1);
        assert_eq!(queue.total().await.unwrap(), 2);
        let present =
            queue.contains(&[(entry(9).job_id, shape()), (entry(5).job_id, shape())]).await.unwrap();
        assert_eq!(present, [true, false]);
        let keys: Vec<String> =
            redis.ask(redis.owner(&prefix).await, &format!("KEYS {prefix}:*")).await.unwrap();
        assert!(keys.len() > 3, "all keys lie on one node: {keys:?}");
        let refused = queue.enqueue(Epoch(0), &[entry(1)]).await;
        assert!(matches!(refused, Err(QueueError::Fenced { stored: 1 })), "{refused:?}");
    }
}

#[tokio::test]
async fn a_cluster_that_speaks_tls_and_asks_for_a_password_has_the_queue() {
    let redis = RedisCluster::start_secured().await;
    let ca = redis.authority.as_ref().map(|authority| authority.pem.clone().into_bytes());
    let trusting = RedisTls { identity: None, ca };
    for (prefix, url) in [("one", redis.url(0)), ("two", redis.url(2)), ("all", redis.url_of_all())] {
        let queue = ReadyQueue::connect_with(&url, prefix, Some(&trusting)).unwrap();
        queue.ping().await.unwrap();
        queue.enqueue(E1, &[entry(3), entry(9)]).await.unwrap();
        assert_eq!(queue.total().await.unwrap(), 2);
    }
    let stranger = ReadyQueue::connect(&redis.url_of_all(), "one").unwrap();
    let error = stranger.total().await.unwrap_err();
    assert!(error.retryable(), "{error:?}");
}

#[tokio::test]
async fn a_node_that_is_down_is_an_error_only_where_it_has_the_keys_and_only_until_it_is_back() {
    let redis = RedisCluster::start().await;
    let prefix = "down";
    let owner = redis.owner(prefix).await;
    let queue = ReadyQueue::connect(&redis.url_of_all(), prefix).unwrap();
    queue.enqueue(E1, &[entry(1)]).await.unwrap();
    redis.signal(owner, cortex::dev::Signal::SIGSTOP);
    let error = queue.total().await.unwrap_err();
    assert!(error.retryable(), "{error:?}");
    redis.signal(owner, cortex::dev::Signal::SIGCONT);
    eventually("the queue is there again", async || queue.total().await.is_ok_and(|total| total == 1)).await;
}

#[tokio::test]
async fn a_group_of_replicas_runs_jobs_over_a_redis_cluster() {
    let redis = RedisCluster::start().await;
    let stores = Stores::fresh().await;
    let redis_url = redis.url((redis.owner("cortex:queue").await + 1) % MASTERS);
    let group =
        Replicas::start(|builder| builder.database_url(Some(stores.database_url)).redis_url(Some(redis_url)))
            .await;
    for _ in 0..40 {
        group.submit(1, &json!({})).await.unwrap();
    }
    // Only now, so that all jobs have gone through the queue.
    let worker = group.worker(4, &["--sleep-ms", "0"]);
    group.completes(1, 40).await;
    eventually("all is well", async || group.get(2, "/health").await.0 == 200).await;
    drop(worker);
    group.cluster.stop().await;
}
