//! The REST client against replicas that are down, not ready or break off.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use cortex_client::{ClientError, JobFilter, JobsClient, NewJob};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::Instant,
};

/// What a replica does with its next request.
#[derive(Clone)]
enum Reply {
    Answer(u16, &'static str, String),
    BreakOff,
}

/// A server that plays its replies in turn, the last one for ever.
struct Replica {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Replica {
    async fn playing(replies: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let request = read_request(&mut stream).await;
                let reply = {
                    let mut seen = seen.lock().unwrap();
                    seen.push(request);
                    replies[(seen.len() - 1).min(replies.len() - 1)].clone()
                };
                if let Reply::Answer(status, headers, body) = reply {
                    let answer = format!(
                        "HTTP/1.1 {status} x\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        stream.read_buf(&mut bytes).await.unwrap();
        let text = String::from_utf8_lossy(&bytes).to_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
        if body.len() >= length.map_or(0, |l| l.parse().unwrap()) {
            return String::from_utf8(bytes).unwrap();
        }
    }
}

/// An address that refuses connections.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// Waits longer than anything takes that goes well.
fn client(addresses: &[SocketAddr]) -> JobsClient {
    client_within(addresses, Duration::from_secs(60))
}

fn client_within(addresses: &[SocketAddr], deadline: Duration) -> JobsClient {
    let list: Vec<_> = addresses.iter().map(|a| format!("http://{a}")).collect();
    JobsClient::builder(&list.join(","))
        .token(Some("secret"))
        .request_timeout(deadline)
        .deadline(deadline)
        .build()
        .unwrap()
}

fn ok(body: &Value) -> Reply {
    Reply::Answer(200, "", body.to_string())
}

fn not_ready() -> Reply {
    Reply::Answer(503, "retry-after: 1\r\n", problem(503, "no leader"))
}

fn problem(status: u16, detail: &str) -> String {
    json!({"type": "about:blank", "title": "Refused", "status": status, "detail": detail,
        "errors": [{"field": "priority", "message": "must be 1 to 10"}]})
    .to_string()
}

fn job() -> Value {
    json!({"id": "j1", "name": "n", "model_name": "m", "model_version": "1", "status": "pending",
        "priority": 5, "max_retries": 3, "retry_count": 0, "timeout_seconds": 60,
        "input_data": {"a": 1}, "output_data": null, "submitted_at": "2030-01-01T00:00:00Z",
        "tags": {"k": "v"}, "metadata": {}, "created_at": "2030-01-01T00:00:00Z",
        "updated_at": "2030-01-01T00:00:00Z", "a_later_field": true})
}

fn worker() -> Value {
    json!({"id": "w1", "name": "w", "hostname": "h", "ip_address": "10.0.0.1", "port": 1, "status": "busy",
        "draining": true, "max_concurrent_jobs": 1, "current_job_count": 1, "total_jobs_completed": 0,
        "total_jobs_failed": 0, "last_heartbeat": "2026-01-01T00:00:00Z", "heartbeat_interval_seconds": 30,
        "consecutive_failures": 0, "registered_at": "2026-01-01T00:00:00Z",
        "last_active_at": "2026-01-01T00:00:00Z", "created_at": "2026-01-01T00:00:00Z",
        "updated_at": "2026-01-01T00:00:00Z"})
}

fn new_job() -> NewJob {
    NewJob::new("n", "m", "1", json!({"a": 1}))
}

#[tokio::test]
async fn a_submission_is_a_post_with_token_and_body() {
    let replica = Replica::playing(vec![Reply::Answer(201, "", job().to_string())]).await;
    let submitted = client(&[replica.address]).submit(&new_job()).await.unwrap();
    assert_eq!((submitted.id.as_str(), submitted.status.as_str()), ("j1", "pending"));
    let request = &replica.requests()[0];
    assert!(request.starts_with("POST /api/v1/jobs HTTP/1.1\r\n"));
    assert!(request.contains("authorization: Bearer secret\r\n"));
    assert!(request.contains("content-type: application/json\r\n"));
    assert!(!request.contains("idempotency-key"));
    assert!(request.ends_with(r#"{"name":"n","model_name":"m","model_version":"1","input_data":{"a":1}}"#));
}

#[tokio::test]
async fn a_batch_and_an_explanation_are_read() {
    let explanation = json!({"job_id": "j1", "status": "queued", "reason": "no_workers", "detail": "None.",
        "due_at": null, "queue": {"ahead": 0, "at_least": false}, "workers": {"total": 0}, "attempts": [], "new": 1});
    let batch = Reply::Answer(201, "", json!({"jobs": [job(), job()]}).to_string());
    let replica = Replica::playing(vec![batch, ok(&explanation)]).await;
    let client = client(&[replica.address]);
    let later = NewJob { run_at: Some("2030-01-01T00:00:00Z".to_owned()), ..new_job() };
    assert_eq!(client.submit_batch(&[new_job(), later], Some("k")).await.unwrap().len(), 2);
    assert_eq!(client.explain("j1").await.unwrap().reason, "no_workers");
    let requests = replica.requests();
    assert!(requests[0].starts_with("POST /api/v1/jobs/batch HTTP/1.1\r\n"));
    assert!(requests[0].contains("idempotency-key: k\r\n"));
    assert!(requests[0].ends_with(r#""input_data":{"a":1},"run_at":"2030-01-01T00:00:00Z"}]}"#));
    assert!(requests[1].starts_with("GET /api/v1/jobs/j1/explain HTTP/1.1\r\n"));
}

#[tokio::test]
async fn an_idempotency_key_is_sent_when_asked_for() {
    let replica = Replica::playing(vec![ok(&job())]).await;
    let key = JobsClient::new_idempotency_key();
    assert_eq!(key.len(), 32);
    client(&[replica.address]).submit_with_key(&new_job(), &key).await.unwrap();
    assert!(replica.requests()[0].contains(&format!("idempotency-key: {key}\r\n")));
}

#[tokio::test]
async fn a_submission_goes_on_to_a_replica_that_is_there_and_ready() {
    let waiting = Replica::playing(vec![not_ready()]).await;
    let ready = Replica::playing(vec![ok(&job())]).await;
    let client = client(&[nobody().await, waiting.address, ready.address]);
    client.submit(&new_job()).await.unwrap();
    client.submit(&new_job()).await.unwrap();
    assert_eq!(waiting.requests().len(), 1, "the replica that answered is asked first");
    assert_eq!(ready.requests().len(), 2);
}

#[tokio::test]
async fn retry_after_is_waited_for_up_to_the_deadline() {
    let replica = Replica::playing(vec![not_ready(), ok(&job())]).await;
    let started = Instant::now();
    client(&[replica.address]).submit(&new_job()).await.unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));

    let replica = Replica::playing(vec![not_ready()]).await;
    let client = client_within(&[replica.address], Duration::from_secs(8));
    let error = client.submit(&new_job()).await.unwrap_err();
    // What is asked last may be answered too late.
    assert!(error.status() == Some(503) || matches!(error, ClientError::OutcomeUnknown { .. }), "{error}");
    // One a second at the most.
    let requests = replica.requests().len();
    assert!((2..=8).contains(&requests), "{requests} requests");
}

#[tokio::test]
async fn a_submission_that_may_have_arrived_is_not_sent_again() {
    let broken = Replica::playing(vec![Reply::BreakOff]).await;
    let other = Replica::playing(vec![ok(&job())]).await;
    let client = client(&[broken.address, other.address]);
    let error = client.submit(&new_job()).await.unwrap_err();
    assert!(matches!(error, ClientError::OutcomeUnknown { .. }), "{error}");
    assert_eq!((broken.requests().len(), other.requests().len()), (1, 0));
    let error = client.cancel("j1").await.unwrap_err();
    assert!(matches!(error, ClientError::OutcomeUnknown { .. }), "{error}");
}

#[tokio::test]
async fn a_503_that_does_not_say_when_to_retry_is_final_for_a_write() {
    let replica = Replica::playing(vec![Reply::Answer(503, "", problem(503, "who knows"))]).await;
    let error = client(&[replica.address]).submit(&new_job()).await.unwrap_err();
    assert_eq!(error.status(), Some(503));
    assert_eq!(replica.requests().len(), 1);
}

#[tokio::test]
async fn a_read_is_repeated_when_the_connection_breaks() {
    let broken = Replica::playing(vec![Reply::BreakOff]).await;
    let other = Replica::playing(vec![ok(&job())]).await;
    let job = client(&[broken.address, other.address]).get("j1").await.unwrap();
    assert_eq!(job.tags["k"], "v");
}

#[tokio::test]
async fn a_problem_is_shown_with_its_fields() {
    let replica = Replica::playing(vec![Reply::Answer(422, "", problem(422, "bad fields"))]).await;
    let error = client(&[replica.address]).submit(&new_job()).await.unwrap_err();
    assert_eq!(error.to_string(), "Refused (422): bad fields\n  priority: must be 1 to 10");
}

#[tokio::test]
async fn nobody_at_home_names_the_addresses_that_were_tried() {
    let address = nobody().await;
    let error = client_within(&[address], Duration::from_secs(2)).stats().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }));
    assert!(error.to_string().contains(&address.to_string()), "{error}");
}

#[tokio::test]
async fn a_replica_that_is_not_ready_still_tells_its_health() {
    let detail = json!({"status": "unavailable"});
    let replica = Replica::playing(vec![Reply::Answer(503, "retry-after: 1\r\n", detail.to_string())]).await;
    let health = client(&[nobody().await, replica.address]).health().await.unwrap();
    assert!(!health.healthy);
    assert_eq!(health.detail, detail);
}

#[tokio::test]
async fn every_read_asks_for_its_own_path() {
    let replica = Replica::playing(vec![
        ok(&json!({"jobs": [job()], "total": 1, "page": 2, "page_size": 1, "pages": 1})),
        ok(&json!([])),
        ok(&json!({"executions": []})),
        ok(&json!({"total_jobs": 3, "timeout": 1})),
        ok(&json!({"workers": [], "total": 0})),
        ok(&json!({"id": 2, "cluster_id": "c", "leader": 1, "members": [{"id": 1, "role": "leader", "zone": "a"}]})),
        ok(&job()),
        Reply::Answer(204, "", String::new()),
        ok(&worker()),
    ])
    .await;
    let client = client(&[replica.address]);
    let filter = JobFilter {
        status: Some("failed".to_owned()),
        model_name: Some("a b".to_owned()),
        page: Some(2),
        ..JobFilter::default()
    };
    assert_eq!(client.list(&filter).await.unwrap().jobs.len(), 1);
    assert!(client.executions("j1").await.unwrap().is_empty());
    assert!(client.executions("../j1").await.unwrap().is_empty());
    assert_eq!(client.stats().await.unwrap().timeout, 1);
    assert_eq!(client.workers(Some("idle")).await.unwrap().total, 0);
    let cluster = client.cluster().await.unwrap();
    assert_eq!((cluster.leader, cluster.cluster_id.as_deref()), (Some(1), Some("c")));
    assert_eq!(cluster.members[0].other["zone"], "a");
    client.retry("j1").await.unwrap();
    client.cancel("j1").await.unwrap();
    assert!(client.drain_worker("w1").await.unwrap().draining);
    let lines: Vec<_> = replica
        .requests()
        .iter()
        .map(|request| request.lines().next().unwrap().replace(" HTTP/1.1", ""))
        .collect();
    assert_eq!(
        lines,
        [
            "GET /api/v1/jobs?status_filter=failed&model_name=a+b&page=2",
            "GET /api/v1/jobs/j1/executions",
            "GET /api/v1/jobs/..%2Fj1/executions",
            "GET /api/v1/jobs/stats/summary",
            "GET /api/v1/workers?status=idle",
            "GET /api/v1/cluster",
            "POST /api/v1/jobs/j1/retry",
            "DELETE /api/v1/jobs/j1",
            "POST /api/v1/workers/w1/drain",
        ]
    );
}
