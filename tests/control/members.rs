//! Replicas that join, leave and lead, and a database that changes its cluster.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use cortex::dev::{PortBlock, ReplicaOptions, Signal};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::scene::{CORTEX, Scene};
use crate::support::eventually;

const MEMBERS: &str = "/api/v1/cluster/members";

/// A replica beside those that the group began with.
struct Fourth {
    http: String,
    grpc: String,
    peer: String,
    process: Child,
    _ports: PortBlock,
}

impl Fourth {
    /// Starts a replica with this id, with all else as the first one has it.
    fn start(scene: &Scene, id: u64) -> Self {
        let ports = PortBlock::reserve(3).unwrap();
        let at = |port: u16| format!("127.0.0.1:{}", ports.first() + port);
        let (http, grpc, peer) = (at(0), at(1), at(2));
        let log = fs::File::create(scene.scratch.path().join(format!("replica-{id}.log"))).unwrap();
        let mut command = Command::new(CORTEX);
        command.arg("serve").arg("--config").arg(scene.cluster.data_dir().join("replica-1.yaml"));
        command
            .env("CORTEX__CLUSTER__NODE_ID", id.to_string())
            .env("CORTEX__CLUSTER__DATA_DIR", scene.scratch.path().join(format!("raft-{id}")))
            .env("CORTEX__CLUSTER__PEER_LISTEN", &peer)
            .env("CORTEX__CLUSTER__ADVERTISE__PEER", &peer)
            .env("CORTEX__CLUSTER__ADVERTISE__HTTP", &http)
            .env("CORTEX__CLUSTER__ADVERTISE__GRPC", &grpc)
            .env("CORTEX__SERVER__HTTP_PORT", ports.first().to_string())
            .env("CORTEX__SERVER__GRPC_PORT", (ports.first() + 1).to_string())
            .stdin(Stdio::null())
            .stderr(log.try_clone().unwrap())
            .stdout(log)
            .kill_on_drop(true);
        Self { http, grpc, peer, process: command.spawn().unwrap(), _ports: ports }
    }

    async fn serves(&self, scene: &Scene) -> bool {
        let url = format!("http://{}/health/ready", self.http);
        reqwest::get(url).await.is_ok_and(|answer| answer.status() == 200) && {
            let (_, cluster) = scene.ask_at(&self.http, Method::GET, "/api/v1/cluster", None).await;
            cluster["role"] == "follower"
        }
    }
}

fn ids(cluster: &Value) -> Vec<u64> {
    cluster["members"].as_array().unwrap().iter().map(|member| member["id"].as_u64().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fourth_replica_joins_empty_works_and_when_it_is_removed_serves_nobody_any_more() {
    let scene = Scene::start().await;
    scene.start_worker(&["m"], 2, Duration::ZERO);
    let follower = scene.follower().await;
    scene.post(0, "/api/v1/queues/pause?model_name=held").await;

    let mut fourth = Fourth::start(&scene, 4);
    let body = json!({"id": 4, "peer": fourth.peer});
    eventually("the new replica is taken in", async || {
        // Until it listens it has not caught up, which is no error for good.
        let (status, answer) = scene.ask(follower, Method::POST, MEMBERS, Some(body.clone())).await;
        assert!([200, 201, 409, 503].contains(&status), "{answer}");
        // One whose answer was lost has done its work.
        [200, 201].contains(&status)
    })
    .await;
    eventually("the new replica serves", async || fourth.serves(&scene).await).await;
    let (status, _) = scene.ask(follower, Method::POST, MEMBERS, Some(body.clone())).await;
    assert_eq!(status, 200, "it is a member already");
    let (status, elsewhere) =
        scene.ask(0, Method::POST, MEMBERS, Some(json!({"id": 4, "peer": "127.0.0.1:1"}))).await;
    assert_eq!(status, 409, "{elsewhere}");
    // It knows what the others agreed on before, takes writes, and is known by its addresses.
    let (_, queue) = scene.ask_at(&fourth.http, Method::GET, "/api/v1/queues", None).await;
    assert_eq!(queue["paused_models"], json!(["held"]));
    let job = json!({"name": "j", "model_name": "m", "model_version": "1", "input_data": {"a": 1}});
    assert_eq!(scene.ask_at(&fourth.http, Method::POST, "/api/v1/jobs", Some(job.clone())).await.0, 201);
    scene.reach("m", "completed", 1).await;
    eventually("all know the addresses of the new replica", async || {
        let members = scene.get(0, "/api/v1/cluster").await["members"].clone();
        members[3]["http"] == fourth.http.as_str() && members[3]["grpc"] == fourth.grpc.as_str()
    })
    .await;

    assert_eq!(scene.cortex("cluster remove 4").await, "member 4 is removed\n");
    // Not ready can mean something else for a moment.
    eventually("the removed replica knows that it is no member", async || {
        let (_, problem) = scene.ask_at(&fourth.http, Method::GET, "/api/v1/jobs", None).await;
        problem["type"] == "urn:cortex:problem:not-a-member"
    })
    .await;
    assert_eq!(scene.ask_at(&fourth.http, Method::GET, "/health/ready", None).await.0, 503);
    for (method, path, body) in
        [(Method::GET, "/api/v1/cluster", None), (Method::POST, "/api/v1/jobs", Some(job))]
    {
        let (status, problem) = scene.ask_at(&fourth.http, method, path, body).await;
        assert_eq!((status, &problem["type"]), (503, &json!("urn:cortex:problem:not-a-member")), "{path}");
    }
    let channel = Channel::from_shared(format!("http://{}", fourth.grpc)).unwrap().connect().await.unwrap();
    let mut health = HealthClient::new(channel);
    eventually("its gRPC health says so too", async || {
        let answer = health.check(HealthCheckRequest::default()).await.unwrap().into_inner();
        answer.status == ServingStatus::NotServing as i32
    })
    .await;
    assert!(fourth.process.try_wait().unwrap().is_none(), "it stays to say so");
    eventually("the others know that it is gone", async || {
        ids(&scene.get(1, "/api/v1/cluster").await) == [1, 2, 3]
    })
    .await;

    // An id is never used again.
    let (status, again) = scene.ask(follower, Method::POST, MEMBERS, Some(body)).await;
    assert_eq!(status, 409, "{again}");
    fourth.process.kill().await.unwrap();
    let ended = Fourth::start(&scene, 4).process.wait().await.unwrap();
    assert!(!ended.success(), "it does not even start");
    assert_eq!(scene.ask(1, Method::DELETE, &format!("{MEMBERS}/9"), None).await.0, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leadership_is_transferred_at_the_word_of_any_replica() {
    // At nothing else: a leader that the machine holds up stays one.
    let scene = Scene::with(|builder| builder.set("cluster.election_timeout_ms=[5000, 10000]")).await;
    scene.start_worker(&["m"], 2, Duration::ZERO);
    for round in 0..3 {
        let leader = scene.leader().await;
        let others: Vec<_> = (0..3).filter(|replica| *replica != leader).collect();
        // Asked are, in turn, the leader, the one that is to lead, and the one that neither does.
        let asked = [leader, others[0], others[1]][round];
        let to = json!({"to": others[0] + 1});
        let (status, answer) = scene.ask(asked, Method::POST, "/api/v1/cluster/transfer", Some(to)).await;
        assert_eq!((status, answer), (200, json!({"leader": others[0] + 1})), "round {round}");
        let next = scene.cluster.wait_for_leader(Some(leader), Duration::from_secs(60)).await.unwrap();
        assert_eq!(next, others[0]);
        scene.submit(leader, "m", 5, 3).await;
        scene.reach("m", "completed", 3 * (i64::try_from(round).unwrap() + 1)).await;
    }
    let leader = scene.leader().await;
    let (status, answer) =
        scene.ask(0, Method::POST, "/api/v1/cluster/transfer", Some(json!({"to": 9}))).await;
    assert_eq!(status, 404, "{answer}");
    let to_itself = json!({"to": leader + 1});
    assert_eq!(scene.ask(0, Method::POST, "/api/v1/cluster/transfer", Some(to_itself)).await.0, 409);
    let itself = format!("{MEMBERS}/{}", leader + 1);
    let (status, answer) = scene.ask(0, Method::DELETE, &itself, None).await;
    assert_eq!(status, 409, "who leads is not removed: {answer}");
    let told = scene.cortex("cluster transfer").await;
    assert!(told.starts_with("member ") && told.ends_with(" leads\n"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_lost_its_memory_leads_once_it_has_adopted_the_database() {
    let mut scene = Scene::with(|builder| builder.replicas(1)).await;
    scene.submit(0, "m", 5, 2).await;
    let former = scene.get(0, "/api/v1/cluster").await["cluster_id"].clone();
    assert!(scene.cluster.kill(0, Signal::SIGKILL));
    scene.cluster.wait_for_exit(0).await;
    fs::remove_dir_all(scene.cluster.data_dir().join("raft-1")).unwrap();
    scene.cluster.restart(0).await.unwrap();
    eventually("the replica says why it does not lead", async || {
        let log = fs::read_to_string(scene.cluster.log(0)).unwrap();
        log.contains("the database belongs to another cluster")
    })
    .await;
    assert!(!scene.cluster.is_ready(0).await);

    let line = format!("cluster adopt --output json --database-url {}", scene.stores.database_url);
    let adopted: Value = serde_json::from_str(&scene.cortex(&line).await).unwrap();
    assert_eq!(adopted["former_cluster_id"], former);
    eventually("it leads without a restart", async || scene.cluster.is_ready(0).await).await;
    assert_eq!(scene.get(0, "/api/v1/cluster").await["cluster_id"], adopted["cluster_id"]);
    let again: Value = serde_json::from_str(&scene.cortex(&line).await).unwrap();
    assert!(again["former_cluster_id"].is_null(), "{again}");
    // With the jobs of before.
    scene.start_worker(&["m"], 2, Duration::ZERO);
    scene.reach("m", "completed", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_lost_its_disk_joins_under_a_new_id_and_so_does_one_that_is_new() {
    let mut scene = Scene::start().await;
    let (leader, follower) = (scene.leader().await, scene.follower().await);
    let former = scene.cluster.id(follower);
    assert!(scene.cluster.renew_replica(follower).is_err(), "it runs");
    scene.cluster.kill(follower, Signal::SIGKILL);
    scene.cluster.wait_for_exit(follower).await;
    let path = format!("{MEMBERS}/{former}");
    assert_eq!(scene.ask(leader, Method::DELETE, &path, None).await.0, 204);

    assert_eq!(scene.cluster.renew_replica(follower).unwrap(), 4);
    scene.cluster.restart(follower).await.unwrap();
    let another = scene.cluster.add_replica(ReplicaOptions::default()).await.unwrap();
    assert_eq!((another, scene.cluster.id(another)), (3, 5));
    for replica in [follower, another] {
        let peer = scene.cluster.advertised_peer(replica);
        let body = json!({"id": scene.cluster.id(replica), "peer": peer.to_string()});
        eventually("the replica is taken in", async || {
            [200, 201].contains(&scene.ask(leader, Method::POST, MEMBERS, Some(body.clone())).await.0)
        })
        .await;
        eventually("it serves", async || scene.cluster.is_ready(replica).await).await;
    }
    let mut members: Vec<u64> = [1, 2, 3, 4, 5].into_iter().filter(|id| *id != former).collect();
    assert_eq!(ids(&scene.get(leader, "/api/v1/cluster").await), members);

    members.pop();
    assert_eq!(scene.ask(leader, Method::DELETE, &format!("{MEMBERS}/5"), None).await.0, 204);
    scene.cluster.retire_replica(another).await;
    eventually("a follower knows the members that are left", async || {
        ids(&scene.get(follower, "/api/v1/cluster").await) == members
    })
    .await;
    let leads = scene.cluster.leader().await;
    assert!(leads.is_some_and(|leads| leads != another), "{leads:?}");
}
