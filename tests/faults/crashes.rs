//! The leader dies between two steps that belong together.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use cortex_client::proto::job_service_client::JobServiceClient;
use cortex_client::proto::{JobCompletion, PollJobRequest, WorkerRegistration};
use serde_json::json;

use crate::load::{Load, Tally, submit};
use crate::scene::Scene;

const WORK: Duration = Duration::from_millis(30);

/// Every point of `cortex::services::crash`.
const POINTS: [&str; 6] = ["claimed", "assigned", "fetched", "applied", "submitted", "before_queue"];

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

    /// Waits until it has.
    async fn has_died(&self, leader: usize, point: &str) {
        let ended = self.cluster.wait_for_exit(leader).await.unwrap();
        assert!(!ended.success() && !self.point(point).exists(), "{point}: {ended}");
    }
}

#[tokio::test]
async fn a_leader_that_dies_between_two_steps_loses_nothing_and_repeats_nothing() {
    let mut scene = Scene::with_crash_points().await;
    scene.start_worker(1, 8, WORK);
    scene.start_worker(2, 8, WORK);
    let mut all = Tally::default();
    for point in POINTS {
        let leader = scene.leader().await;
        let load = Load::start(&scene.http, &scene.http_of(&scene.others(leader)));
        load.accepts(20).await;
        scene.arm(point);
        scene.has_died(leader, point).await;
        load.accepts(20).await;
        scene.leader_other_than(leader).await;
        scene.revive(leader).await;
        let tally = load.finish().await;
        println!("{point}: {} accepted, {} refused, {} unknown", tally.accepted.len(), tally.refused, tally.unknown);
        all.add(tally);
        scene.check(&all).await;
    }
}

#[tokio::test]
async fn a_worker_whose_leader_dies_before_the_answer_gets_it_from_the_next_one() {
    let mut scene = Scene::with_crash_points().await;
    let leader = scene.leader().await;
    let other = scene.others(leader)[0];
    let endpoint = format!("http://{}", scene.cluster.grpc(other));
    let mut client = JobServiceClient::connect(endpoint).await.unwrap();
    let registration = WorkerRegistration {
        name: "by-hand".to_owned(),
        hostname: "test".to_owned(),
        ip_address: "127.0.0.1".to_owned(),
        port: 1,
        max_concurrent_jobs: 1,
        ..WorkerRegistration::default()
    };
    let worker_id = client.register_worker(registration).await.unwrap().into_inner().worker_id;

    // The job is on its way to a call that waits.
    scene.arm("assigned");
    let poll = PollJobRequest { worker_id: worker_id.clone(), wait_ms: 20_000, ..PollJobRequest::default() };
    let mut poller = client.clone();
    let polled = tokio::spawn(async move { poller.poll_job(poll).await.unwrap().into_inner() });
    let mut tally = Tally::default();
    tally.note(submit(&scene.http, scene.cluster.http(other), json!({})).await);
    scene.has_died(leader, "assigned").await;
    let job = polled.await.unwrap();
    assert!(job.has_job, "the call waited for nothing");
    assert_eq!(scene.count("SELECT count(*) FROM executions").await, 1, "one lease");
    scene.revive(leader).await;

    // Its completion is stored.
    let leader = scene.leader().await;
    let other = scene.others(leader)[0];
    let endpoint = format!("http://{}", scene.cluster.grpc(other));
    let mut client = JobServiceClient::connect(endpoint).await.unwrap();
    let completion = JobCompletion {
        job_id: job.job_id.clone(),
        worker_id,
        success: true,
        output_data: "{}".into(),
        execution_id: job.execution_id.clone(),
        ..JobCompletion::default()
    };
    scene.arm("applied");
    let answer = client.complete_job(completion.clone()).await.unwrap().into_inner();
    scene.has_died(leader, "applied").await;
    assert!(answer.acknowledged, "{answer:?}");
    let different = JobCompletion { output_data: "{\"other\": 1}".into(), ..completion };
    let answer = client.complete_job(different).await.unwrap().into_inner();
    assert!(!answer.acknowledged, "a different report is no repetition: {answer:?}");
    scene.check(&tally).await;
}
