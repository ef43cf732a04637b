//! Many jobs at once, over REST and gRPC: all or none.

use cortex_client::proto::client_service_client::ClientServiceClient;
use cortex_client::proto::{JobSubmission, SubmitJobsRequest};
use serde_json::{Value, json};
use tonic::{Code, Status};

use crate::group::{Api, REPLICAS};
use crate::hand::channel;

const PATH: &str = "/api/v1/jobs/batch";
/// Most jobs of one batch.
const MOST: usize = 1_000;

fn numbered(api: &Api, count: usize) -> Vec<Value> {
    (0..count).map(|number| api.draft(&json!({"name": format!("job {number}"), "priority": 1}))).collect()
}

async fn stored(api: &Api) -> i64 {
    let count = "SELECT count(*) FROM jobs WHERE created_by = $1";
    sqlx::query_scalar(count).bind(&api.name).fetch_one(&api.database).await.unwrap()
}

async fn client(api: &Api, replica: usize) -> ClientServiceClient<tonic::transport::Channel> {
    ClientServiceClient::new(channel(api, replica).await)
}

fn submission(api: &Api, name: &str) -> JobSubmission {
    JobSubmission {
        name: name.to_owned(),
        model_name: api.name.clone(),
        model_version: "1".to_owned(),
        input_data: br#"{"a": 1}"#[..].into(),
        created_by: api.name.clone(),
        ..JobSubmission::default()
    }
}

/// What is said of each field.
fn fields(status: &Status) -> Vec<&str> {
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    let mut fields: Vec<_> =
        status.message().split("; ").map(|error| error.split(": ").next().unwrap()).collect();
    fields.sort_unstable();
    fields
}

#[tokio::test]
async fn a_batch_of_a_thousand_is_stored_and_answered_in_its_order() {
    let api = Api::of("batch-thousand").await;
    let answer = api.post(api.follower().await, PATH, &json!({"jobs": numbered(&api, MOST)})).await;
    let answer = answer.expect(201);
    let jobs = answer["jobs"].as_array().unwrap();
    assert_eq!(jobs.len(), MOST);
    for (number, job) in jobs.iter().enumerate() {
        assert_eq!(job["name"], format!("job {number}"));
        assert_eq!((&job["status"], &job["priority"]), (&json!("pending"), &json!(1)));
    }
    assert_eq!(stored(&api).await, 1_000);
    assert_eq!(api.job(0, jobs[999]["id"].as_str().unwrap()).await["name"], "job 999");
    for replica in 0..REPLICAS {
        let one = api.post(replica, PATH, &json!({"jobs": numbered(&api, 1), "unknown": 1})).await;
        assert_eq!(one.expect(201)["jobs"].as_array().unwrap().len(), 1);
    }
    api.leave().await;
}

#[tokio::test]
async fn one_bad_job_stores_none_and_all_bad_fields_are_named_at_once() {
    let api = Api::of("batch-bad").await;
    let mut jobs = numbered(&api, 5);
    jobs[1]["name"] = json!("");
    jobs[3]["priority"] = json!(11);
    jobs[3]["metadata"] = json!({"required_memory_gb": -1});
    for replica in 0..REPLICAS {
        let reply = api.post(replica, PATH, &json!({"jobs": jobs})).await;
        assert_eq!(
            reply.fields(),
            ["jobs[1].name", "jobs[3].metadata.required_memory_gb", "jobs[3].priority"]
        );
        reply.expect(422);
    }
    let mut jobs = numbered(&api, 4);
    jobs[0] = json!([]);
    jobs[1]["priority"] = json!(0);
    jobs[2] = json!(7);
    let reply = api.post(0, PATH, &json!({"jobs": jobs})).await;
    assert_eq!(reply.fields(), ["jobs[0]", "jobs[1].priority", "jobs[2]"]);
    reply.expect(422);
    assert_eq!(stored(&api).await, 0);
    api.leave().await;
}

#[tokio::test]
async fn a_batch_has_one_to_a_thousand_jobs() {
    let api = Api::of("batch-size").await;
    let many = json!({"jobs": numbered(&api, MOST + 1)});
    for body in [json!({"jobs": []}), json!({"jobs": null}), json!({}), json!({"jobs": {"a": 1}}), many] {
        let reply = api.post(0, PATH, &body).await;
        assert_eq!(reply.fields(), ["jobs"]);
        let message = reply.body["errors"][0]["message"].as_str().unwrap().to_owned();
        assert!(message.contains("1 to 1000"), "{message}");
        reply.expect(422);
    }
    let reply = api.post(0, PATH, &json!({"jobs": vec![json!({}); 5 * MOST]})).await;
    assert_eq!(reply.fields(), ["jobs"], "too many to be worth a look at each");
    assert_eq!(stored(&api).await, 0);
    api.leave().await;
}

#[tokio::test]
async fn the_same_batch_over_grpc_is_checked_and_stored_alike() {
    let api = Api::of("batch-grpc").await;
    for replica in 0..REPLICAS {
        let mut client = client(&api, replica).await;
        let full = JobSubmission {
            priority: Some(10),
            max_retries: Some(0),
            timeout_seconds: Some(60),
            tags: [("env".to_owned(), "prod".to_owned())].into(),
            metadata: br#"{"requires_gpu": true}"#[..].into(),
            ..submission(&api, "full")
        };
        let jobs = vec![submission(&api, "plain"), full];
        let answer = client
            .submit_jobs(SubmitJobsRequest { jobs, ..SubmitJobsRequest::default() })
            .await
            .unwrap()
            .into_inner();
        assert!(answer.jobs.iter().all(|job| job.status == "pending" && job.submitted_at_ms > 0));
        let [plain, full] = [api.job(0, &answer.jobs[0].id).await, api.job(0, &answer.jobs[1].id).await];
        assert_eq!(
            (&plain["name"], &plain["priority"], &plain["tags"]),
            (&json!("plain"), &json!(5), &json!({}))
        );
        assert_eq!(full["metadata"], json!({"requires_gpu": true}));
        assert_eq!((&full["priority"], &full["max_retries"]), (&json!(10), &json!(0)));
        assert_eq!((&full["timeout_seconds"], &full["tags"]), (&json!(60), &json!({"env": "prod"})));
    }
    let before = stored(&api).await;
    let mut client = client(&api, 0).await;
    let mut refusal = async |jobs: Vec<JobSubmission>| {
        client.submit_jobs(SubmitJobsRequest { jobs, ..SubmitJobsRequest::default() }).await.unwrap_err()
    };
    let mut bad = vec![submission(&api, "fine"); 4];
    bad[1].input_data = b"{}"[..].into();
    bad[3].priority = Some(11);
    bad[3].model_name.clear();
    assert_eq!(fields(&refusal(bad).await), ["jobs[1].input_data", "jobs[3].model_name", "jobs[3].priority"]);
    for input in [&b"{"[..], b"[]", b"\xff", b"{\"a\": 1e999}"] {
        let mut bad = vec![submission(&api, "fine"), submission(&api, "")];
        bad[0].input_data = input.into();
        let refused = refusal(bad).await;
        assert_eq!(fields(&refused), ["jobs[0].input_data", "jobs[1].name"], "{input:?}");
    }
    let mut bad = submission(&api, "fine");
    bad.metadata = b"nothing"[..].into();
    assert_eq!(fields(&refusal(vec![bad]).await), ["jobs[0].metadata"]);
    for count in [0, MOST + 1] {
        let refused = refusal(vec![submission(&api, "fine"); count]).await;
        assert_eq!(fields(&refused), ["jobs"]);
        assert!(refused.message().contains("1 to 1000"), "{refused:?}");
    }
    let mut large = submission(&api, "large");
    large.input_data = format!("{{\"a\":\"{}\"}}", "x".repeat(1 << 20)).into();
    assert_eq!(refusal(vec![large]).await.code(), Code::InvalidArgument);
    assert_eq!(stored(&api).await, before);
    api.leave().await;
}
