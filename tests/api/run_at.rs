//! Jobs that are submitted for later.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use cortex::domain::ambient::{Ambient, System};
use cortex_client::proto::client_service_client::ClientServiceClient;
use cortex_client::proto::{JobSubmission, SubmitJobsRequest};
use serde_json::{Value, json};

use crate::group::{Api, REPLICAS};
use crate::hand::{Hand, channel};

fn after(seconds: i64) -> DateTime<Utc> {
    System.now() + TimeDelta::seconds(seconds)
}

fn time(value: &Value) -> DateTime<Utc> {
    value.as_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_job_waits_for_its_time_beside_a_free_worker_and_is_not_given_earlier() {
    let api = Api::of("later-waits").await;
    let hand = Hand::new(&api, 1, 10).await;
    let mut waiting = HashMap::new();
    // So far apart that nothing which holds up the machine for a moment makes more than one late.
    for (replica, seconds) in (0..REPLICAS).zip([10, 16, 22]) {
        let due = after(seconds);
        let draft = api.draft(&json!({"run_at": due.to_rfc3339()}));
        let job = api.post(replica, "/api/v1/jobs", &draft).await.expect(201);
        assert_eq!((&job["status"], &job["queued_at"]), (&json!("pending"), &json!(null)));
        assert_eq!(time(&job["next_retry_at"]).timestamp_millis(), due.timestamp_millis());
        let id = job["id"].as_str().unwrap();
        let shown = api.job((replica + 1) % REPLICAS, id).await;
        assert_eq!((&shown["status"], &shown["next_retry_at"]), (&json!("pending"), &job["next_retry_at"]));
        assert!(!api.ready().await.contains(&id.to_owned()));
        waiting.insert(id.to_owned(), due);
    }
    let mut late = Vec::new();
    for _ in 0..REPLICAS {
        let given = hand.job().await;
        let due = waiting.remove(&given.job_id).expect("each is given once");
        let rows = api.rows(&given.job_id).await;
        let assigned = time(&rows["job"]["assigned_at"]);
        assert!(assigned >= due && assigned - due < TimeDelta::seconds(10), "{assigned} for {due}");
        late.push(assigned - due);
        assert!(hand.report(&hand.success(&given, &json!({}))).await.acknowledged);
    }
    assert!(late.iter().min() < Some(&TimeDelta::seconds(1)), "{late:?}");
    api.leave().await;
}

#[tokio::test]
async fn a_time_that_has_passed_means_at_once() {
    let api = Api::of("past").await;
    let past = json!({"run_at": "1999-12-31T23:59:59+01:00"});
    let id = api.submit(2, &past).await;
    api.reaches(&id, "queued").await;
    api.leave().await;
}

#[tokio::test]
async fn a_job_that_waits_can_be_cancelled_hastened_and_driven_from_outside() {
    let api = Api::of("later-hands").await;
    let fields = json!({"run_at": after(3_600).to_rfc3339()});
    let mut jobs = Vec::new();
    for replica in 0..REPLICAS {
        jobs.push(api.submit(replica, &fields).await);
    }
    api.cancel(1, &jobs[0]).await.expect(204);
    assert_eq!(api.job(2, &jobs[0]).await["status"], "cancelled");
    let hastened = api.retry(0, &jobs[1]).await.expect(200);
    assert_eq!(hastened["retry_count"], 0, "no attempt was made");
    api.reaches(&jobs[1], "queued").await;
    let driven = api.patch(2, &jobs[2], &json!({"status": "running"})).await.expect(200);
    assert!(driven["next_retry_at"].is_null(), "{driven}");
    // Revived, a job is due at once, whatever its first time was.
    api.retry(1, &jobs[0]).await.expect(200);
    api.reaches(&jobs[0], "queued").await;
    api.leave().await;
}

#[tokio::test]
async fn a_batch_may_hold_jobs_for_now_and_for_later_and_the_counters_know() {
    let api = Api::of("later-batch").await;
    let later = api.draft(&json!({"run_at": after(3_600).to_rfc3339()}));
    let jobs = json!({"jobs": [later.clone(), api.draft(&json!({})), later]});
    let answer = api.post(1, "/api/v1/jobs/batch", &jobs).await.expect(201);
    for (job, status) in answer["jobs"].as_array().unwrap().iter().zip(["pending", "queued", "pending"]) {
        api.reaches(job["id"].as_str().unwrap(), status).await;
    }
    let wrong = json!({"jobs": [api.draft(&json!({"run_at": "soon"})), api.draft(&json!({"run_at": 5}))]});
    let reply = api.post(0, "/api/v1/jobs/batch", &wrong).await;
    assert_eq!(reply.fields(), ["jobs[0].run_at", "jobs[1].run_at"]);
    reply.expect(422);
    api.leave().await;
}

#[tokio::test]
async fn grpc_takes_the_time_in_milliseconds() {
    let api = Api::of("later-grpc").await;
    let due = after(3_600).timestamp_millis();
    let job = |run_at_ms| JobSubmission {
        name: "job".to_owned(),
        model_name: api.name.clone(),
        model_version: "1".to_owned(),
        input_data: br#"{"a": 1}"#[..].into(),
        created_by: api.name.clone(),
        run_at_ms: Some(run_at_ms),
        ..JobSubmission::default()
    };
    let mut client = ClientServiceClient::new(channel(&api, 2).await);
    let mut submit = async |run_at_ms| {
        let jobs = vec![job(run_at_ms)];
        client.submit_jobs(SubmitJobsRequest { jobs, ..SubmitJobsRequest::default() }).await
    };
    let answer = submit(due).await.unwrap().into_inner();
    let shown = api.job(0, &answer.jobs[0].id).await;
    assert_eq!(time(&shown["next_retry_at"]).timestamp_millis(), due);
    for bad in [i64::MAX, -1] {
        assert!(submit(bad).await.unwrap_err().message().contains("run_at"));
    }
    api.leave().await;
}
