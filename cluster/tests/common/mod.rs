//! Replicas for tests: each with its own runtime, so that one can be killed
//! with everything it was doing, its own directory and a real TCP listener.

#![allow(dead_code, reason = "each test file uses its own part")]

use std::future::Future;
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::Duration;

use cortex_cluster::{Addresses, ClusterConfig, Leadership, Node, Quorum, Seed, StartError};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_stream::wrappers::TcpListenerStream;

/// Longest wait for any condition; reached only by a failing test.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The ground that replicas stand on: directories and addresses that outlive them.
pub struct Ground {
    dir: TempDir,
    listeners: Vec<(u64, TcpListener)>,
    pub seeds: Vec<Seed>,
    /// For all members; so long that one which the machine holds up for a while is not taken for dead.
    pub election_timeout: (Duration, Duration),
}

impl Ground {
    /// Room for the first members `ids`.
    pub fn new(ids: &[u64]) -> Self {
        let mut ground = Ground {
            dir: TempDir::new().unwrap(),
            listeners: Vec::new(),
            seeds: Vec::new(),
            election_timeout: (Duration::from_secs(2), Duration::from_secs(4)),
        };
        for id in ids {
            let peer = ground.reserve(*id);
            ground.seeds.push(Seed { id: *id, peer });
        }
        ground
    }

    /// Reserves a port for a member.
    pub fn reserve(&mut self, id: u64) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        self.listeners.push((id, listener));
        address
    }

    pub fn config(&self, id: u64) -> ClusterConfig {
        let seed = self.seeds.iter().find(|seed| seed.id == id).expect("the id is a seed's");
        self.config_at(id, seed.peer.clone())
    }

    pub fn config_at(&self, id: u64, peer: String) -> ClusterConfig {
        let advertise = Addresses { peer, http: format!("http-{id}:1"), grpc: format!("grpc-{id}:1") };
        ClusterConfig {
            heartbeat: Duration::from_millis(200),
            election_timeout: self.election_timeout,
            ..ClusterConfig::new(id, self.data_dir(id), advertise, self.seeds.clone())
        }
    }

    pub fn data_dir(&self, id: u64) -> PathBuf {
        self.dir.path().join(id.to_string())
    }

    /// Destroys what a stopped member has on disk.
    pub fn wipe(&self, id: u64) {
        std::fs::remove_dir_all(self.data_dir(id)).unwrap();
    }

    pub async fn start(&mut self, id: u64) -> Replica {
        let config = self.config(id);
        self.start_with(config).await.unwrap()
    }

    pub async fn start_with(&mut self, config: ClusterConfig) -> Result<Replica, StartError> {
        let reserved = self.listeners.iter().position(|(id, _)| *id == config.node_id);
        let listener = match reserved {
            Some(index) => self.listeners.swap_remove(index).1,
            None => rebind(&config.advertise.peer).await,
        };
        Replica::start(config, listener).await
    }

    /// Starts all first members at the same time.
    pub async fn start_all(&mut self) -> Vec<Replica> {
        let configs: Vec<_> = self.seeds.iter().map(|seed| self.config(seed.id)).collect();
        let mut starts = Vec::new();
        for config in configs {
            let index = self.listeners.iter().position(|(id, _)| *id == config.node_id).unwrap();
            let (_, listener) = self.listeners.swap_remove(index);
            starts.push(Replica::start(config, listener));
        }
        futures::future::join_all(starts).await.into_iter().map(Result::unwrap).collect()
    }
}

/// A member that was just killed may still hold its port for a moment.
async fn rebind(address: &str) -> TcpListener {
    let wait = async {
        loop {
            match TcpListener::bind(address) {
                Ok(listener) => return listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("the port is free again")
}

/// One running member.
pub struct Replica {
    pub id: u64,
    pub node: Node,
    runtime: Killed,
}

/// A runtime that ends without being waited for, which a test may not do.
struct Killed(Option<Runtime>);

impl Drop for Killed {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

impl Replica {
    async fn start(config: ClusterConfig, listener: TcpListener) -> Result<Self, StartError> {
        let id = config.node_id;
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        listener.set_nonblocking(true).unwrap();
        let started = runtime.spawn(async move {
            let (node, service) = Node::start(config).await?;
            let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
            let server = tonic::transport::Server::builder().tcp_nodelay(true).add_service(service);
            tokio::spawn(server.serve_with_incoming(incoming));
            Ok(node)
        });
        match started.await.unwrap() {
            Ok(node) => Ok(Replica { id, node, runtime: Killed(Some(runtime)) }),
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// Ends all of it at once, as `kill -9` would, and returns when the data
    /// directory is free, as it is after the end of a process.
    pub fn kill(self) {
        let Replica { node, mut runtime, .. } = self;
        drop(node);
        if let Some(runtime) = runtime.0.take() {
            // A runtime can't be waited for from within another one.
            std::thread::spawn(move || runtime.shutdown_timeout(PATIENCE)).join().unwrap();
        }
    }

    /// Stops it in good order.
    pub async fn stop(self) {
        self.node.shutdown().await;
        self.kill();
    }

    /// Waits until its leadership satisfies `is`.
    pub async fn until(&self, what: &str, is: impl FnMut(&Leadership) -> bool) -> Leadership {
        let mut leadership = self.node.leadership();
        match tokio::time::timeout(PATIENCE, leadership.wait_for(is)).await {
            Ok(Ok(found)) => found.clone(),
            other => {
                let failed = other.is_err();
                panic!(
                    "member {}: {what} did not happen (timeout: {failed}): {:?}",
                    self.id,
                    self.node.status()
                )
            }
        }
    }

    /// Waits until it follows `leader`.
    pub async fn follows(&self, leader: u64) {
        let what = format!("following {leader}");
        self.until(&what, |l| matches!(l, Leadership::Following { leader: Some(l) } if l.id == leader)).await;
    }
}

/// What a leader published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Led {
    pub id: u64,
    pub term: u64,
    pub epoch: u64,
    pub cluster_id: uuid::Uuid,
}

/// Waits until one of `replicas` leads.
pub async fn leader_of<'a>(replicas: impl IntoIterator<Item = &'a Replica>) -> Led {
    let waits = replicas.into_iter().map(|replica| {
        Box::pin(async move { (replica.id, replica.until("leading", Leadership::is_leading).await) })
    });
    let ((id, leadership), _, _) = futures::future::select_all(waits).await;
    match leadership {
        Leadership::Leading { term, epoch, cluster_id, quorum: Quorum::Fresh } => {
            Led { id, term, epoch, cluster_id }
        }
        other => panic!("{other:?} is not leading"),
    }
}

/// Waits until all of `replicas` hold the marks of `ids` as joined.
pub async fn all_joined<'a>(replicas: impl IntoIterator<Item = &'a Replica>, ids: &[u64]) {
    for replica in replicas {
        let mut control = replica.node.control();
        let wait = control.wait_for(|control| ids.iter().all(|id| control.joined.contains(id)));
        tokio::time::timeout(PATIENCE, wait).await.expect("the members are marked as joined").unwrap();
    }
}

/// Waits for `what`, so that a failing test ends.
pub async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("what is awaited happens")
}

/// Waits for a condition that no channel announces.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let wait = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, wait).await.is_ok(), "it never came true: {what}");
}
