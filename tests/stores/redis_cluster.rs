//! A Redis Cluster of three masters.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use chrono::DateTime;
use cortex::dev::{DevCluster, PortBlock};
use cortex::domain::ids::{Epoch, JobId};
use cortex::domain::matching::Shape;
use cortex::ready_queue::{Entry, Group, Offer, QueueError, ReadyQueue};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::{Scratch, Stores, eventually};

const MASTERS: u16 = 3;
/// Slots of a Redis Cluster.
const SLOTS: u16 = 16_384;
const E1: Epoch = Epoch(1);

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct RedisCluster {
    masters: Vec<Ended>,
    ports: PortBlock,
    _scratch: Scratch,
}

impl RedisCluster {
    /// Starts the masters, each with a third of the slots, and waits until they know each other.
    async fn start() -> Self {
        let scratch = Scratch::new();
        let ports = PortBlock::reserve(2 * MASTERS).unwrap();
        let masters = (0..MASTERS).map(|master| {
            let folder = scratch.path().join(master.to_string());
            std::fs::create_dir(&folder).unwrap();
            let (port, bus) = (ports.first() + master, ports.first() + MASTERS + master);
            let master = Command::new("redis-server")
                .args(["--bind", "127.0.0.1", "--save", "", "--cluster-enabled", "yes"])
                .args(["--port", &port.to_string(), "--cluster-port", &bus.to_string()])
                .arg("--dir")
                .arg(folder)
                .stdout(Stdio::null())
                .spawn();
            Ended(master.expect("redis-server is installed"))
        });
        let cluster = Self { masters: masters.collect(), ports, _scratch: scratch };
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
        format!("redis://127.0.0.1:{}", self.ports.first() + master)
    }

    /// Several nodes; the first one says how to reach them all.
    fn url_of_all(&self) -> String {
        let others = (1..MASTERS).map(|master| format!(",127.0.0.1:{}", self.ports.first() + master));
        std::iter::once(self.url(0)).chain(others).collect()
    }

    /// Sends a command to this very node.
    async fn ask<T: redis::FromRedisValue>(&self, master: u16, command: &str) -> redis::RedisResult<T> {
        let client = redis::Client::open(self.url(master))?;
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

fn shape() -> Shape {
    Shape { model_name: "m".into(), requires_gpu: false, required_memory_mib: 0 }
}

fn entry(n: u8) -> Entry {
    Entry {
        job_id: JobId(Uuid::from_u128(n.into())),
        shape: shape(),
        priority: n,
        submitted_at: DateTime::UNIX_EPOCH,
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
    let (stores, scratch) = (Stores::fresh().await, Scratch::new());
    let cluster = DevCluster::builder(scratch.path().join("data"))
        .workers(0)
        .set("cluster.heartbeat_ms=100")
        .set("cluster.election_timeout_ms=[300, 600]")
        .database_url(Some(stores.database_url))
        .redis_url(Some(redis.url((redis.owner("cortex:queue").await + 1) % MASTERS)))
        .binary(env!("CARGO_BIN_EXE_cortex"))
        .start()
        .await
        .unwrap();
    let client = reqwest::Client::new();
    let jobs = format!("http://{}/api/v1/jobs", cluster.http(1));
    for number in 0..40 {
        let draft = json!({"name": format!("job {number}"), "model_name": "m", "model_version": "1",
            "input_data": {"a": number}});
        assert_eq!(client.post(&jobs).json(&draft).send().await.unwrap().status(), 201);
    }
    // Only now, so that all jobs have gone through the queue.
    let worker = Command::new(env!("CARGO_BIN_EXE_cortex"))
        .args(["worker", "--sleep-ms", "0", "--slots", "4", "--endpoint", &cluster.grpc_endpoints()])
        .spawn();
    let worker = Ended(worker.unwrap());
    eventually("all jobs are completed", async || {
        let stats = client.get(format!("{jobs}/stats/summary")).send().await.unwrap();
        stats.json::<Value>().await.unwrap()["completed"] == 40
    })
    .await;
    let health = client.get(format!("http://{}/health", cluster.http(2))).send().await.unwrap();
    assert_eq!(health.status(), 200);
    drop(worker);
    cluster.stop().await;
}
