//! Redis is emptied, Redis and PostgreSQL die under load.

use std::time::Duration;

use cortex::dev::Signal;
use cortex::domain::ambient::{Ambient, System};
use cortex::domain::ids::{Epoch, JobId};
use cortex::domain::matching::Shape;
use cortex::ready_queue::{Entry, ReadyQueue};
use futures::StreamExt;
use serde_json::json;

use crate::load::{Load, Tally, submit};
use crate::scene::{Scene, until};

const WORK: Duration = Duration::from_millis(30);
/// Jobs that wait when Redis is emptied.
const BACKLOG: usize = 10_000;
/// Workers that run them.
const WORKERS: u16 = 10;
/// Submissions at a time.
const AT_ONCE: usize = 256;

impl Scene {
    async fn empty_redis(&self) {
        self.at_redis(&redis::cmd("FLUSHALL")).await;
    }

    async fn at_redis(&self, command: &redis::Cmd) {
        let client = redis::Client::open(self.stores.redis_url.as_str()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        command.exec_async(&mut connection).await.unwrap();
    }

    fn queue(&self) -> ReadyQueue {
        ReadyQueue::connect(&self.stores.redis_url, &self.stores.queue_prefix).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_redis_is_filled_again_and_every_waiting_job_runs() {
    let scene = Scene::with(|builder, _| builder.set(format!("queue.max_queue_size={}", 2 * BACKLOG))).await;
    let replicas = scene.http_of(&[0, 1, 2]);
    let mut tally = Tally::default();
    // What is refused is not stored, and is submitted again.
    while tally.accepted.len() < BACKLOG {
        let before = tally.accepted.len();
        let mut submissions = futures::stream::iter(replicas.iter().copied().cycle().take(BACKLOG - before))
            .map(|replica| submit(&scene.http, replica, json!({})))
            .buffer_unordered(AT_ONCE);
        while let Some(outcome) = submissions.next().await {
            tally.note(outcome);
        }
        assert!(tally.accepted.len() > before, "all are refused");
        assert_eq!((tally.unknown, tally.unreachable), (0, 0));
    }
    let queue = scene.queue();
    let whole = async || queue.total().await.is_ok_and(|total| total == BACKLOG as u64);
    until("the queue is whole", whole).await;
    scene.empty_redis().await;
    until("the queue is whole again", whole).await;
    for number in 1..=WORKERS {
        scene.start_worker(number, 100, Duration::ZERO);
    }
    scene.check(&tally).await;
    until("nothing is left in the queue", async || queue.total().await.is_ok_and(|total| total == 0)).await;
}

#[tokio::test]
async fn a_job_that_the_queue_lacks_is_missed_although_the_numbers_agree() {
    let scene = Scene::with(|builder, _| builder).await;
    let replica = scene.http_of(&[0])[0];
    let mut tally = Tally::default();
    tally.note(submit(&scene.http, replica, json!({})).await);
    let queue = scene.queue();
    let shape = Shape { model_name: "m".to_owned(), requires_gpu: false, required_memory_mib: 0 };
    let job = [(JobId(tally.accepted[0]), shape.clone())];
    let is_there = async || queue.contains(&job).await.is_ok_and(|there| there == [true]);
    until("the job is in the queue", is_there).await;
    let epoch = Epoch(scene.count("SELECT epoch FROM leadership").await);
    let stranger = Entry { job_id: JobId(System.uuid()), shape, priority: 5, submitted_at: System.now() };
    queue.enqueue(epoch, &[stranger]).await.unwrap();
    queue.remove(epoch, &job).await.unwrap();
    assert_eq!(queue.total().await.unwrap(), 1);
    until("the job is in the queue again", is_there).await;
}

#[tokio::test]
async fn a_depth_that_is_wrong_is_counted_anew() {
    let scene = Scene::with(|builder, _| builder).await;
    let replica = scene.http_of(&[0])[0];
    let accepted = submit(&scene.http, replica, json!({"priority": 4})).await;
    let mut tally = Tally::default();
    tally.note(accepted);
    let queue = scene.queue();
    let right = async || queue.depth().await.is_ok_and(|depth| depth == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    until("the job is in the queue", right).await;
    // The sum stays right.
    let depth = format!("{prefix}:{{{prefix}}}:depth", prefix = scene.stores.queue_prefix);
    for (priority, by) in [(4, 2), (7, -2)] {
        scene.at_redis(redis::cmd("HINCRBY").arg(&depth).arg(priority).arg(by)).await;
    }
    assert!(!right().await, "the depth is not kept in {depth}");
    until("the depth is right again", right).await;
}

#[tokio::test]
async fn redis_may_die_under_load() {
    let mut scene = Scene::with_own_stores().await;
    scene.start_worker(1, 4, WORK);
    let replicas = scene.http_of(&[0, 1, 2]);
    let load = Load::start(&scene.http, &replicas);
    load.accepts(60).await;
    assert!(scene.cluster.redis().unwrap().signal(Signal::SIGKILL));
    // Submissions do not need it.
    load.accepts(60).await;
    let (status, health) = scene.get(0, "/health").await;
    assert_eq!((status, &health["redis"]["ok"]), (503, &json!(false)), "{health}");
    scene.cluster.redis().unwrap().restart().await.unwrap();
    load.accepts(60).await;
    let tally = load.finish().await;
    assert_eq!(tally.unreachable, 0, "the replicas live");
    scene.start_worker(2, 16, WORK);
    scene.check(&tally).await;
}

#[tokio::test]
async fn postgresql_may_crash_under_load() {
    let mut scene = Scene::with_own_stores().await;
    scene.start_worker(1, 8, WORK);
    let replicas = scene.http_of(&[0, 1, 2]);
    let load = Load::start(&scene.http, &replicas);
    load.accepts(60).await;
    // An immediate shutdown: as if it had crashed.
    assert!(scene.cluster.postgres().unwrap().signal(Signal::SIGQUIT));
    load.is_refused().await;
    assert_eq!(scene.get(0, "/health/ready").await.0, 503);
    assert_eq!(scene.get(0, "/health/live").await.0, 200);
    scene.cluster.postgres().unwrap().restart().await.unwrap();
    load.accepts(60).await;
    let tally = load.finish().await;
    assert!(tally.refused + tally.unknown > 0, "nobody noticed");
    assert_eq!(tally.unreachable, 0, "the replicas live");
    scene.start_worker(2, 16, WORK);
    scene.check(&tally).await;
}
