//! Who is let in by the server half.

use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::sync::watch;
use tokio_stream::wrappers::TcpListenerStream;
use uuid::Uuid;

use super::peers::Rpc;
use super::{PeerError, Peers};
use crate::codec;
use crate::config::{Addresses, ClusterConfig, Seed};
use crate::control::ControlState;
use crate::leadership::Leadership;
use crate::node::Node;

const LIMIT: Duration = Duration::from_secs(5);

struct Served {
    _dir: TempDir,
    node: Node,
    address: String,
}

/// Serves member 1, alone or waiting for a second first member.
async fn serve(secret: Option<&str>, alone: bool) -> Served {
    let dir = TempDir::new().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let mut config = config(1, dir.path(), &address, &address);
    if !alone {
        config.seeds.push(Seed { id: 2, peer: "127.0.0.1:1".into() });
    }
    config.secret = secret.map(str::to_owned);
    let (node, service) = Node::start(config).await.unwrap();
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    if alone {
        node.leadership().wait_for(Leadership::is_leading).await.unwrap();
    }
    Served { _dir: dir, node, address }
}

fn config(id: u64, dir: &std::path::Path, own: &str, first: &str) -> ClusterConfig {
    let advertise = Addresses { peer: own.into(), http: own.into(), grpc: own.into() };
    ClusterConfig::new(id, dir, advertise, vec![Seed { id: 1, peer: first.into() }])
}

/// The client half of a member 2 of `cluster_id`.
fn stranger(served: &Served, cluster_id: Option<Uuid>, secret: Option<&str>) -> Peers {
    let mut config = config(2, std::path::Path::new("unused"), "127.0.0.1:1", &served.address);
    config.secret = secret.map(str::to_owned);
    let state = ControlState { cluster_id, ..ControlState::default() };
    Peers::new(&config, watch::channel(Arc::new(state)).1)
}

/// Asks member 1 for a vote that would be granted if the message came through.
async fn ask_for_vote(peers: &Peers) -> Result<Vec<u8>, PeerError> {
    let last = crate::raft::LogId::new(<openraft::type_config::alias::LeaderIdOf<crate::raft::Types> as openraft::vote::RaftLeaderIdExt>::new_committed(9, 2), 9);
    let request =
        openraft::raft::VoteRequest::<crate::raft::Types>::new(openraft::Vote::new(9, 2), Some(last));
    peers.call(1, Rpc::PreVote, codec::encode(&request).unwrap(), LIMIT).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_another_cluster_is_refused() {
    let served = serve(None, true).await;
    let own = served.node.control().borrow().cluster_id;
    for (cluster_id, welcome) in [(own, true), (None, true), (Some(Uuid::from_u128(7)), false)] {
        let peers = stranger(&served, cluster_id, None);
        let (vote, greeting) = (ask_for_vote(&peers).await, peers.greet(1, LIMIT).await);
        assert_eq!(
            (vote.is_ok(), greeting.is_ok()),
            (welcome, welcome),
            "{cluster_id:?}: {vote:?} {greeting:?}"
        );
        if let Err(error) = vote {
            assert!(
                matches!(&error, PeerError::Refused { reason, .. } if reason.contains("belongs to cluster")),
                "{error}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_the_secret_is_refused() {
    let served = serve(Some("right"), true).await;
    for (secret, welcome) in
        [(Some("right"), true), (Some("wrong"), false), (Some("righ"), false), (None, false)]
    {
        let peers = stranger(&served, None, secret);
        let (vote, greeting) = (ask_for_vote(&peers).await, peers.greet(1, LIMIT).await);
        assert_eq!((vote.is_ok(), greeting.is_ok()), (welcome, welcome), "{secret:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_for_someone_else_is_refused() {
    let served = serve(None, true).await;
    let peers = stranger(&served, None, None);
    peers.learn(3, &served.address);
    let answer = peers.greet(3, LIMIT).await;
    assert!(matches!(answer, Err(PeerError::Refused { id: 3, .. })), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_was_not_admitted_gives_no_vote_but_says_who_it_is() {
    let served = serve(None, false).await;
    let peers = stranger(&served, None, None);
    let vote = ask_for_vote(&peers).await;
    assert!(
        matches!(&vote, Err(PeerError::Unreachable { detail, .. }) if detail.contains("take part")),
        "{vote:?}"
    );
    assert!(!peers.greet(1, LIMIT).await.unwrap().initialised);
}
