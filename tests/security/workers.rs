//! A worker's token acts for the workers that it has registered, and for no others, at every replica.

use cortex::security::Role;
use cortex_client::proto::job_service_client::JobServiceClient;
use cortex_client::proto::{
    HeartbeatRequest, JobCompletion, JobStatusUpdate, PollJobRequest, PollJobResponse, SessionOpening,
    SessionRequest, WorkerRegistration,
};
use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::scene::{Scene, shared, with_token};
use crate::support::eventually;

/// One bearer of a token at one replica.
pub struct Bearer {
    client: JobServiceClient<Channel>,
    pub token: String,
}

impl Bearer {
    pub async fn new(scene: &Scene, replica: usize, subject: &str, role: Role) -> Self {
        let client = JobServiceClient::new(scene.channel(replica).await);
        Self { client, token: scene.token(subject, role) }
    }

    /// One whose connection takes no messages.
    pub async fn deaf(scene: &Scene, replica: usize, token: String) -> Self {
        let url = format!("http://{}", scene.cluster.grpc(replica));
        let channel =
            Channel::from_shared(url).unwrap().initial_stream_window_size(0).connect().await.unwrap();
        Self { client: JobServiceClient::new(channel), token }
    }

    pub async fn register(&mut self, hostname: &str) -> Result<String, Status> {
        let registration = WorkerRegistration {
            name: hostname.to_owned(),
            hostname: hostname.to_owned(),
            ip_address: "127.0.0.1".to_owned(),
            port: 1,
            capabilities: [("models".to_owned(), hostname.to_owned())].into(),
            max_concurrent_jobs: 2,
            ..WorkerRegistration::default()
        };
        let answer = self.client.register_worker(with_token(registration, &self.token)).await?;
        Ok(answer.into_inner().worker_id)
    }

    async fn heartbeat(&mut self, worker_id: &str) -> Code {
        let heartbeat = HeartbeatRequest {
            worker_id: worker_id.to_owned(),
            status: "idle".to_owned(),
            ..HeartbeatRequest::default()
        };
        code(self.client.heartbeat(with_token(heartbeat, &self.token)).await)
    }

    async fn poll(&mut self, worker_id: &str, wait_ms: i32) -> Result<PollJobResponse, Status> {
        let poll = PollJobRequest { worker_id: worker_id.to_owned(), wait_ms };
        Ok(self.client.poll_job(with_token(poll, &self.token)).await?.into_inner())
    }

    async fn complete(&mut self, worker_id: &str, job: &PollJobResponse) -> Result<bool, Status> {
        let completion = JobCompletion {
            job_id: job.job_id.clone(),
            worker_id: worker_id.to_owned(),
            execution_id: job.execution_id.clone(),
            attempt_number: job.attempt_number,
            success: true,
            ..JobCompletion::default()
        };
        Ok(self.client.complete_job(with_token(completion, &self.token)).await?.into_inner().acknowledged)
    }

    async fn update(&mut self, worker_id: &str, job: &PollJobResponse) -> Code {
        let update = JobStatusUpdate {
            job_id: job.job_id.clone(),
            worker_id: worker_id.to_owned(),
            status: "running".to_owned(),
            ..JobStatusUpdate::default()
        };
        code(self.client.update_job_status(with_token(update, &self.token)).await)
    }

    /// Opens a session for a worker that is registered already.
    pub async fn session(&mut self, worker_id: &str) -> Result<tonic::Streaming<impl Sized + use<>>, Status> {
        self.session_with(worker_id, 1).await
    }

    /// Opens one that asks for so many jobs.
    pub async fn session_with(
        &mut self,
        worker_id: &str,
        credits: u32,
    ) -> Result<tonic::Streaming<impl Sized + use<>>, Status> {
        let opening = SessionOpening { worker_id: worker_id.to_owned(), ..SessionOpening::default() };
        let first = SessionRequest { opening: Some(opening), credits, ..SessionRequest::default() };
        let requests = futures::stream::iter([first]).chain(futures::stream::pending());
        Ok(self.client.session(with_token(requests, &self.token)).await?.into_inner())
    }
}

fn code<T>(answer: Result<T, Status>) -> Code {
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

pub async fn submit(scene: &Scene, replica: usize, model: &str) -> Value {
    let token = scene.token("ann", Role::Submitter);
    let draft = json!({"name": "job", "model_name": model, "model_version": "1", "input_data": {"a": 1}});
    let answer = scene.send(replica, &Method::POST, "/api/v1/jobs", Some(&token), Some(&draft)).await;
    assert_eq!(answer.status(), 201);
    answer.json().await.unwrap()
}

#[tokio::test]
async fn a_worker_token_cannot_act_for_the_workers_of_another_one() {
    let scene = shared().await;
    for (round, replica) in scene.both().await.into_iter().enumerate() {
        let model = format!("owned-{round}");
        let mut owner = Bearer::new(scene, replica, "owner", Role::Worker).await;
        let mut other = Bearer::new(scene, (replica + 1) % 3, "other", Role::Worker).await;
        let mine = owner.register(&model).await.unwrap();
        let theirs = other.register(&format!("{model}-other")).await.unwrap();
        let job = submit(scene, replica, &model).await;
        let assigned = owner.poll(&mine, 10_000).await.unwrap();
        assert_eq!(assigned.job_id, job["id"].as_str().unwrap());

        assert_eq!(
            code(other.register(&model).await),
            Code::PermissionDenied,
            "under the same hostname and port"
        );
        assert_eq!(other.heartbeat(&mine).await, Code::PermissionDenied);
        assert_eq!(code(other.poll(&mine, 0).await), Code::PermissionDenied);
        assert_eq!(other.update(&mine, &assigned).await, Code::PermissionDenied);
        assert_eq!(code(other.complete(&mine, &assigned).await), Code::PermissionDenied);
        assert!(!other.complete(&theirs, &assigned).await.unwrap(), "a lease is no use to another worker");
        assert_eq!(code(other.session(&mine).await), Code::PermissionDenied);

        assert_eq!(owner.heartbeat(&mine).await, Code::Ok);
        assert!(owner.complete(&mine, &assigned).await.unwrap(), "nothing of all that has harmed the owner");
        let mut admin = Bearer::new(scene, replica, "root", Role::Admin).await;
        assert_eq!(admin.heartbeat(&mine).await, Code::Ok);
        assert_eq!(admin.register(&model).await.unwrap(), mine);
        assert_eq!(owner.heartbeat(&mine).await, Code::Ok, "it is still its owner's");
        let viewer = scene.token("ann", Role::Viewer);
        let path = format!("/api/v1/workers/{mine}");
        let worker = scene.send(replica, &Method::GET, &path, Some(&viewer), None).await;
        assert_eq!(worker.json::<Value>().await.unwrap()["owner"], "owner");
    }
}

#[tokio::test]
async fn the_demo_workers_of_a_group_with_tokens_run_its_jobs() {
    let scene = Scene::with_workers(1, 1, &[]).await;
    let job = submit(&scene, 0, "demo").await;
    let path = format!("/api/v1/jobs/{}", job["id"].as_str().unwrap());
    let viewer = scene.token("ann", Role::Viewer);
    eventually("the job is completed", async || {
        let shown = scene.send(0, &Method::GET, &path, Some(&viewer), None).await;
        shown.json::<Value>().await.unwrap()["status"] == "completed"
    })
    .await;
}

#[tokio::test]
async fn nobody_is_put_out_of_a_session_by_a_stranger() {
    let scene = shared().await;
    for (round, replica) in scene.both().await.into_iter().enumerate() {
        let model = format!("session-{round}");
        let mut owner = Bearer::new(scene, replica, "owner", Role::Worker).await;
        let mine = owner.register(&model).await.unwrap();
        let mut session = owner.session(&mine).await.unwrap();
        assert!(session.message().await.unwrap().is_some(), "the greeting");
        for at in 0..3 {
            let mut other = Bearer::new(scene, at, "other", Role::Worker).await;
            assert_eq!(code(other.session(&mine).await), Code::PermissionDenied, "at replica {at}");
        }
        let silent = tokio::time::timeout(std::time::Duration::from_millis(300), session.message()).await;
        assert!(silent.is_err(), "the session goes on");
    }
}

#[tokio::test]
async fn a_job_that_names_no_creator_is_its_submitters() {
    let scene = shared().await;
    for replica in scene.both().await {
        assert_eq!(submit(scene, replica, "nobody-runs-this").await["created_by"], "ann");
        let token = scene.token("ann", Role::Submitter);
        let draft = json!({"name": "job", "model_name": "m", "model_version": "1", "input_data": {"a": 1},
            "created_by": "a team"});
        let answer = scene.send(replica, &Method::POST, "/api/v1/jobs", Some(&token), Some(&draft)).await;
        assert_eq!(answer.json::<Value>().await.unwrap()["created_by"], "a team");
    }
    scene.logs_are_clean(&[&scene.token("ann", Role::Submitter)]);
}
