//! One replica's part in the cluster: starting, asking, handing over, stopping.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, ServerState};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ambient;
use crate::config::{Addresses, ClusterConfig, ConfigError};
use crate::control::{ControlCommand, ControlState};
use crate::join::Joiner;
use crate::leadership::{Leadership, Watcher};
use crate::membership::{ChangeError, Membership};
use crate::raft::{Metrics, Raft};
use crate::status::{self, ClusterStatus};
use crate::store::{LogStore, StateMachine, Store, StoreError};
use crate::transport::{Contact, Gate, MAX_MESSAGE, NetworkFactory, Peers, RaftService};

/// The gRPC service to be served on the peer port, next to any other service.
pub type RaftServer = crate::transport::proto::raft_server::RaftServer<RaftService>;

/// Why a replica can't start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("this replica may not take part: {0}")]
    Refused(String),
    #[error("Raft can't start: {0}")]
    Raft(String),
}

/// Why the leadership was not handed over.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error("this replica does not lead the cluster")]
    NotLeader,
    #[error("member {0} is not another voter of the cluster")]
    NotAVoter(u64),
    #[error("no other voter answers and has caught up")]
    NoCandidate,
    #[error("member {to} did not take over within {deadline:?}; this replica may still lead")]
    Timeout { to: u64, deadline: Duration },
    #[error("this replica has stopped: {0}")]
    Stopped(String),
}

/// A replica. Clones share it; it runs until [`Node::shutdown`] or the end of
/// the runtime that started it.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    config: ClusterConfig,
    raft: Raft,
    store: Arc<Store>,
    membership: Arc<Membership>,
    control: watch::Receiver<Arc<ControlState>>,
    leadership: watch::Sender<Leadership>,
    /// The term whose leadership this replica has handed on.
    given_up: Arc<AtomicU64>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Node {
    /// Opens the data directory and starts Raft on the current runtime. Serve
    /// the returned service at `config.advertise.peer` at once: the others can't
    /// reach this replica before.
    ///
    /// # Errors
    /// A configuration that can't be used, a data directory that can't be
    /// trusted, or a cluster that refuses this replica.
    pub async fn start(config: ClusterConfig) -> Result<(Node, RaftServer), StartError> {
        config.validate()?;
        let raft_config = Arc::new(config.raft()?);
        let (data_dir, node_id) = (config.data_dir.clone(), config.node_id);
        let opened = ambient::blocking(move || Store::open(&data_dir, node_id)).await;
        let store = Arc::new(opened.map_err(|_| StoreError::Cancelled)??);
        let started = Self::start_on(config, raft_config, Arc::clone(&store)).await;
        if started.is_err() {
            store.close();
        }
        started
    }

    async fn start_on(
        config: ClusterConfig,
        raft_config: Arc<openraft::Config>,
        store: Arc<Store>,
    ) -> Result<(Node, RaftServer), StartError> {
        let pristine = store.is_pristine()?;
        let machine = StateMachine::new(Arc::clone(&store));
        let control = machine.watch();
        let peers = Arc::new(Peers::new(&config, control.clone()));
        let network = NetworkFactory { node_id: config.node_id, peers: Arc::clone(&peers) };
        let log = LogStore::new(Arc::clone(&store));
        let raft = Raft::new(config.node_id, raft_config, network, log, machine).await;
        let raft = raft.map_err(|error| StartError::Raft(error.to_string()))?;
        let joiner = Joiner {
            config,
            raft,
            peers,
            gate: Arc::new(Gate::default()),
            control,
            leadership: watch::Sender::new(Leadership::Following { leader: None }),
        };
        if let Err(reason) = joiner.first_round(pristine).await {
            // It never took part, so there is nothing to lose if this fails.
            let _ = joiner.raft.shutdown().await;
            return Err(StartError::Refused(reason));
        }
        Ok(Self::assemble(joiner, store, pristine))
    }

    /// Starts the tasks of a replica that may go on, and makes its service.
    fn assemble(joiner: Joiner, store: Arc<Store>, pristine: bool) -> (Node, RaftServer) {
        let config = joiner.config.clone();
        let (raft, control, leadership) =
            (joiner.raft.clone(), joiner.control.clone(), joiner.leadership.clone());
        let membership = Arc::new(Membership::new(
            config.node_id,
            config.advertise.clone(),
            raft.clone(),
            control.clone(),
        ));
        let contact = Arc::new(Contact::new(config.lease()));
        let service = RaftService {
            node_id: config.node_id,
            advertise: config.advertise.clone(),
            secret: config.secret.clone(),
            raft: raft.clone(),
            store: Arc::clone(&store),
            peers: Arc::clone(&joiner.peers),
            gate: Arc::clone(&joiner.gate),
            contact: Arc::clone(&contact),
            control: control.clone(),
            leadership: leadership.subscribe(),
            membership: Arc::clone(&membership),
        };
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let given_up = Arc::default();
        let watcher = Watcher {
            node_id: config.node_id,
            raft: raft.clone(),
            contact,
            lease: config.lease(),
            new_cluster_id: ambient::new_cluster_id(),
            given_up: Arc::clone(&given_up),
            publish: leadership.clone(),
            stop: stop.clone(),
        };
        tasks.spawn(watcher.run());
        tasks.spawn(Arc::clone(&membership).keep(leadership.subscribe(), stop.clone()));
        let token = stop.clone();
        tasks.spawn(async move {
            token.run_until_cancelled(joiner.run(pristine)).await;
        });
        let server = RaftServer::new(service)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let inner = Inner { config, raft, store, membership, control, leadership, given_up, stop, tasks };
        let inner = Arc::new(inner);
        (Node { inner }, server)
    }

    /// This replica's id.
    pub fn id(&self) -> u64 {
        self.inner.config.node_id
    }

    /// Who leads, now and from now on. The newest value is the truth; values in
    /// between may be skipped.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.subscribe()
    }

    /// The replicated control state as far as this replica has applied it.
    pub fn control(&self) -> watch::Receiver<Arc<ControlState>> {
        self.inner.control.clone()
    }

    /// The cluster as this replica sees it.
    pub fn status(&self) -> ClusterStatus {
        let leadership = self.inner.leadership.borrow().clone();
        let control = self.inner.control.borrow().clone();
        status::status(&self.metrics(), &control, &leadership)
    }

    /// Commits a change of the control state and returns its log index; on the
    /// leader alone. Cancelling the call does not take the change back.
    ///
    /// # Errors
    /// [`ChangeError`]; `Timeout` and `Unknown` leave open whether it happened.
    pub async fn propose(&self, command: ControlCommand) -> Result<u64, ChangeError> {
        self.inner.membership.propose(command).await
    }

    /// Adds a member, which must be running: as a learner until it has caught
    /// up, then as a voter. On the leader alone; may be repeated.
    ///
    /// # Errors
    /// [`ChangeError`]; an id that was removed before is refused.
    pub async fn add_member(&self, id: u64, addresses: Addresses) -> Result<(), ChangeError> {
        self.inner.membership.add(id, addresses).await
    }

    /// Removes a member for good. On the leader alone, which can't remove
    /// itself; may be repeated.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub async fn remove_member(&self, id: u64) -> Result<(), ChangeError> {
        self.inner.membership.remove(id).await
    }

    /// Hands the leadership to `to`, or to the most caught-up voter that
    /// answers, and waits until another replica leads. Returns its id.
    ///
    /// # Errors
    /// [`TransferError`]; after `Timeout` this replica may still lead.
    pub async fn transfer(&self, to: Option<u64>, deadline: Duration) -> Result<u64, TransferError> {
        let until = Instant::now() + deadline;
        let metrics = self.metrics();
        let to = choose_successor(&metrics, to, self.inner.config.lease())?;
        // From here on another may be elected at any time, so a claim that is still under way comes too late.
        self.inner.given_up.store(metrics.current_term, Ordering::Release);
        let stopped = |error: &dyn std::fmt::Display| TransferError::Stopped(error.to_string());
        self.inner.raft.trigger().transfer_leader(to).await.map_err(|error| stopped(&error))?;
        let mut metrics = self.inner.raft.metrics();
        loop {
            {
                let current = metrics.borrow_watched();
                current.running_state.as_ref().map_err(|error| stopped(error))?;
                let leader = current.current_leader.filter(|leader| *leader != self.id());
                if let (Some(leader), true) = (leader, current.state != ServerState::Leader) {
                    return Ok(leader);
                }
            }
            match timeout_at(until, metrics.changed()).await {
                Ok(changed) => changed.map_err(|error| stopped(&error))?,
                Err(_) => return Err(TransferError::Timeout { to, deadline }),
            }
        }
    }

    /// Ends this replica's part and releases the data directory. A leader
    /// should [`transfer`](Node::transfer) first, or the others must wait for an
    /// election.
    pub async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
        if let Err(error) = self.inner.raft.shutdown().await {
            tracing::warn!(%error, "The Raft core did not end cleanly.");
        }
        let store = Arc::clone(&self.inner.store);
        // A failure means that the runtime ends, which releases the file too.
        let _ = ambient::blocking(move || store.close()).await;
    }

    fn metrics(&self) -> Metrics {
        status::current(&self.inner.raft)
    }

    /// Raft itself, for those who check it.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn raft(&self) -> &Raft {
        &self.inner.raft
    }
}

/// Picks who takes over: the asked voter, or the one that lacks the least and
/// answered last. Pure.
fn choose_successor(metrics: &Metrics, to: Option<u64>, lease: Duration) -> Result<u64, TransferError> {
    let (ServerState::Leader, Some(replication)) = (metrics.state, &metrics.replication) else {
        return Err(TransferError::NotLeader);
    };
    let voters = || metrics.membership_config.membership().voter_ids().filter(|id| *id != metrics.id);
    if let Some(to) = to {
        return voters().find(|id| *id == to).ok_or(TransferError::NotAVoter(to));
    }
    let answered = |id: &u64| metrics.heartbeat.as_ref().and_then(|all| all.get(id).copied().flatten());
    let alive = voters().filter(|id| answered(id).is_some_and(|at| at.elapsed() < lease));
    let best = alive
        .max_by_key(|id| (replication.get(id).copied().flatten().map(|matched| matched.index), answered(id)));
    best.ok_or(TransferError::NoCandidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A replica that is its whole cluster; nobody needs to reach it.
    async fn alone(dir: &tempfile::TempDir) -> (Node, RaftServer) {
        let peer = "127.0.0.1:1".to_owned();
        let advertise = Addresses { peer: peer.clone(), http: peer.clone(), grpc: peer.clone() };
        let seeds = vec![crate::config::Seed { id: 1, peer }];
        Node::start(ClusterConfig::new(1, dir.path(), advertise, seeds)).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_replica_whose_disk_fails_stops_and_says_so() {
        let dir = tempfile::TempDir::new().unwrap();
        let (node, _service) = alone(&dir).await;
        let mut leadership = node.leadership();
        leadership.wait_for(Leadership::is_leading).await.unwrap();
        // Every later write fails, as it does on a full disk.
        node.inner.store.close();
        let command = ControlCommand::Unset { key: "x".into() };
        assert!(node.propose(command).await.is_err());
        let stopped = leadership.wait_for(|leadership| matches!(leadership, Leadership::Stopped { .. }));
        tokio::time::timeout(Duration::from_secs(5), stopped).await.unwrap().unwrap();
        assert!(!node.status().running);
    }
}
