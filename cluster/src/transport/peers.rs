//! Connections to the other members: one per member, made when first needed
//! and again at the next call after it broke, without any backoff.
//!
//! After a partition TCP would repeat its packets ever more rarely and the old
//! connection would stay silent for seconds. So a connection on which nothing
//! succeeds for a while is thrown away.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status};

use super::proto::raft_client::RaftClient;
use super::proto::{Envelope, GreetReply, GreetRequest};
use super::{MAX_MESSAGE, SECRET_HEADER};
use crate::ambient;
use crate::config::{Addresses, ClusterConfig};
use crate::control::ControlState;

/// Longest time for making a connection. A lost SYN is repeated by the next
/// attempt, long before the kernel would.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);
/// A connection without a success for so long is replaced.
const GIVE_UP: Duration = Duration::from_millis(250);
/// Finds connections that died while nothing was sent.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Why a call to a member gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PeerError {
    #[error("the address of member {0} is not known")]
    Unknown(u64),
    #[error("the address \"{address}\" of member {id} can't be used: {source}")]
    Address { id: u64, address: String, source: tonic::transport::Error },
    #[error("member {id} did not answer within {limit:?}")]
    Timeout { id: u64, limit: Duration },
    #[error("member {id} can't be reached: {detail}")]
    Unreachable { id: u64, detail: String },
    #[error("member {id} refuses: {reason}")]
    Refused { id: u64, reason: String },
}

/// The calls that carry Raft messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rpc {
    AppendEntries,
    Vote,
    PreVote,
    InstallSnapshot,
    TransferLeader,
}

/// All members that this one may have to reach.
pub(crate) struct Peers {
    node_id: u64,
    advertise: Addresses,
    secret: Option<tonic::metadata::AsciiMetadataValue>,
    tls: Option<ClientTlsConfig>,
    control: watch::Receiver<std::sync::Arc<ControlState>>,
    peers: Mutex<BTreeMap<u64, Peer>>,
}

struct Peer {
    address: String,
    client: Option<RaftClient<Channel>>,
    /// The last success, or when the connection was made.
    alive: Instant,
}

impl Peers {
    pub fn new(config: &ClusterConfig, control: watch::Receiver<std::sync::Arc<ControlState>>) -> Self {
        let peers = Peers {
            node_id: config.node_id,
            advertise: config.advertise.clone(),
            // `validate` has refused a secret that a header can't carry.
            secret: config.secret.as_ref().and_then(|secret| secret.parse().ok()),
            tls: config.tls.clone(),
            control,
            peers: Mutex::default(),
        };
        for seed in &config.seeds {
            peers.learn(seed.id, &seed.peer);
        }
        peers
    }

    /// Remembers where a member is; a connection to another place is dropped.
    pub fn learn(&self, id: u64, address: &str) {
        if id == self.node_id || address.is_empty() {
            return;
        }
        let mut peers = self.lock();
        if peers.get(&id).is_none_or(|peer| peer.address != address) {
            peers.insert(id, Peer { address: address.to_owned(), client: None, alive: Instant::now() });
        }
    }

    /// The ids whose addresses are known, this member's not among them.
    pub fn known(&self) -> Vec<u64> {
        self.lock().keys().copied().collect()
    }

    /// Sends one Raft message and waits for its reply.
    pub async fn call(
        &self,
        id: u64,
        rpc: Rpc,
        body: Vec<u8>,
        limit: Duration,
    ) -> Result<Vec<u8>, PeerError> {
        let mut client = self.client(id)?;
        let envelope = Envelope { from: self.node_id, to: id, cluster_id: self.cluster_id(), body };
        let request = self.request(envelope);
        let call = async move {
            match rpc {
                Rpc::AppendEntries => client.append_entries(request).await,
                Rpc::Vote => client.vote(request).await,
                Rpc::PreVote => client.pre_vote(request).await,
                Rpc::InstallSnapshot => client.install_snapshot(request).await,
                Rpc::TransferLeader => client.transfer_leader(request).await,
            }
        };
        let outcome = ambient::within(limit, call).await;
        Ok(self.settle(id, limit, outcome)?.body)
    }

    /// Introduces this member to another one.
    pub async fn greet(&self, id: u64, limit: Duration) -> Result<GreetReply, PeerError> {
        let mut client = self.client(id)?;
        let request = self.request(GreetRequest {
            from: self.node_id,
            to: id,
            cluster_id: self.cluster_id(),
            addresses: Some(self.advertise.clone().into()),
        });
        let outcome = ambient::within(limit, async move { client.greet(request).await }).await;
        self.settle(id, limit, outcome)
    }

    /// Notes how a call went.
    fn settle<T>(
        &self,
        id: u64,
        limit: Duration,
        outcome: Result<Result<tonic::Response<T>, Status>, tokio::time::error::Elapsed>,
    ) -> Result<T, PeerError> {
        let error = match outcome {
            Ok(Ok(reply)) => {
                self.answered(id);
                return Ok(reply.into_inner());
            }
            Ok(Err(status)) if matches!(status.code(), Code::FailedPrecondition | Code::PermissionDenied) => {
                self.answered(id);
                return Err(PeerError::Refused { id, reason: status.message().to_owned() });
            }
            Ok(Err(status)) => PeerError::Unreachable { id, detail: status.message().to_owned() },
            Err(_) => PeerError::Timeout { id, limit },
        };
        if let Some(peer) = self.lock().get_mut(&id)
            && peer.alive.elapsed() > GIVE_UP
        {
            peer.client = None;
        }
        Err(error)
    }

    fn answered(&self, id: u64) {
        if let Some(peer) = self.lock().get_mut(&id) {
            peer.alive = Instant::now();
        }
    }

    fn client(&self, id: u64) -> Result<RaftClient<Channel>, PeerError> {
        let mut peers = self.lock();
        let peer = peers.get_mut(&id).ok_or(PeerError::Unknown(id))?;
        if let Some(client) = &peer.client {
            return Ok(client.clone());
        }
        let address = peer.address.clone();
        let endpoint = match &self.tls {
            None => Endpoint::from_shared(format!("http://{address}")),
            Some(tls) => Endpoint::from_shared(format!("https://{address}"))
                .and_then(|endpoint| endpoint.tls_config(tls.clone())),
        };
        let endpoint = endpoint
            .map_err(|source| PeerError::Address { id, address, source })?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        let client = RaftClient::new(ambient::connect_lazily(&endpoint))
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        peer.client = Some(client.clone());
        peer.alive = Instant::now();
        Ok(client)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(secret) = &self.secret {
            request.metadata_mut().insert(SECRET_HEADER, secret.clone());
        }
        request
    }

    fn cluster_id(&self) -> String {
        self.control.borrow().cluster_id.map(|id| id.to_string()).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, Peer>> {
        // Nothing panics while holding the lock; a poisoned map is whole.
        self.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
