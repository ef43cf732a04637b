//! Each planted defect does harm, and what it harms holds without it: the same steps on one replica, with
//! `CORTEX_PLANT` and without. `fsync_left_out` is beside the log, in `cluster/src/store/unsynced.rs`.

use std::process::Command;

use cortex::domain::ids::JobId;
use cortex::domain::matching::Shape;
use cortex::ready_queue::{Entry, Group, Offer, ReadyQueue};
use cortex_client::proto::job_service_client::JobServiceClient;
use cortex_client::proto::{JobCompletion, PollJobRequest, PollJobResponse, WorkerRegistration};
use serde_json::{Value, json};
use tonic::transport::Channel;
use uuid::Uuid;

use crate::load::{Outcome, accepted, submit};
use crate::scene::{REFUSED_SOON, Scene, until};

/// One replica, and one worker with one slot that is driven by hand.
struct Stage {
    scene: Scene,
    worker_id: String,
}

impl Stage {
    async fn set(plant: Option<&str>) -> Self {
        let scene = Scene::with(|builder, _| {
            let builder = builder.replicas(1).set(REFUSED_SOON);
            plant.into_iter().fold(builder, |builder, plant| builder.env("CORTEX_PLANT", plant))
        })
        .await;
        scene.leader().await;
        Self { scene, worker_id: String::new() }
    }

    async fn with_worker(plant: Option<&str>) -> Self {
        let mut stage = Self::set(plant).await;
        stage.register().await;
        stage
    }

    async fn client(&self) -> JobServiceClient<Channel> {
        JobServiceClient::connect(format!("http://{}", self.scene.cluster.grpc(0))).await.unwrap()
    }

    async fn register(&mut self) {
        let registration = WorkerRegistration {
            name: "by-hand".to_owned(),
            hostname: "test".to_owned(),
            ip_address: "127.0.0.1".to_owned(),
            port: 1,
            max_concurrent_jobs: 1,
            ..WorkerRegistration::default()
        };
        let registered = self.client().await.register_worker(registration).await.unwrap();
        self.worker_id = registered.into_inner().worker_id;
    }

    async fn submit(&self, fields: Value) -> Uuid {
        accepted(&self.scene.http, self.scene.cluster.http(0), fields).await
    }

    async fn poll(&self) -> PollJobResponse {
        let poll = PollJobRequest { worker_id: self.worker_id.clone(), wait_ms: 20_000 };
        let job = self.client().await.poll_job(poll).await.unwrap().into_inner();
        assert!(job.has_job, "nothing came");
        job
    }

    /// Reports the end of an attempt. Whether the report was accepted.
    async fn report(&self, job: &PollJobResponse, success: bool) -> bool {
        let completion = JobCompletion {
            job_id: job.job_id.clone(),
            worker_id: self.worker_id.clone(),
            success,
            output_data: "{}".into(),
            error_message: if success { String::new() } else { "it broke".to_owned() },
            execution_id: job.execution_id.clone(),
            ..JobCompletion::default()
        };
        let answer = self.client().await.complete_job(completion).await;
        answer.is_ok_and(|answer| answer.into_inner().acknowledged)
    }

    async fn status(&self, job: &PollJobResponse) -> String {
        let job: Uuid = job.job_id.parse().unwrap();
        let status = sqlx::query_scalar("SELECT status FROM jobs WHERE id = $1").bind(job);
        status.fetch_one(&self.scene.pool).await.unwrap()
    }

    /// PostgreSQL knows a newer leader from now on.
    async fn depose(&self) {
        let newer = "UPDATE leadership SET epoch = epoch + 1000";
        sqlx::raw_sql(newer).execute(&self.scene.pool).await.unwrap();
    }

    fn queue(&self) -> ReadyQueue {
        ReadyQueue::connect(&self.scene.stores.redis_url, &self.scene.stores.queue_prefix).unwrap()
    }
}

fn shape() -> Shape {
    Shape { model_name: "m".to_owned(), requires_gpu: false, required_memory_mib: 0 }
}

#[tokio::test]
async fn with_the_fence_off_a_former_leader_writes() {
    for plant in [None, Some("fence_off")] {
        let stage = Stage::set(plant).await;
        stage.submit(json!({})).await;
        stage.depose().await;
        let queue = stage.queue();
        queue.generation(stage.scene.stored_fence().await.epoch).await.unwrap();
        let outcome = submit(&stage.scene.http, stage.scene.cluster.http(0), json!({})).await;
        assert_eq!(matches!(outcome, Outcome::Accepted(_)), plant.is_some(), "{plant:?}: {outcome:?}");
        let late = stage.scene.count("SELECT count(*) FROM witness WHERE writer <> current").await;
        assert_eq!(late > 0, plant.is_some(), "{plant:?}: {late} writes under an old epoch");
        if plant.is_some() {
            until("Redis takes it as well", async || queue.total().await.unwrap() == 2).await;
        }
    }
}

#[tokio::test]
async fn with_the_token_ignored_the_report_of_an_ended_attempt_counts_for_the_next_one() {
    for plant in [None, Some("lease_token_ignored")] {
        let stage = Stage::with_worker(plant).await;
        stage.submit(json!({"max_retries": 1})).await;
        let first = stage.poll().await;
        assert!(stage.report(&first, false).await);
        let second = stage.poll().await;
        assert_ne!(first.execution_id, second.execution_id);
        assert_eq!(stage.report(&first, true).await, plant.is_some(), "{plant:?}");
        assert_eq!(stage.status(&second).await == "completed", plant.is_some(), "{plant:?}");
    }
}

#[tokio::test]
async fn with_retries_early_an_attempt_begins_before_its_time() {
    let policy = json!({"strategy": "fixed", "initial_delay_seconds": 10, "jitter": false});
    for plant in [None, Some("retries_early")] {
        let stage = Stage::with_worker(plant).await;
        stage.submit(json!({"max_retries": 1, "metadata": {"retry_policy": policy}})).await;
        assert!(stage.report(&stage.poll().await, false).await);
        stage.poll().await;
        let early = "SELECT count(*) FROM executions a JOIN executions b USING (job_id)
            WHERE a.attempt_number = 1 AND b.attempt_number = 2
                AND b.created_at < a.completed_at + interval '10 seconds'";
        assert_eq!(stage.scene.count(early).await == 1, plant.is_some(), "{plant:?}");
    }
}

#[tokio::test]
async fn with_redis_trusted_a_forged_entry_has_a_finished_job_run_again() {
    for plant in [None, Some("redis_trusted")] {
        let stage = Stage::with_worker(plant).await;
        let submitted = stage.submit(json!({})).await;
        let first = stage.poll().await;
        // The only slot is taken, so this one waits in Redis, behind the forged entry.
        stage.submit(json!({})).await;
        let forged = Entry {
            job_id: JobId(submitted),
            shape: shape(),
            priority: 10,
            submitted_at: chrono::DateTime::UNIX_EPOCH,
        };
        let queue = stage.queue();
        until("the other job waits", async || queue.total().await.unwrap() == 1).await;
        queue.enqueue(stage.scene.stored_fence().await.epoch, &[forged]).await.unwrap();
        assert!(stage.report(&first, true).await);
        let next = stage.poll().await;
        assert_eq!(next.job_id == first.job_id, plant.is_some(), "{plant:?}");
    }
}

#[tokio::test]
async fn with_the_completion_before_the_commit_it_is_answered_while_its_row_is_locked() {
    for plant in [None, Some("completion_before_commit")] {
        let stage = Stage::with_worker(plant).await;
        stage.submit(json!({})).await;
        let job = stage.poll().await;
        let mut lock = stage.scene.pool.begin().await.unwrap();
        sqlx::raw_sql("SELECT FROM jobs FOR UPDATE").execute(&mut *lock).await.unwrap();
        assert_eq!(stage.report(&job, true).await, plant.is_some(), "{plant:?}");
        assert_eq!(stage.status(&job).await, "assigned", "{plant:?}");
    }
}

#[tokio::test]
async fn with_claims_not_recovered_the_job_of_a_dead_leader_s_claim_is_passed_over() {
    for plant in [None, Some("claims_not_recovered")] {
        let mut stage = Stage::set(plant).await;
        let claimed = stage.submit(json!({})).await;
        let queue = stage.queue();
        until("the job waits", async || queue.total().await.unwrap() == 1).await;
        let epoch = stage.scene.stored_fence().await.epoch;
        let offers = [Offer { shape: shape(), groups: vec![0] }];
        let claims = queue.claim(epoch, 1, &[Group { free_slots: 1 }], &offers).await.unwrap();
        assert_eq!(claims.len(), 1);
        stage.scene.kill(0).await;
        stage.scene.revive(0).await;
        stage.scene.leader().await;
        stage.submit(json!({})).await;
        stage.register().await;
        let passed_over = stage.poll().await.job_id != claimed.to_string();
        assert_eq!(passed_over, plant.is_some(), "{plant:?}");
    }
}

#[tokio::test]
async fn with_reports_of_a_deposed_leader_accepted_a_completion_is_answered_and_lost() {
    for plant in [None, Some("deposed_reports_accepted")] {
        let stage = Stage::with_worker(plant).await;
        stage.submit(json!({})).await;
        let job = stage.poll().await;
        stage.depose().await;
        assert_eq!(stage.report(&job, true).await, plant.is_some(), "{plant:?}");
        assert_eq!(stage.status(&job).await, "assigned", "{plant:?}");
    }
}

#[test]
fn a_name_that_no_defect_has_stops_the_start_with_those_that_there_are() {
    let serve = Command::new(env!("CARGO_BIN_EXE_cortex"))
        .args(["serve", "--config", concat!(env!("CARGO_MANIFEST_DIR"), "/config/cortex.yaml")])
        .env("CORTEX_PLANT", "fence_of")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&serve.stderr).into_owned();
    assert!(!serve.status.success(), "{said}");
    assert!(said.contains("\"fence_of\"") && said.contains("fence_off, lease_token_ignored"), "{said}");
}
