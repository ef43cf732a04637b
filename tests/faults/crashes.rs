//! The leader dies between two steps that belong together.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use cortex_client::proto::job_service_client::JobServiceClient;
use cortex_client::proto::{
    JobCompletion, JobStatusUpdate, PollJobRequest, PollJobResponse, WorkerRegistration,
};
use futures::FutureExt;
use futures::future::select_all;
use serde_json::json;
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::load::{Load, Tally, accepted, submit};
use crate::scene::{PATIENCE, Scene, until};

const WORK: Duration = Duration::from_millis(30);

/// Every point of `cortex::services::crash` but `fetched`, `removed` and `key_claimed`, to which these workers and
/// submissions do not come.
const POINTS: [&str; 5] = ["claimed", "assigned", "applied", "submitted", "before_queue"];

impl Scene {
    async fn with_crash_points() -> Self {
        Self::with(|builder, folder| builder.env("CORTEX_CRASH_POINTS", folder.to_string_lossy())).await
    }

    fn point(&self, name: &str) -> PathBuf {
        self.cluster.data_dir().with_file_name(name)
    }

    /// Has the leader die when it comes to this point.
    fn arm(&self, point: &str) {
        fs::write(self.point(point), "").unwrap();
    }

    /// Waits until it has, and starts it again once another one leads.
    async fn dies_and_comes_back(&mut self, point: &str) {
        let died = (0..self.cluster.size()).map(|index| self.cluster.wait_for_exit(index).boxed());
        let died = timeout(PATIENCE, select_all(died)).await;
        let (ended, leader, _) = died.unwrap_or_else(|_| panic!("nobody came to the point {point}"));
        assert!(!ended.unwrap().success() && !self.point(point).exists(), "{point}");
        self.leader_other_than(leader).await;
        self.revive(leader).await;
    }

    /// A replica that does not lead, and a worker's way to it.
    async fn follower(&self) -> (usize, JobServiceClient<Channel>) {
        let follower = self.others(self.leader().await)[0];
        let endpoint = format!("http://{}", self.cluster.grpc(follower));
        (follower, JobServiceClient::connect(endpoint).await.unwrap())
    }
}

#[tokio::test]
async fn a_leader_that_dies_between_two_steps_loses_nothing_and_repeats_nothing() {
    let mut scene = Scene::with_crash_points().await;
    // Few slots: some jobs have to wait, and go through the ready queue.
    scene.start_worker(1, 2, WORK);
    scene.start_worker(2, 2, WORK);
    let mut all = Tally::default();
    for point in POINTS {
        let leader = scene.leader().await;
        let load = Load::start(&scene.http, &scene.http_of(&scene.others(leader)));
        load.accepts(20).await;
        scene.arm(point);
        scene.dies_and_comes_back(point).await;
        load.accepts(20).await;
        let tally = load.finish().await;
        println!(
            "{point}: {} accepted, {} refused, {} unknown",
            tally.accepted.len(),
            tally.refused,
            tally.unknown
        );
        all.add(tally);
        scene.check(&all).await;
    }
}

#[tokio::test]
async fn a_key_whose_leader_dies_before_the_job_is_stored_stands_for_one_job() {
    let mut scene = Scene::with_crash_points().await;
    let (follower, _) = scene.follower().await;
    scene.arm("key_claimed");
    let job = json!({"name": "job", "model_name": "m", "model_version": "1", "input_data": {"n": 1}});
    let (http, url) = (scene.http.clone(), format!("http://{}/api/v1/jobs", scene.cluster.http(follower)));
    let submit = async || {
        let request = http.post(&url).header("Idempotency-Key", "one").json(&job).send().await.unwrap();
        (request.status().as_u16(), request.json::<serde_json::Value>().await.unwrap()["id"].clone())
    };
    // Carried on to the next leader, which finds the key claimed by a copy of the same request.
    let (first, ()) = tokio::join!(submit(), scene.dies_and_comes_back("key_claimed"));
    assert_eq!(first.0, 201, "{first:?}");
    assert_eq!(submit().await, (200, first.1));
    assert_eq!(scene.count("SELECT count(*) FROM jobs").await, 1);
}

#[tokio::test]
async fn a_worker_whose_leader_dies_before_the_answer_gets_it_from_the_next_one() {
    let mut scene = Scene::with_crash_points().await;
    let mut tally = Tally::default();
    let (other, mut client) = scene.follower().await;
    let registration = WorkerRegistration {
        name: "by-hand".to_owned(),
        hostname: "test".to_owned(),
        ip_address: "127.0.0.1".to_owned(),
        port: 1,
        max_concurrent_jobs: 1,
        ..WorkerRegistration::default()
    };

    // Claimed in Redis, as soon as there is a worker, and in nobody's hands: no other difference tells of it.
    tally.note(submit(&scene.http, scene.cluster.http(other), json!({})).await);
    scene.arm("claimed");
    let worker_id = client.register_worker(registration).await.unwrap().into_inner().worker_id;
    scene.dies_and_comes_back("claimed").await;
    let (other, mut client) = scene.follower().await;
    // A worker whose calls do not wait is assigned jobs before it asks for them.
    let glance = PollJobRequest { worker_id: worker_id.clone(), wait_ms: 0 };
    let mut job = PollJobResponse::default();
    until("the claimed job comes", async || {
        job = client.poll_job(glance.clone()).await.unwrap().into_inner();
        job.has_job
    })
    .await;

    // Assigned, and the worker does not know: the slot is free once its first job has ended.
    tally.note(submit(&scene.http, scene.cluster.http(other), json!({})).await);
    scene.arm("assigned");
    let completion = completion_of(&worker_id, &job);
    assert!(client.complete_job(completion).await.unwrap().into_inner().acknowledged);
    scene.dies_and_comes_back("assigned").await;

    // Fetched, and on its way to the call.
    let (_, mut client) = scene.follower().await;
    let poll = PollJobRequest { wait_ms: 20_000, ..glance };
    scene.arm("fetched");
    let polled = tokio::spawn(async move { client.poll_job(poll).await.unwrap().into_inner() });
    scene.dies_and_comes_back("fetched").await;
    let job = polled.await.unwrap();
    assert!(job.has_job, "the assigned job was lost on the way");
    assert_eq!(scene.count("SELECT count(*) FROM executions").await, 2, "one lease for each job");

    // Completed, and not acknowledged.
    let (_, mut client) = scene.follower().await;
    scene.arm("applied");
    let completion = completion_of(&worker_id, &job);
    let answer = client.complete_job(completion.clone()).await.unwrap().into_inner();
    scene.dies_and_comes_back("applied").await;
    assert!(answer.acknowledged, "{answer:?}");
    let different = JobCompletion { output_data: "{\"other\": 1}".into(), ..completion };
    let (_, mut client) = scene.follower().await;
    let answer = client.complete_job(different).await.unwrap().into_inner();
    assert!(!answer.acknowledged, "a different report is no repetition: {answer:?}");
    scene.check(&tally).await;
}

#[tokio::test]
async fn what_a_removed_worker_ran_is_ended_by_the_next_leader() {
    let mut scene = Scene::with_crash_points().await;
    let (other, mut client) = scene.follower().await;
    let registration = WorkerRegistration {
        name: "by-hand".to_owned(),
        hostname: "test".to_owned(),
        ip_address: "127.0.0.1".to_owned(),
        port: 1,
        ..WorkerRegistration::default()
    };
    let worker_id = client.register_worker(registration).await.unwrap().into_inner().worker_id;
    accepted(&scene.http, scene.cluster.http(other), json!({"max_retries": 0})).await;
    let poll = PollJobRequest { worker_id: worker_id.clone(), wait_ms: 20_000 };
    let job = client.poll_job(poll).await.unwrap().into_inner();
    let running = JobStatusUpdate {
        job_id: job.job_id.clone(),
        worker_id: worker_id.clone(),
        status: "running".to_owned(),
        ..JobStatusUpdate::default()
    };
    assert!(client.update_job_status(running).await.unwrap().into_inner().acknowledged);

    // At the leader itself, so that nobody sends it again.
    let leader = scene.leader().await;
    scene.arm("removed");
    let url = format!("http://{}/api/v1/workers/{worker_id}", scene.cluster.http(leader));
    assert!(scene.http.delete(url).send().await.is_err());
    scene.dies_and_comes_back("removed").await;
    until("the job has failed", async || {
        let (_, found) = scene.get(other, &format!("/api/v1/jobs/{}", job.job_id)).await;
        found["status"] == "failed"
    })
    .await;
    let lost = "SELECT count(*) FROM executions WHERE error_code = 'worker_lost'";
    assert_eq!(scene.count(lost).await, 1);
    assert_eq!(scene.count("SELECT count(*) FROM leases").await, 0);
    let removed = "SELECT count(*) FROM workers WHERE status = 'offline' AND removed_at IS NOT NULL";
    assert_eq!(scene.count(removed).await, 1);
}

fn completion_of(worker_id: &str, job: &PollJobResponse) -> JobCompletion {
    JobCompletion {
        job_id: job.job_id.clone(),
        worker_id: worker_id.to_owned(),
        success: true,
        output_data: "{}".into(),
        execution_id: job.execution_id.clone(),
        ..JobCompletion::default()
    }
}
