//! `cortex.ClientService`, call by call, beside what REST says of the same.

use std::time::Duration;

use cortex_client::proto::client_service_client::ClientServiceClient;
use cortex_client::proto::{
    CancelJobRequest, GetJobRequest, GetStatsRequest, JobChange, JobSubmission, ListJobsRequest,
    RetryJobRequest, SubmitJobRequest, WatchJobRequest,
};
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Code, Request, Streaming};

use crate::group::{Api, REPLICAS};
use crate::hand::{Hand, channel};

const NOBODY: &str = "0190a5c0-0000-7000-8000-000000000001";

async fn client(api: &Api, replica: usize) -> ClientServiceClient<Channel> {
    ClientServiceClient::new(channel(api, replica).await)
}

fn submission(api: &Api) -> JobSubmission {
    JobSubmission {
        name: "job".to_owned(),
        model_name: api.name.clone(),
        model_version: "1".to_owned(),
        input_data: br#"{"a": 1}"#[..].into(),
        created_by: api.name.clone(),
        tags: [("env".to_owned(), api.name.clone())].into(),
        ..JobSubmission::default()
    }
}

async fn submit(api: &Api, replica: usize) -> String {
    let request = SubmitJobRequest { job: Some(submission(api)), idempotency_key: String::new() };
    client(api, replica).await.submit_job(request).await.unwrap().into_inner().job.unwrap().id
}

async fn watch(api: &Api, replica: usize, job_id: &str, after: &str) -> Streaming<JobChange> {
    let request = WatchJobRequest { job_id: job_id.to_owned(), after: after.to_owned() };
    client(api, replica).await.watch_job(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_job_is_submitted_and_shown_with_all_its_fields() {
    let api = Api::of("grpc-job").await;
    // Takes each job at its submission.
    let hand = Hand::new(&api, 0, 10).await;
    for replica in 0..REPLICAS {
        let mut client = client(&api, replica).await;
        let key = format!("{}-{replica}", api.name);
        let request = SubmitJobRequest { job: Some(submission(&api)), idempotency_key: key };
        let answer = client.submit_job(request.clone()).await.unwrap().into_inner();
        let job = answer.job.unwrap();
        assert_eq!((job.status.as_str(), job.priority, answer.repeated), ("assigned", 5, false));
        let again = client.submit_job(request).await.unwrap().into_inner();
        assert_eq!((again.job.unwrap().id, again.repeated), (job.id.clone(), true));
        let given = hand.poll(0).await.unwrap();
        hand.report(&hand.success(&given, &json!({"b": 2}))).await;
        let got = client.get_job(GetJobRequest { job_id: job.id.clone() }).await.unwrap().into_inner();
        let shown = api.job(0, &job.id).await;
        let payload = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        assert_eq!((payload(&got.input_data), payload(&got.output_data)), (json!({"a": 1}), json!({"b": 2})));
        assert_eq!((&shown["status"], &shown["tags"]["env"]), (&json!(got.status), &json!(got.tags["env"])));
        assert_eq!(shown["assigned_worker_id"], json!(got.assigned_worker_id));
        assert_eq!(shown["execution_duration_ms"], json!(got.execution_duration_ms));
        let time = |field: &str| {
            let time: chrono::DateTime<chrono::Utc> = shown[field].as_str().unwrap().parse().unwrap();
            time.timestamp_millis()
        };
        assert_eq!((time("submitted_at"), time("updated_at")), (got.submitted_at_ms, got.updated_at_ms));
        assert_eq!((Some(time("completed_at")), got.next_retry_at_ms), (got.completed_at_ms, None));
    }
    api.leave().await;
}

#[tokio::test]
async fn jobs_are_listed_page_by_page_and_by_every_filter() {
    let api = Api::of("grpc-list").await;
    let mut jobs = Vec::new();
    for replica in 0..REPLICAS {
        jobs.push(submit(&api, replica).await);
    }
    jobs.reverse();
    let mut client = client(&api, 1).await;
    let mut list = async |request: ListJobsRequest| {
        let request = ListJobsRequest { created_by: api.name.clone(), ..request };
        client.list_jobs(request).await.map(tonic::Response::into_inner)
    };
    let all = list(ListJobsRequest::default()).await.unwrap();
    assert_eq!(all.jobs.iter().map(|job| job.id.clone()).collect::<Vec<_>>(), jobs);
    assert_eq!((all.total, all.page, all.page_size, all.pages), (3, 1, 50, 1));
    let page = ListJobsRequest { page: 2, page_size: 2, without_payloads: true, ..Default::default() };
    let page = list(page).await.unwrap();
    assert_eq!((page.jobs.len(), page.jobs[0].id.as_str(), page.pages), (1, jobs[2].as_str(), 2));
    assert!(page.jobs[0].input_data.is_empty());
    api.cancel(0, &jobs[0]).await.expect(204);
    let filters = [
        (1, ListJobsRequest { status: "cancelled".to_owned(), ..Default::default() }),
        (0, ListJobsRequest { priority: Some(9), ..Default::default() }),
        (3, ListJobsRequest { model_name: api.name.clone(), ..Default::default() }),
        (3, ListJobsRequest { tags: [("env".to_owned(), api.name.clone())].into(), ..Default::default() }),
        (0, ListJobsRequest { tags: [("env".to_owned(), "x".to_owned())].into(), ..Default::default() }),
    ];
    for (count, filter) in filters {
        assert_eq!(list(filter.clone()).await.unwrap().total, count, "{filter:?}");
    }
    let bad = ListJobsRequest { status: "done".to_owned(), page_size: 101, ..Default::default() };
    let refused = list(bad).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(["status: ", "page_size: "].iter().all(|field| refused.message().contains(field)), "{refused:?}");
    api.leave().await;
}

#[tokio::test]
async fn a_large_page_arrives_as_a_whole() {
    let api = Api::of("grpc-large").await;
    let input = format!(r#"{{"a": "{}"}}"#, "x".repeat(600_000));
    for replica in 0..REPLICAS {
        let job = JobSubmission { input_data: input.clone().into(), ..submission(&api) };
        let mut client = client(&api, replica).await;
        client.submit_job(SubmitJobRequest { job: Some(job), idempotency_key: String::new() }).await.unwrap();
    }
    let mut client = client(&api, 1).await;
    let request = ListJobsRequest { created_by: api.name.clone(), ..Default::default() };
    let page = client.list_jobs(request).await.unwrap().into_inner();
    assert_eq!(page.jobs.iter().map(|job| job.input_data.len()).collect::<Vec<_>>(), [input.len(); REPLICAS]);
    api.leave().await;
}

#[tokio::test]
async fn jobs_are_cancelled_and_retried_by_the_same_rules() {
    let api = Api::of("grpc-cancel").await;
    for replica in 0..REPLICAS {
        let id = submit(&api, replica).await;
        let mut client = client(&api, replica).await;
        client.cancel_job(CancelJobRequest { job_id: id.clone() }).await.unwrap();
        let again = client.cancel_job(CancelJobRequest { job_id: id.clone() }).await.unwrap_err();
        assert_eq!(again.code(), Code::FailedPrecondition);
        let job = client.retry_job(RetryJobRequest { job_id: id.clone() }).await.unwrap().into_inner();
        assert_eq!((job.id.as_str(), job.status.as_str(), job.retry_count), (id.as_str(), "pending", 1));
        api.reaches(&id, "queued").await;
        let refused = client.retry_job(RetryJobRequest { job_id: id }).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
    }
    api.leave().await;
}

#[tokio::test]
async fn a_job_is_watched_to_its_end_and_from_where_one_was() {
    let api = Api::of("grpc-watch").await;
    let id = submit(&api, 0).await;
    api.reaches(&id, "queued").await;
    let mut streams = Vec::new();
    for replica in 0..REPLICAS {
        let mut changes = watch(&api, replica, &id, "").await;
        let first = changes.message().await.unwrap().unwrap();
        assert_eq!(
            (first.status.as_str(), first.job_id.as_str(), first.reset),
            ("queued", id.as_str(), false)
        );
        streams.push((changes, first));
    }
    api.patch(0, &id, &json!({"status": "running"})).await.expect(200);
    api.patch(1, &id, &json!({"status": "completed"})).await.expect(200);
    for (replica, (changes, first)) in streams.iter_mut().enumerate() {
        let mut resumed = watch(&api, (replica + 1) % REPLICAS, &id, &first.cursor).await;
        for state in ["running", "completed"] {
            let change = changes.message().await.unwrap().unwrap();
            assert_eq!(change.status, state);
            assert_eq!(resumed.message().await.unwrap().unwrap(), change);
        }
        assert_eq!(changes.message().await.unwrap(), None);
        assert_eq!(resumed.message().await.unwrap(), None);
    }
    let mut unknown = watch(&api, 2, &id, "1-1").await;
    assert!(unknown.message().await.unwrap().unwrap().reset);
    assert_eq!(unknown.message().await.unwrap().unwrap().status, "completed");
    assert_eq!(unknown.message().await.unwrap(), None);
    api.leave().await;
}

#[tokio::test]
async fn a_watch_ends_with_its_deadline() {
    let api = Api::of("grpc-deadline").await;
    let id = submit(&api, 0).await;
    let watch = || Request::new(WatchJobRequest { job_id: id.clone(), after: String::new() });
    let mut endless = watch();
    endless.metadata_mut().insert("grpc-timeout", format!("{}S", u64::MAX).parse().unwrap());
    let mut changes = client(&api, 1).await.watch_job(endless).await.unwrap().into_inner();
    assert!(changes.message().await.unwrap().is_some(), "as long as it likes");
    let mut request = watch();
    request.set_timeout(Duration::from_secs(8));
    let mut changes = client(&api, 1).await.watch_job(request).await.unwrap().into_inner();
    let ended = loop {
        match changes.message().await {
            Ok(Some(_)) => {}
            ended => break ended,
        }
    };
    assert_eq!(ended.unwrap_err().code(), Code::DeadlineExceeded);
    api.leave().await;
}

#[tokio::test]
async fn statistics_are_those_of_rest() {
    let api = Api::of("grpc-stats").await;
    submit(&api, 0).await;
    let stats = client(&api, 2).await.get_stats(GetStatsRequest {}).await.unwrap().into_inner();
    let sum = stats.pending + stats.queued + stats.assigned + stats.running + stats.completed;
    assert_eq!(stats.total_jobs, sum + stats.failed + stats.cancelled + stats.timeout);
    assert!(stats.total_jobs > 0);
    api.leave().await;
}

#[tokio::test]
async fn what_is_wrong_is_named_and_what_is_not_there_is_not_found() {
    let api = Api::of("grpc-wrong").await;
    for replica in 0..REPLICAS {
        let mut client = client(&api, replica).await;
        let mut codes = Vec::new();
        for job_id in ["x", NOBODY] {
            let job_id = job_id.to_owned();
            codes.push(client.get_job(GetJobRequest { job_id: job_id.clone() }).await.unwrap_err().code());
            codes.push(
                client.cancel_job(CancelJobRequest { job_id: job_id.clone() }).await.unwrap_err().code(),
            );
            codes
                .push(client.retry_job(RetryJobRequest { job_id: job_id.clone() }).await.unwrap_err().code());
            let watch = WatchJobRequest { job_id, after: String::new() };
            codes.push(client.watch_job(watch).await.unwrap_err().code());
        }
        assert_eq!(codes[..4], [Code::InvalidArgument; 4]);
        assert_eq!(codes[4..], [Code::NotFound; 4]);
        let bad = JobSubmission { input_data: b"{"[..].into(), priority: Some(0), ..submission(&api) };
        let request = SubmitJobRequest { job: Some(bad), idempotency_key: "a b".to_owned() };
        let refused = client.submit_job(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        let named = |field: &&str| refused.message().matches(*field).count() == 1;
        assert!(["input_data: ", "priority: ", "idempotency_key: "].iter().all(named), "{refused:?}");
        let refused = client.submit_job(SubmitJobRequest::default()).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
    api.leave().await;
}
