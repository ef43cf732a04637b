//! The leader is killed, frozen, asked to go.

use std::time::Duration;

use cortex::dev::Signal;
use cortex::domain::ids::{ClusterId, Epoch, JobId};
use cortex::ready_queue::{QueueError, ReadyQueue};
use cortex::storage::{Database, DatabaseOptions, Fence, StorageError};
use serde_json::json;
use tokio::time::sleep;
use uuid::Uuid;

use crate::load::{Load, accepted};
use crate::scene::{Scene, until};

/// How long the work on a job takes.
const WORK: Duration = Duration::from_millis(30);
/// Longer than an election and than a worker's heartbeat.
const FREEZE: Duration = Duration::from_secs(3);

impl Scene {
    /// The leadership that PostgreSQL holds.
    pub async fn stored_fence(&self) -> Fence {
        let (cluster_id, epoch): (Uuid, i64) =
            sqlx::query_as("SELECT cluster_id, epoch FROM leadership").fetch_one(&self.pool).await.unwrap();
        Fence { cluster_id: ClusterId(cluster_id), epoch: Epoch(epoch) }
    }

    /// What a leader with this fence would meet in both stores.
    async fn try_to_write(&self, fence: Fence) -> (Result<(), StorageError>, Result<usize, QueueError>) {
        let database = Database::connect_lazily(&DatabaseOptions {
            url: self.stores.database_url.clone(),
            max_connections: 1,
            acquire_timeout: Duration::from_secs(5),
            max_lifetime: Duration::from_secs(600),
            pooler: false,
        })
        .unwrap();
        let begun = match database.begin(fence).await {
            Ok(transaction) => {
                transaction.roll_back().await;
                Ok(())
            }
            Err(error) => Err(error),
        };
        database.close().await;
        let queue = ReadyQueue::connect(&self.stores.redis_url, &self.stores.queue_prefix).unwrap();
        (begun, queue.confirm(fence.epoch, &[JobId(Uuid::nil())]).await)
    }
}

#[tokio::test]
async fn a_killed_leader_takes_no_accepted_job_along_and_serves_again_when_it_is_back() {
    let mut scene = Scene::start().await;
    let leader = scene.leader().await;
    let others = scene.http_of(&scene.others(leader));
    scene.start_worker(1, 8, WORK);
    scene.start_worker(2, 8, WORK);
    let load = Load::start(&scene.http, &others);
    load.accepts(75).await;
    scene.kill(leader).await;
    load.accepts(75).await;
    until("the next leader counts itself", async || {
        let next = scene.leader_other_than(leader).await;
        scene.metric(next, "cortex_failovers_total").await >= 1.0
    })
    .await;

    scene.revive(leader).await;
    let back = scene.http_of(&[leader]);
    let late = Load::start(&scene.http, &back);
    late.accepts(10).await;
    let mut tally = load.finish().await;
    assert_eq!(tally.unreachable, 0, "the other replicas are always there");
    tally.add(late.finish().await);
    scene.check(&tally).await;
}

#[tokio::test]
async fn a_frozen_leader_writes_nothing_after_its_successor_and_follows_it() {
    let scene = Scene::start().await;
    let frozen = scene.leader().await;
    let others = scene.http_of(&scene.others(frozen));
    scene.start_worker(1, 8, WORK);
    scene.start_worker(2, 8, WORK);
    let load = Load::start(&scene.http, &others);
    load.accepts(75).await;
    let old = scene.stored_fence().await;
    assert!(scene.cluster.pause(frozen));
    sleep(FREEZE).await;
    scene.leader_other_than(frozen).await;
    load.accepts(75).await;
    let new = scene.stored_fence().await;
    assert!(new.epoch > old.epoch);
    assert!(scene.cluster.resume(frozen));
    until("the former leader follows", async || {
        let (_, view) = scene.get(frozen, "/api/v1/cluster").await;
        view["role"] == "follower"
            && view["leader"].as_u64().is_some_and(|leader| leader != frozen as u64 + 1)
    })
    .await;
    until("it has stopped to lead", async || scene.metric(frozen, "cortex_leader").await == 0.0).await;
    println!("writes fenced off: {}", scene.metric(frozen, "cortex_fenced_writes_total").await);

    let (postgres, redis) = scene.try_to_write(old).await;
    assert!(matches!(postgres, Err(StorageError::Fenced)), "{postgres:?}");
    assert!(matches!(redis, Err(QueueError::Fenced { stored }) if stored >= new.epoch.0), "{redis:?}");
    until("the current leader may write", async || {
        let (postgres, redis) = scene.try_to_write(scene.stored_fence().await).await;
        postgres.is_ok() && redis.is_ok()
    })
    .await;

    let mut tally = load.finish().await;
    tally.accepted.push(accepted(&scene.http, scene.cluster.http(frozen), json!({})).await);
    scene.check(&tally).await;
}

#[tokio::test]
async fn a_leader_that_is_asked_to_stop_hands_over_without_a_failed_submission() {
    // Nobody but the one that is asked loses the leadership.
    let scene = Scene::with(|builder, _| builder.set("cluster.election_timeout_ms=[5000, 10000]")).await;
    let leader = scene.leader().await;
    let others = scene.http_of(&scene.others(leader));
    scene.start_worker(1, 8, WORK);
    scene.start_worker(2, 8, WORK);
    let load = Load::start(&scene.http, &others);
    load.accepts(75).await;
    assert!(scene.cluster.kill(leader, Signal::SIGTERM));
    let ended = scene.cluster.wait_for_exit(leader).await.unwrap();
    assert!(ended.success(), "{ended}");
    load.accepts(75).await;
    scene.leader_other_than(leader).await;
    let tally = load.finish().await;
    assert_eq!((tally.refused, tally.unknown, tally.unreachable), (0, 0, 0));
    scene.check(&tally).await;
}
