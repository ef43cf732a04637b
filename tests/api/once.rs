//! Submissions under an `Idempotency-Key`: the same again stores nothing, through whichever replica.

use cortex_client::proto::client_service_client::ClientServiceClient;
use cortex_client::proto::{JobSubmission, SubmitJobsRequest};
use serde_json::{Value, json};
use tonic::Code;

use crate::group::{Api, REPLICAS};
use crate::hand::channel;
use crate::reply::Reply;

const JOBS: &str = "/api/v1/jobs";
const BATCH: &str = "/api/v1/jobs/batch";

async fn stored(api: &Api) -> i64 {
    let count = "SELECT count(*) FROM jobs WHERE created_by = $1";
    sqlx::query_scalar(count).bind(&api.name).fetch_one(&api.database).await.unwrap()
}

/// A key that no other test has.
fn key(api: &Api, text: &str) -> String {
    format!("{}-{text}", api.name)
}

#[tokio::test]
async fn the_same_key_gives_the_first_job_at_every_replica() {
    let api = Api::of("once-same").await;
    let key = key(&api, "1");
    let draft = api.draft(&json!({"priority": 3, "tags": {"a": "b", "c": "d"}}));
    let first = api.post_once(0, JOBS, &draft, &key).await.expect(201);
    let id = first["id"].as_str().unwrap();
    for replica in 0..REPLICAS {
        let again = api.post_once(replica, JOBS, &draft, &key).await;
        assert_eq!(again.header("location"), format!("{JOBS}/{id}"));
        let again = again.expect(200);
        assert_eq!((&again["id"], &again["submitted_at"]), (&first["id"], &first["submitted_at"]));
    }
    // The answer is the job as it is by now.
    api.cancel(1, id).await.expect(204);
    assert_eq!(api.post_once(2, JOBS, &draft, &key).await.expect(200)["status"], "cancelled");
    assert_eq!(stored(&api).await, 1);
    api.leave().await;
}

#[tokio::test]
async fn another_body_under_the_same_key_is_a_conflict_and_stores_nothing() {
    let api = Api::of("once-other").await;
    let key = key(&api, "1");
    api.post_once(0, JOBS, &api.draft(&json!({})), &key).await.expect(201);
    for replica in 0..REPLICAS {
        let other = api.post_once(replica, JOBS, &api.draft(&json!({"name": "other"})), &key).await;
        assert_eq!(other.body["type"], "urn:cortex:problem:conflict");
        other.expect(409);
        let more = json!({"jobs": [api.draft(&json!({})), api.draft(&json!({}))]});
        api.post_once(replica, BATCH, &more, &key).await.expect(409);
    }
    assert_eq!(stored(&api).await, 1);
    api.leave().await;
}

#[tokio::test]
async fn many_at_once_with_one_key_store_one_job() {
    let api = Api::of("once-race").await;
    let (key, draft) = (key(&api, "1"), api.draft(&json!({})));
    let all = (0..30).map(|number| api.post_once(number % REPLICAS, JOBS, &draft, &key));
    let replies = futures::future::join_all(all).await;
    let id = replies[0].body["id"].clone();
    assert!(replies.iter().all(|reply| [200, 201].contains(&reply.status) && reply.body["id"] == id));
    assert_eq!(replies.iter().filter(|reply| reply.status == 201).count(), 1);
    assert_eq!(stored(&api).await, 1);
    api.leave().await;
}

#[tokio::test]
async fn a_batch_has_one_key_for_all_its_jobs() {
    let api = Api::of("once-batch").await;
    let key = key(&api, "1");
    let jobs: Vec<Value> =
        (0..50).map(|number| api.draft(&json!({"name": format!("job {number}")}))).collect();
    let body = json!({"jobs": jobs});
    let ids = |answer: &Value| -> Vec<Value> {
        answer["jobs"].as_array().unwrap().iter().map(|job| job["id"].clone()).collect()
    };
    let first = api.post_once(1, BATCH, &body, &key).await.expect(201);
    for replica in 0..REPLICAS {
        assert_eq!(ids(&api.post_once(replica, BATCH, &body, &key).await.expect(200)), ids(&first));
    }
    assert_eq!(stored(&api).await, 50);
    api.leave().await;
}

#[tokio::test]
async fn a_request_that_got_no_further_than_its_key_is_finished_by_its_repetition() {
    let api = Api::of("once-broken").await;
    let (key, draft) = (key(&api, "1"), api.draft(&json!({})));
    let first = api.post_once(0, JOBS, &draft, &key).await.expect(201);
    let id = first["id"].as_str().unwrap();
    api.cancel(0, id).await.expect(204);
    // As if the leader had died between the key and the job.
    for statement in [
        "DELETE FROM jobs WHERE id = $1::uuid",
        "UPDATE job_counters SET cancelled = cancelled - 1 WHERE slot = 2 AND $1 <> ''",
    ] {
        sqlx::query(sqlx::AssertSqlSafe(statement)).bind(id).execute(&api.database).await.unwrap();
    }
    let again = api.post_once(1, JOBS, &draft, &key).await.expect(200);
    assert_eq!(again["id"], first["id"]);
    assert_eq!(stored(&api).await, 1);
    api.leave().await;
}

#[tokio::test]
async fn after_a_day_a_key_stands_for_nothing() {
    let api = Api::of("once-old").await;
    let key = key(&api, "1");
    let first = api.post_once(0, JOBS, &api.draft(&json!({})), &key).await.expect(201);
    let age = "UPDATE idempotency_keys SET created_at = now() - $2::interval WHERE key = $1";
    let age = async |interval: &str| {
        sqlx::query(age).bind(&key).bind(interval.to_owned()).execute(&api.database).await.unwrap()
    };
    age("23 hours 59 minutes").await;
    let other = api.draft(&json!({"name": "other"}));
    api.post_once(2, JOBS, &other, &key).await.expect(409);
    age("24 hours 1 second").await;
    let second = api.post_once(1, JOBS, &other, &key).await.expect(201);
    assert_ne!(first["id"], second["id"]);
    api.post_once(0, JOBS, &other, &key).await.expect(200);
    api.leave().await;
}

#[tokio::test]
async fn a_bad_key_is_named_beside_the_bad_fields() {
    let api = Api::of("once-bad").await;
    let bad = api.draft(&json!({"priority": 0}));
    for key in ["", "a b", &"x".repeat(256)] {
        let reply = api.post_once(0, JOBS, &bad, key).await;
        assert_eq!(reply.fields(), ["Idempotency-Key", "priority"]);
        reply.expect(422);
        let reply = api.post_once(1, BATCH, &json!({"jobs": [bad.clone()]}), key).await;
        assert_eq!(reply.fields(), ["Idempotency-Key", "jobs[0].priority"]);
        reply.expect(422);
    }
    let twice = api.http.post(api.url(2, JOBS)).header("Idempotency-Key", "a").header("Idempotency-Key", "b");
    let reply = Reply::read(twice.json(&api.draft(&json!({}))).send().await.unwrap()).await;
    assert_eq!((reply.status, reply.fields()), (422, vec!["Idempotency-Key"]));
    assert_eq!(stored(&api).await, 0);
    api.leave().await;
}

#[tokio::test]
async fn grpc_takes_the_same_keys() {
    let api = Api::of("once-grpc").await;
    let job = JobSubmission {
        name: "job".to_owned(),
        model_name: api.name.clone(),
        model_version: "v1.0.0".to_owned(),
        input_data: br#"{"prompt": "test"}"#[..].into(),
        created_by: api.name.clone(),
        ..JobSubmission::default()
    };
    let first = api.post_once(0, JOBS, &api.draft(&json!({})), &key(&api, "1")).await.expect(201);
    let submit = async |jobs: Vec<JobSubmission>, key: String| {
        let mut client = ClientServiceClient::new(channel(&api, 1).await);
        client.submit_jobs(SubmitJobsRequest { jobs, idempotency_key: key }).await
    };
    let answer = submit(vec![job.clone()], key(&api, "1")).await.unwrap().into_inner();
    assert!(answer.repeated && answer.jobs[0].id == first["id"].as_str().unwrap(), "{answer:?}");
    let refused = submit(vec![job.clone(), job.clone()], key(&api, "1")).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let refused = submit(vec![job.clone()], "a b".to_owned()).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message().starts_with("idempotency_key")),
        (Code::InvalidArgument, true)
    );
    assert!(!submit(vec![job], key(&api, "2")).await.unwrap().into_inner().repeated);
    assert_eq!(stored(&api).await, 2);
    api.leave().await;
}
