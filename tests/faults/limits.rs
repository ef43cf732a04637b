//! A cluster at its limits.

use cortex_client::proto::client_service_client::ClientServiceClient;
use cortex_client::proto::{JobSubmission, SubmitJobsRequest};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tonic::Code;

use crate::scene::{Scene, until};

/// Jobs that may wait.
const ROOM: usize = 5;

#[tokio::test]
async fn a_batch_that_the_queue_has_no_room_for_is_refused_as_a_whole() {
    let scene = Scene::with(|builder, _| builder.set(format!("queue.max_queue_size={ROOM}"))).await;
    let job = json!({"name": "job", "model_name": "model", "model_version": "1", "input_data": {"a": 1}});
    let stored = async || scene.count("SELECT count(*) FROM jobs").await;
    // Whoever answers, and whoever leads.
    for replica in 0..scene.cluster.size() {
        let submit = async |count: usize| {
            let url = format!("http://{}/api/v1/jobs/batch", scene.cluster.http(replica));
            let body = json!({"jobs": vec![&job; count]});
            scene.http.post(url).json(&body).send().await.unwrap()
        };
        let refused = submit(ROOM + 1).await;
        assert_eq!(refused.status(), 429);
        assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u32>().unwrap() > 0);
        let problem: Value = refused.json().await.unwrap();
        assert_eq!(problem["type"], "urn:cortex:problem:queue-full");

        let grpc = format!("http://{}", scene.cluster.grpc(replica));
        let mut client = ClientServiceClient::connect(grpc).await.unwrap();
        let one = JobSubmission {
            name: "job".to_owned(),
            model_name: "model".to_owned(),
            model_version: "1".to_owned(),
            input_data: br#"{"a": 1}"#[..].into(),
            ..JobSubmission::default()
        };
        let refused = client
            .submit_jobs(SubmitJobsRequest { jobs: vec![one; ROOM + 1], ..SubmitJobsRequest::default() })
            .await;
        assert_eq!(refused.unwrap_err().code(), Code::ResourceExhausted);
        assert_eq!(stored().await, 0);
    }
    let url = format!("http://{}/api/v1/jobs/batch", scene.cluster.http(0));
    let full = scene.http.post(&url).json(&json!({"jobs": vec![&job; ROOM]})).send().await.unwrap();
    assert_eq!(full.status(), 201);
    let beyond = scene.http.post(&url).json(&json!({"jobs": [job]})).send().await.unwrap();
    assert_eq!((beyond.status().as_u16(), stored().await), (429, ROOM as i64));
}

#[tokio::test]
async fn a_submission_without_room_leaves_no_key_behind_and_a_stored_one_is_answered_all_the_same() {
    let scene = Scene::with(|builder, _| builder.set(format!("queue.max_queue_size={ROOM}"))).await;
    let job = |name: &str| json!({"name": name, "model_name": "model", "model_version": "1", "input_data": {"a": 1}});
    for replica in 0..scene.cluster.size() {
        let url = format!("http://{}/api/v1/jobs", scene.cluster.http(replica));
        let submit = async |key: &str, name: &str| {
            let key = format!("{key}-{replica}");
            let answer =
                scene.http.post(&url).header("Idempotency-Key", key).json(&job(name)).send().await.unwrap();
            let status = answer.status().as_u16();
            (status, answer.json::<Value>().await.unwrap()["id"].clone())
        };
        let (_, first) = submit("first", "job").await;
        let batch = json!({"jobs": vec![job("job"); ROOM - 1]});
        let full = scene.http.post(format!("{url}/batch")).json(&batch).send().await.unwrap();
        assert_eq!(full.status(), 201);
        assert_eq!(submit("second", "job").await.0, 429);
        assert_eq!(submit("first", "job").await, (200, first));
        assert_eq!(submit("first", "other").await.0, 409);
        assert_eq!(scene.count("SELECT count(*) FROM idempotency_keys").await, 2 * replica as i64 + 1);
        let clear = format!("http://{}/api/v1/queues", scene.cluster.http(replica));
        assert_eq!(scene.http.delete(clear).send().await.unwrap().status(), 200);
        assert_eq!(submit("second", "other").await.0, 201, "the refused one counts for nothing");
        assert_eq!(
            scene
                .http
                .delete(format!("http://{}/api/v1/queues", scene.cluster.http(0)))
                .send()
                .await
                .unwrap()
                .status(),
            200
        );
    }
}

#[tokio::test]
async fn many_callers_at_once_do_not_overfill_the_queue() {
    let scene = Scene::with(|builder, _| builder.set(format!("queue.max_queue_size={ROOM}"))).await;
    let job = json!({"name": "job", "model_name": "model", "model_version": "1", "input_data": {"a": 1}});
    let mut calls = JoinSet::new();
    for call in 0..100 {
        let replica = call % scene.cluster.size();
        let url = format!("http://{}/api/v1/jobs", scene.cluster.http(replica));
        let request = scene.http.post(url).json(&job);
        calls.spawn(async move { request.send().await.unwrap().status().as_u16() });
    }
    let answers = calls.join_all().await;
    let accepted = answers.iter().filter(|status| **status == 201).count();
    assert!(answers.iter().all(|status| [201, 429].contains(status)), "{answers:?}");
    assert!((1..=ROOM).contains(&accepted), "{accepted} jobs for {ROOM} places");
    assert_eq!(scene.count("SELECT count(*) FROM jobs").await, accepted as i64);
}

#[tokio::test]
async fn jobs_are_deleted_after_their_retention_page_by_page_and_waiting_ones_are_not() {
    let scene = Scene::with(|builder, _| builder.set("retention.finished_jobs=3600")).await;
    let job = json!({"name": "job", "model_name": "model", "model_version": "1", "input_data": {"a": 1}});
    let url = format!("http://{}/api/v1/jobs/batch", scene.cluster.http(0));
    let stored = scene.http.post(url).json(&json!({"jobs": vec![&job; 250]})).send().await.unwrap();
    assert_eq!(stored.status(), 201);
    // All are old, and but for every tenth they ended two hours or half an hour ago.
    let aged = "WITH old AS (SELECT id, row_number() OVER (ORDER BY id) AS number FROM jobs)
        UPDATE jobs j SET submitted_at = now() - interval '3 hours',
            status = CASE WHEN number % 10 = 0 THEN status ELSE 'failed' END,
            completed_at = CASE number % 10 WHEN 0 THEN NULL WHEN 1 THEN now() - interval '30 minutes'
                ELSE now() - interval '2 hours' END
        FROM old o WHERE o.id = j.id";
    sqlx::query(aged).execute(&scene.pool).await.unwrap();
    // A new leader begins with a sweep.
    let former = scene.leader().await;
    scene.kill(former).await;
    until("the old ones are gone", async || scene.count("SELECT count(*) FROM jobs").await == 50).await;
    assert_eq!(scene.count("SELECT count(*) FROM jobs WHERE status = 'queued'").await, 25);
}

#[tokio::test]
async fn where_reflection_is_off_grpc_serves_and_does_not_describe_itself() {
    let scene = Scene::with(|builder, _| builder.set("server.grpc_reflection=false")).await;
    let endpoint = format!("http://{}", scene.cluster.grpc(0));
    let channel = tonic::transport::Channel::from_shared(endpoint).unwrap().connect().await.unwrap();
    let mut client = ClientServiceClient::new(channel.clone());
    assert!(client.get_stats(cortex_client::proto::GetStatsRequest {}).await.is_ok());
    let request = tonic_reflection::pb::v1::ServerReflectionRequest::default();
    let mut reflection =
        tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient::new(channel);
    let refused = reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented);
}
