//! What is known of workers outlasts the leader.

use std::collections::HashMap;

use cortex_client::proto::job_service_client::JobServiceClient;
use cortex_client::proto::{
    JobCompletion, JobStatusUpdate, PollJobRequest, PollJobResponse, WorkerRegistration,
};
use serde_json::{Value, json};
use tonic::transport::Channel;
use uuid::Uuid;

use crate::load::accepted;
use crate::scene::{Scene, until};

/// A worker that does what the test says, for jobs of a model that is called like it.
struct Puppet {
    id: String,
    registration: WorkerRegistration,
    client: JobServiceClient<Channel>,
}

impl Puppet {
    async fn register(scene: &Scene, replica: usize, name: &str) -> Self {
        let endpoint = format!("http://{}", scene.cluster.grpc(replica));
        let client = JobServiceClient::connect(endpoint).await.unwrap();
        let registration = WorkerRegistration {
            name: name.to_owned(),
            hostname: name.to_owned(),
            ip_address: "127.0.0.1".to_owned(),
            port: 1,
            capabilities: HashMap::from([("models".to_owned(), name.to_owned())]),
            max_concurrent_jobs: 4,
            heartbeat_interval_seconds: 300,
            ..WorkerRegistration::default()
        };
        let mut puppet = Self { id: String::new(), registration, client };
        puppet.register_again().await;
        puppet
    }

    async fn register_again(&mut self) {
        let answer = self.client.register_worker(self.registration.clone()).await.unwrap();
        self.id = answer.into_inner().worker_id;
    }

    async fn job(&mut self) -> PollJobResponse {
        let request = PollJobRequest { worker_id: self.id.clone(), wait_ms: 30_000 };
        let job = self.client.poll_job(request).await.unwrap().into_inner();
        assert!(job.has_job);
        job
    }

    async fn runs(&mut self, job: &PollJobResponse) {
        let update = JobStatusUpdate {
            job_id: job.job_id.clone(),
            worker_id: self.id.clone(),
            status: "running".to_owned(),
            ..JobStatusUpdate::default()
        };
        assert!(self.client.update_job_status(update).await.unwrap().into_inner().acknowledged);
    }

    async fn ends(&mut self, job: &PollJobResponse, success: bool) {
        let report = JobCompletion {
            job_id: job.job_id.clone(),
            worker_id: self.id.clone(),
            success,
            duration_ms: 40,
            ..JobCompletion::default()
        };
        assert!(self.client.complete_job(report).await.unwrap().into_inner().acknowledged);
    }
}

impl Scene {
    async fn submit_for(&self, replica: usize, model: &str, fields: Value) -> Uuid {
        let mut all = json!({"model_name": model, "max_retries": 0});
        all.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        accepted(&self.http, self.cluster.http(replica), all).await
    }

    async fn worker(&self, replica: usize, worker: &Puppet) -> Value {
        self.get(replica, &format!("/api/v1/workers/{}", worker.id)).await.1
    }

    async fn status_of(&self, replica: usize, job: Uuid) -> Value {
        self.get(replica, &format!("/api/v1/jobs/{job}")).await.1["status"].take()
    }
}

#[tokio::test]
async fn who_is_drained_removed_or_unhealthy_stays_so_under_the_next_leader_and_deadlines_are_kept() {
    let scene = Scene::with(|builder, _| {
        builder.set("scheduler.unhealthy_after=2").set("scheduler.unhealthy_pause=3600")
    })
    .await;
    let leader = scene.leader().await;
    let there = scene.others(leader)[0];
    let mut drained = Puppet::register(&scene, there, "drained").await;
    let removed = Puppet::register(&scene, there, "removed").await;
    let mut failing = Puppet::register(&scene, there, "failing").await;
    let mut silent = Puppet::register(&scene, there, "silent").await;

    let kept = scene.submit_for(there, "drained", json!({})).await;
    let kept_job = drained.job().await;
    drained.runs(&kept_job).await;
    for _ in 0..2 {
        scene.submit_for(there, "failing", json!({})).await;
        let job = failing.job().await;
        failing.ends(&job, false).await;
    }
    // Its worker says nothing any more, and is given much longer than the job.
    let late = scene.submit_for(there, "silent", json!({"timeout_seconds": 5})).await;
    let job = silent.job().await;
    silent.runs(&job).await;
    let url = |path: String| format!("http://{}/api/v1/workers/{path}", scene.cluster.http(there));
    let answer = scene.http.post(url(format!("{}/drain", drained.id))).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let answer = scene.http.delete(url(removed.id.clone())).send().await.unwrap();
    assert_eq!(answer.status(), 204);

    scene.kill(leader).await;
    scene.leader_other_than(leader).await;
    let mut waiting = Vec::new();
    for model in ["drained", "removed", "failing"] {
        waiting.push(scene.submit_for(there, model, json!({})).await);
    }
    // Once the youngest job is taken the scheduler has looked at the others, too.
    let mut other = Puppet::register(&scene, there, "other").await;
    scene.submit_for(there, "other", json!({})).await;
    let job = other.job().await;
    other.ends(&job, true).await;
    for job in &waiting {
        assert_eq!(scene.status_of(there, *job).await, "queued");
    }
    until("the unhealthy worker is shown", async || {
        let shown = scene.worker(there, &failing).await;
        shown["status"] == "unhealthy" && shown["consecutive_failures"] == 2
    })
    .await;
    assert_eq!(scene.worker(there, &drained).await["draining"], true);
    drained.ends(&kept_job, true).await;
    assert_eq!(scene.status_of(there, kept).await, "completed");

    until("the deadline is kept", async || scene.status_of(there, late).await == "timeout").await;
    until("what the silent worker held is not counted any more", async || {
        let shown = scene.worker(there, &silent).await;
        shown["current_job_count"] == 0 && shown["total_jobs_failed"] == 1
    })
    .await;
    let shown = scene.worker(there, &drained).await;
    assert_eq!(
        (&shown["total_jobs_completed"], &shown["average_execution_time_ms"]),
        (&json!(1), &json!(40))
    );

    let mut removed = removed;
    for (worker, job) in [&mut drained, &mut removed, &mut failing].into_iter().zip(waiting) {
        let before = worker.id.clone();
        worker.register_again().await;
        assert_eq!((worker.job().await.job_id, &worker.id), (job.to_string(), &before));
    }
}
