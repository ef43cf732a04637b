//! The group without its majority, without all of its members, and with members of another group.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::json;
use uuid::Uuid;

use crate::load::{Load, Outcome, Tally, accepted, submit};
use crate::scene::{REFUSED_SOON, Scene, until};

const WORK: Duration = Duration::from_millis(30);

impl Scene {
    /// Submits until a job is accepted: for a while there may be no leader.
    async fn taken(&self, replica: SocketAddr, tally: &mut Tally) -> Uuid {
        let mut taken = None;
        until("writes are taken", async || {
            let outcome = submit(&self.http, replica, json!({})).await;
            if let Outcome::Accepted(id) = outcome {
                taken = Some(id);
            }
            tally.note(outcome);
            taken.is_some()
        })
        .await;
        taken.unwrap()
    }
}

#[tokio::test]
async fn jobs_are_found_again_after_every_replica_was_killed() {
    let mut scene = Scene::start().await;
    scene.start_worker(1, 2, Duration::from_millis(300));
    let replicas = scene.http_of(&[0, 1, 2]);
    let load = Load::start(&scene.http, &replicas);
    load.accepts(60).await;
    for index in 0..3 {
        scene.kill(index).await;
    }
    let tally = load.finish().await;
    let waiting = "SELECT count(*) FROM jobs WHERE status = 'queued'";
    assert!(scene.count(waiting).await > 0, "all was done already");
    scene.start_worker(2, 16, WORK);
    for index in 0..3 {
        scene.cluster.restart(index).await.unwrap();
    }
    scene.check(&tally).await;
}

#[tokio::test]
async fn without_a_majority_writes_are_refused_and_reads_go_on() {
    let mut scene = Scene::with(|builder, _| builder.set(REFUSED_SOON)).await;
    scene.start_worker(1, 8, WORK);
    let leader = scene.leader().await;
    let follower = scene.others(leader)[0];
    let mut tally = Tally::default();
    // Once it is the leader that is left, once it is not.
    for survivor in [leader, follower] {
        let address = scene.cluster.http(survivor);
        let id = scene.taken(address, &mut tally).await;
        scene.quiet().await;
        let lost = scene.others(survivor);
        for index in &lost {
            scene.kill(*index).await;
        }
        until("writes are refused", async || {
            let outcome = submit(&scene.http, address, json!({})).await;
            let refused = matches!(outcome, Outcome::Refused);
            tally.note(outcome);
            refused
        })
        .await;
        let (status, job) = scene.get(survivor, &format!("/api/v1/jobs/{id}")).await;
        assert_eq!((status, &job["status"]), (200, &json!("completed")));
        assert_eq!(scene.get(survivor, "/api/v1/jobs?page_size=1").await.0, 200);
        assert_eq!(scene.get(survivor, "/api/v1/jobs/stats/summary").await.0, 200);
        assert_eq!(scene.get(survivor, "/health/ready").await.0, 503);
        assert_eq!(scene.get(survivor, "/health/live").await.0, 200);
        for index in &lost {
            scene.cluster.restart(*index).await.unwrap();
        }
        scene.taken(address, &mut tally).await;
        for index in &lost {
            until("the replica is back", async || scene.cluster.is_ready(*index).await).await;
        }
    }
    scene.check(&tally).await;
}

#[tokio::test]
async fn a_group_that_lost_its_memory_does_not_lead_on_the_jobs_of_another() {
    let mut scene = Scene::with(|builder, _| builder.replicas(1).set(REFUSED_SOON)).await;
    let address = scene.cluster.http(0);
    accepted(&scene.http, address, json!({})).await;
    let leadership = "SELECT md5(leadership::text) FROM leadership";
    let before: String = sqlx::query_scalar(leadership).fetch_one(&scene.pool).await.unwrap();
    scene.kill(0).await;
    let raft = scene.cluster.data_dir().join("raft-1");
    fs::remove_dir_all(raft).unwrap();
    scene.cluster.restart(0).await.unwrap();
    until("the replica says why it does not lead", async || {
        let log = fs::read_to_string(scene.cluster.log(0)).unwrap();
        log.contains("must not lead: the database belongs to another cluster")
    })
    .await;
    let outcome = submit(&scene.http, address, json!({})).await;
    assert!(matches!(outcome, Outcome::Refused), "{outcome:?}");
    assert_eq!(scene.metric(0, "cortex_leader").await, 0.0);
    let after: String = sqlx::query_scalar(leadership).fetch_one(&scene.pool).await.unwrap();
    assert_eq!(before, after);
    assert_eq!(scene.count("SELECT count(*) FROM jobs").await, 1);
}
