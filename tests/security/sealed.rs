//! Payloads at rest: what is in PostgreSQL, and what everybody else gets to see.

use cortex::config::Secret;
use cortex::domain::ids::JobId;
use cortex::security::{Role, Vault};
use cortex::storage::{Database, DatabaseOptions};
use cortex_client::proto::job_service_client::JobServiceClient;
use cortex_client::proto::{JobCompletion, PollJobRequest, PollJobResponse, WorkerRegistration};
use reqwest::Method;
use serde_json::{Value, json};

use crate::scene::{Scene, with_token};

const OLD: &str = "1111111111111111111111111111111111111111111111111111111111111111";
const NEW: &str = "2222222222222222222222222222222222222222222222222222222222222222";
/// What must be in no row.
const CANARY: &str = "canary-7f3a";

async fn rows_with_the_canary(pool: &sqlx::PgPool) -> i64 {
    sqlx::query_scalar(
        "SELECT (SELECT count(*) FROM jobs j WHERE strpos(j::text, $1) > 0)
              + (SELECT count(*) FROM executions e WHERE strpos(e::text, $1) > 0)",
    )
    .bind(CANARY)
    .fetch_one(pool)
    .await
    .unwrap()
}

async fn opened_with(url: &str, keys: &[&str], job: &str) -> cortex::domain::job::Job {
    let options = DatabaseOptions {
        url: url.to_owned(),
        max_connections: 1,
        acquire_timeout: std::time::Duration::from_secs(5),
        max_lifetime: std::time::Duration::from_secs(60),
        pooler: false,
    };
    let keys: Vec<Secret> = keys.iter().map(|key| Secret::new(*key)).collect();
    let database = Database::connect_lazily(&options).unwrap().with_vault(Vault::new(&keys).unwrap());
    database.job(job.parse::<JobId>().unwrap()).await.unwrap().unwrap()
}

/// A worker and a client of one group.
struct Pair<'a> {
    scene: &'a Scene,
    client: JobServiceClient<tonic::transport::Channel>,
    worker: String,
    admin: String,
}

impl Pair<'_> {
    async fn show(&self, path: &str) -> Value {
        let answer = self.scene.send(0, &Method::GET, path, Some(&self.admin), None).await;
        assert_eq!(answer.status(), 200);
        answer.json().await.unwrap()
    }

    async fn submit(&self) -> String {
        let draft = json!({"name": "job", "model_name": "m", "model_version": "1", "max_retries": 0,
            "input_data": {"prompt": CANARY, "n": 1.50}});
        let answer = self.scene.send(0, &Method::POST, "/api/v1/jobs", Some(&self.admin), Some(&draft)).await;
        assert_eq!(answer.status(), 201);
        answer.json::<Value>().await.unwrap()["id"].as_str().unwrap().to_owned()
    }

    async fn fetch(&self) -> PollJobResponse {
        let poll = PollJobRequest { worker_id: self.worker.clone(), wait_ms: 20_000 };
        let job = self.client.clone().poll_job(with_token(poll, &self.admin)).await.unwrap().into_inner();
        let input: Value = serde_json::from_slice(&job.input_data).unwrap();
        assert_eq!(input, json!({"prompt": CANARY, "n": 1.5}), "the worker sees what was submitted");
        job
    }

    async fn report(&self, job: &PollJobResponse, end: JobCompletion) -> bool {
        let report = JobCompletion {
            job_id: job.job_id.clone(),
            worker_id: self.worker.clone(),
            execution_id: job.execution_id.clone(),
            attempt_number: job.attempt_number,
            ..end
        };
        let answer = self.client.clone().complete_job(with_token(report, &self.admin)).await;
        answer.unwrap().into_inner().acknowledged
    }
}

#[tokio::test]
async fn payloads_are_sealed_in_the_database_and_nowhere_else() {
    let keys = format!("security.payload_keys=[\"{OLD}\"]");
    let scene = Scene::start(1, &[&keys]).await;
    let pool = scene.stores.pool(2).await;
    let (client, admin) = (JobServiceClient::new(scene.channel(0).await), scene.token("a", Role::Admin));
    let mut pair = Pair { scene: &scene, client, worker: String::new(), admin };
    // One that waits in the queue, and so is read from the database before it is handed out.
    let waiting = pair.submit().await;
    assert_eq!(rows_with_the_canary(&pool).await, 0);
    let registration = WorkerRegistration {
        name: "w".to_owned(),
        hostname: "h".to_owned(),
        ip_address: "127.0.0.1".to_owned(),
        port: 1,
        max_concurrent_jobs: 1,
        ..WorkerRegistration::default()
    };
    let registered = pair.client.register_worker(with_token(registration, &pair.admin)).await.unwrap();
    pair.worker = registered.into_inner().worker_id;

    let job = pair.fetch().await;
    assert_eq!(job.job_id, waiting);
    let output = json!({"answer": CANARY}).to_string();
    let success = JobCompletion { success: true, output_data: output.into(), ..JobCompletion::default() };
    assert!(pair.report(&job, success.clone()).await);
    assert!(pair.report(&job, success.clone()).await, "a report that is repeated is known again");
    let other = JobCompletion { output_data: b"{}".to_vec().into(), ..success };
    assert!(!pair.report(&job, other).await, "one that says something else is not");

    let failing = pair.submit().await;
    let job = pair.fetch().await;
    let failure = JobCompletion {
        error_message: format!("because of {CANARY}"),
        error_stack: format!("at {CANARY}"),
        error_code: "broken".to_owned(),
        ..JobCompletion::default()
    };
    assert!(pair.report(&job, failure.clone()).await);
    assert!(pair.report(&job, failure).await);

    assert_eq!(rows_with_the_canary(&pool).await, 0);
    let done = pair.show(&format!("/api/v1/jobs/{waiting}")).await;
    assert_eq!(
        (&done["input_data"]["prompt"], &done["output_data"]["answer"]),
        (&json!(CANARY), &json!(CANARY))
    );
    let failed = pair.show(&format!("/api/v1/jobs/{failing}")).await;
    assert_eq!(failed["error_message"], format!("because of {CANARY}"));
    assert_eq!(failed["error_stack"], format!("at {CANARY}"));
    for (job, field, value) in [
        (&waiting, "output_data", json!({"answer": CANARY})),
        (&failing, "error_stack", json!(format!("at {CANARY}"))),
    ] {
        assert_eq!(pair.show(&format!("/api/v1/jobs/{job}/executions")).await[0][field], value);
    }
    let page = pair.show("/api/v1/jobs").await;
    assert!(page["jobs"].as_array().unwrap().iter().all(|job| job["input_data"]["prompt"] == CANARY));

    let url = &scene.stores.database_url;
    let rotated = opened_with(url, &[NEW, OLD], &waiting).await;
    assert!(rotated.input_data.as_str().contains(CANARY), "an older key still opens");
    let lost = opened_with(url, &[NEW], &waiting).await;
    assert!(!lost.input_data.as_str().contains(CANARY));
    scene.logs_are_clean(&[CANARY, OLD]);
}
