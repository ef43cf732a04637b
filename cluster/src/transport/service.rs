//! The server half of the peer protocol.
//!
//! Invariants: a replica that has not yet been told that it may take part lets
//! no Raft message in; nor does any replica from another cluster, from a
//! removed member, or meant for someone else.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::EntryPayload;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::SECRET_HEADER;
use super::peers::Peers;
use super::proto::{Envelope, GreetReply, GreetRequest, Reply, raft_server};
use crate::ambient;
use crate::codec;
use crate::config::Addresses;
use crate::control::{ControlCommand, ControlState};
use crate::leadership::{Leadership, Quorum};
use crate::membership::Membership;
use crate::raft::{Raft, Snapshot, SnapshotMeta, Types, Vote};
use crate::store::Store;

/// Closed until this replica may take part in votes and replication.
#[derive(Debug, Default)]
pub(crate) struct Gate(AtomicBool);

impl Gate {
    pub fn open(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub fn is_open(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// When this replica last heard from which leader.
#[derive(Debug)]
pub(crate) struct Contact {
    lease: Duration,
    last: Mutex<Option<(u64, Instant)>>,
    changed: Notify,
}

impl Contact {
    pub fn new(lease: Duration) -> Self {
        Contact { lease, last: Mutex::default(), changed: Notify::new() }
    }

    /// The leader heard within its lease, and when that ends.
    pub fn current(&self) -> Option<(u64, Instant)> {
        let (leader, heard) = (*self.last.lock().unwrap_or_else(PoisonError::into_inner))?;
        let until = heard + self.lease;
        (Instant::now() < until).then_some((leader, until))
    }

    /// Waits for a new leader, or for one that was silent.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    fn heard(&self, leader: u64) {
        let known = self.current();
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some((leader, Instant::now()));
        if known.is_none_or(|(known, _)| known != leader) {
            self.changed.notify_one();
        }
    }
}

/// Answers the other members.
pub struct RaftService {
    pub(crate) node_id: u64,
    pub(crate) advertise: Addresses,
    pub(crate) secret: Option<String>,
    pub(crate) raft: Raft,
    pub(crate) store: Arc<Store>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) contact: Arc<Contact>,
    pub(crate) control: watch::Receiver<Arc<ControlState>>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) membership: Arc<Membership>,
}

impl RaftService {
    /// Checks who speaks; for every call.
    fn admit<T>(&self, request: &Request<T>, from: u64, to: u64, cluster_id: &str) -> Result<(), Status> {
        if let Some(secret) = &self.secret {
            let shown =
                request.metadata().get(SECRET_HEADER).map(|value| value.as_bytes()).unwrap_or_default();
            if !same_secret(secret.as_bytes(), shown) {
                return Err(Status::permission_denied("cluster.secret does not match"));
            }
        }
        if to != self.node_id {
            return Err(Status::failed_precondition(format!("this is member {}, not {to}", self.node_id)));
        }
        let own = self.control.borrow().cluster_id.map(|id| id.to_string());
        match own {
            Some(own) if !cluster_id.is_empty() && own != cluster_id => Err(Status::failed_precondition(
                format!("member {from} belongs to cluster {cluster_id}, this member to cluster {own}"),
            )),
            _ => Ok(()),
        }
    }

    /// Checks and decodes a Raft message.
    fn open<T: DeserializeOwned>(&self, request: Request<Envelope>) -> Result<T, Status> {
        let envelope = request.get_ref();
        self.admit(&request, envelope.from, envelope.to, &envelope.cluster_id)?;
        if !self.gate.is_open() {
            return Err(Status::unavailable("this member does not know yet whether it may take part"));
        }
        if self.control.borrow().removed.contains(&envelope.from) {
            return Err(Status::permission_denied(format!(
                "member {} was removed from the cluster",
                envelope.from
            )));
        }
        codec::decode(&envelope.body).map_err(|error| Status::invalid_argument(error.to_string()))
    }

    /// Whether a mark that says this member joined is committed or may become so.
    async fn has_joined(&self, id: u64) -> Result<bool, Status> {
        if self.control.borrow().joined.contains(&id) {
            return Ok(true);
        }
        let applied = self.raft.metrics().borrow_watched().last_applied.map_or(0, |applied| applied.index);
        let store = Arc::clone(&self.store);
        let tail = ambient::blocking(move || store.entries(applied..=u64::MAX)).await;
        let tail = tail.map_err(unavailable)?.map_err(unavailable)?;
        Ok(tail.iter().any(|entry| {
            matches!(&entry.payload, EntryPayload::Normal(ControlCommand::Joined { node_id }) if *node_id == id)
        }))
    }

    /// What this replica can say about itself and about the one that asks.
    async fn introduce(&self, asking: u64) -> Result<GreetReply, Status> {
        let store = Arc::clone(&self.store);
        let ends = ambient::blocking(move || store.log_ends()).await.map_err(unavailable)?;
        let last = ends.map_err(unavailable)?.last;
        let vote = self.store.vote();
        let control = self.control.borrow().clone();
        let metrics = self.raft.metrics().borrow_watched().clone();
        let membership = metrics.membership_config.membership();
        let leadership = self.leadership.borrow().clone();
        let (leading, leader) = match leadership {
            Leadership::Leading { quorum, .. } => {
                (quorum == Quorum::Fresh, Some((self.node_id, self.advertise.clone())))
            }
            Leadership::Following { leader } => (false, leader.map(|leader| (leader.id, leader.addresses))),
            Leadership::Stopped { .. } => (false, None),
        };
        Ok(GreetReply {
            node_id: self.node_id,
            cluster_id: control.cluster_id.map(|id| id.to_string()).unwrap_or_default(),
            addresses: Some(self.advertise.clone().into()),
            initialised: last.is_some() || vote.is_some(),
            empty: last.is_none(),
            // The founder holds the bootstrap entry and has given no vote to
            // anyone else; as a leader it would have written a second entry.
            virgin: last.is_some_and(|last| last.index == 0)
                && vote.is_none_or(|vote| vote.leader_id.voted_for == self.node_id),
            leading,
            leader_id: leader.as_ref().map_or(0, |leader| leader.0),
            leader: leader.map(|leader| leader.1.into()),
            joined: self.has_joined(asking).await?,
            removed: control.removed.contains(&asking),
            voters: membership.voter_ids().collect(),
        })
    }
}

#[tonic::async_trait]
impl raft_server::Raft for RaftService {
    async fn append_entries(&self, request: Request<Envelope>) -> Result<Response<Reply>, Status> {
        let message: AppendEntriesRequest<Types> = self.open(request)?;
        let leader = message.vote.leader_id.voted_for;
        let answer = self.raft.append_entries(message).await.map_err(unavailable)?;
        if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
            self.contact.heard(leader);
        }
        reply(&answer)
    }

    async fn vote(&self, request: Request<Envelope>) -> Result<Response<Reply>, Status> {
        reply(&self.raft.vote(self.open(request)?).await.map_err(unavailable)?)
    }

    async fn pre_vote(&self, request: Request<Envelope>) -> Result<Response<Reply>, Status> {
        reply(&self.raft.pre_vote(self.open(request)?).await.map_err(unavailable)?)
    }

    async fn install_snapshot(&self, request: Request<Envelope>) -> Result<Response<Reply>, Status> {
        let (vote, meta, snapshot): (Vote, SnapshotMeta, Vec<u8>) = self.open(request)?;
        let leader = vote.leader_id.voted_for;
        let answer =
            self.raft.install_full_snapshot(vote, Snapshot { meta, snapshot }).await.map_err(unavailable)?;
        if answer.vote == vote {
            self.contact.heard(leader);
        }
        reply(&answer)
    }

    async fn transfer_leader(&self, request: Request<Envelope>) -> Result<Response<Reply>, Status> {
        reply(&self.raft.handle_transfer_leader(self.open(request)?).await.map_err(unavailable)?)
    }

    async fn greet(&self, request: Request<GreetRequest>) -> Result<Response<GreetReply>, Status> {
        let greeting = request.get_ref();
        self.admit(&request, greeting.from, greeting.to, &greeting.cluster_id)?;
        let greeting = request.into_inner();
        let answer = self.introduce(greeting.from).await?;
        if let Some(addresses) = greeting.addresses.filter(|_| !answer.removed) {
            let addresses = Addresses::from(addresses);
            self.peers.learn(greeting.from, &addresses.peer);
            if answer.leading {
                self.membership.move_member(greeting.from, addresses);
            }
        }
        Ok(Response::new(answer))
    }
}

fn reply<T: Serialize>(answer: &T) -> Result<Response<Reply>, Status> {
    let body = codec::encode(answer).map_err(|error| Status::internal(error.to_string()))?;
    Ok(Response::new(Reply { body }))
}

fn unavailable(error: impl std::fmt::Display) -> Status {
    Status::unavailable(error.to_string())
}

/// Compares without telling by its duration how much was right.
fn same_secret(own: &[u8], shown: &[u8]) -> bool {
    own.len() == shown.len()
        && own.iter().zip(shown).fold(0, |differences, (a, b)| differences | (a ^ b)) == 0
}
