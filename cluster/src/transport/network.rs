//! openraft's view of the other members.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::peers::{PeerError, Peers, Rpc};
use crate::codec;
use crate::config::Addresses;
use crate::raft::{Snapshot, Types, Vote};

/// Pause before an unreachable member is tried again. Short and constant, so
/// that a restarted member is found within it.
const RETRY: Duration = Duration::from_millis(50);

/// Makes one [`Network`] per member; all share the connections of [`Peers`].
pub(crate) struct NetworkFactory {
    pub node_id: u64,
    pub peers: Arc<Peers>,
}

impl RaftNetworkFactory<Types> for NetworkFactory {
    type Network = Network;

    async fn new_client(&mut self, target: u64, node: &Addresses) -> Network {
        self.peers.learn(target, &node.peer);
        Network { node_id: self.node_id, target, peers: Arc::clone(&self.peers) }
    }
}

/// The way to one member.
pub(crate) struct Network {
    node_id: u64,
    target: u64,
    peers: Arc<Peers>,
}

impl Network {
    async fn call<Q: Serialize, A: DeserializeOwned>(
        &self,
        rpc: Rpc,
        message: &Q,
        limit: Duration,
    ) -> Result<A, RPCError<Types>> {
        let body = codec::encode(message).map_err(|error| NetworkError::new(&error))?;
        match self.peers.call(self.target, rpc, body, limit).await {
            Ok(reply) => Ok(codec::decode(&reply).map_err(|error| Unreachable::new(&error))?),
            Err(PeerError::Timeout { limit, .. }) => Err(RPCError::Timeout(openraft::errors::Timeout {
                action: rpc.into(),
                id: self.node_id,
                target: self.target,
                timeout: limit,
            })),
            Err(error) => Err(RPCError::Unreachable(Unreachable::new(&error))),
        }
    }
}

impl RaftNetworkV2<Types> for Network {
    type SnapshotData = Vec<u8>;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        self.call(Rpc::AppendEntries, &request, option.hard_ttl()).await
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call(Rpc::Vote, &request, option.soft_ttl()).await
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.call(Rpc::PreVote, &request, option.soft_ttl()).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let message = (vote, snapshot.meta, snapshot.snapshot);
        tokio::select! {
            biased;
            reply = self.call(Rpc::InstallSnapshot, &message, option.soft_ttl()) => Ok(reply?),
            closed = cancel => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        self.call(Rpc::TransferLeader, &request, option.soft_ttl()).await
    }

    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(std::iter::repeat(RETRY)))
    }
}

impl From<Rpc> for RPCTypes {
    fn from(rpc: Rpc) -> Self {
        match rpc {
            Rpc::AppendEntries => RPCTypes::AppendEntries,
            Rpc::Vote | Rpc::PreVote => RPCTypes::Vote,
            Rpc::InstallSnapshot => RPCTypes::InstallSnapshot,
            Rpc::TransferLeader => RPCTypes::TransferLeader,
        }
    }
}
