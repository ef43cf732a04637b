//! How workers come by jobs: polls, slots, heartbeats, matching.

use bytes::{BufMut, BytesMut};
use cortex_client::proto::{
    HeartbeatRequest, JobCompletion, JobStatusUpdate, PollJobRequest, WorkerRegistration,
};
use futures::future::join_all;
use http_body_util::Full;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tonic::Code;

use crate::group::{Api, REPLICAS};
use crate::hand::{Hand, connect};
use crate::support::eventually;

const NOBODY: &str = "0190a5c0-0000-7000-8000-000000000001";

#[tokio::test]
async fn a_long_poll_gets_the_job_that_comes_meanwhile_at_every_replica() {
    let api = Api::of("long-poll").await;
    let mut hand = Hand::new(&api, 0, 1).await;
    for replica in 0..REPLICAS {
        // The same worker, by way of another replica: a second one would have a claim to the job, too.
        hand.client = connect(&api, replica).await;
        assert!(hand.poll(0).await.is_none());
        assert!(hand.poll(1).await.is_none());
        let poll = tokio::spawn({
            let hand = hand.clone();
            async move { hand.poll(30_000).await }
        });
        // The call is on its way or waits already; either way the job finds it.
        let id = api.submit((replica + 1) % REPLICAS, &json!({})).await;
        let job = poll.await.unwrap().unwrap();
        assert_eq!((job.job_id.as_str(), job.attempt_number), (id.as_str(), 1));
        let waited: i64 = sqlx::query_scalar(
            "SELECT (extract(epoch FROM delivered_at - created_at) * 1000)::bigint FROM executions WHERE id = $1::uuid",
        )
        .bind(&job.execution_id)
        .fetch_one(&api.database)
        .await
        .unwrap();
        assert_eq!(waited, 0, "the lease was granted to the call that waited");
        assert!(hand.report(&hand.success(&job, &json!({}))).await.acknowledged);
    }
    api.leave().await;
}

#[tokio::test]
async fn a_worker_never_holds_more_jobs_than_it_has_slots() {
    let api = Api::of("slots").await;
    let hand = Hand::new(&api, 1, 3).await;
    for number in 0..12 {
        api.submit(number % REPLICAS, &json!({})).await;
    }
    let live = async || {
        let held =
            "SELECT count(*) FROM executions WHERE worker_id = $1::uuid AND status IN ('started', 'running')";
        sqlx::query_scalar::<_, i64>(held).bind(&hand.id).fetch_one(&api.database).await.unwrap()
    };
    let mut done = 0;
    let mut held = Vec::new();
    while done < 12 {
        // More calls than slots, all at once.
        let polls = join_all((0..5).map(|_| hand.poll(50))).await;
        held.extend(polls.into_iter().flatten());
        assert!(held.len() <= 3, "{} jobs at once", held.len());
        assert!(live().await <= 3);
        let Some(job) = held.pop() else { continue };
        assert!(hand.report(&hand.success(&job, &json!({}))).await.acknowledged);
        done += 1;
    }
    api.leave().await;
}

#[tokio::test]
async fn a_heartbeat_names_what_waits_for_the_worker_and_what_was_taken_from_it() {
    let api = Api::of("heartbeat").await;
    let hand = Hand::new(&api, 2, 2).await;
    for _ in 0..3 {
        api.submit(0, &json!({})).await;
    }
    let pending = async || hand.heartbeat(&[]).await.unwrap().pending_jobs;
    eventually("two jobs are assigned", async || pending().await.len() == 2).await;
    let first = hand.job().await;
    assert!(!pending().await.contains(&first.job_id));
    let second = hand.job().await;
    let answer = hand.heartbeat(&[&first, &second]).await.unwrap();
    assert!(answer.acknowledged && answer.pending_jobs.is_empty() && answer.cancelled_jobs.is_empty());
    api.cancel(1, &first.job_id).await.expect(204);
    let answer = hand.heartbeat(&[&first, &second]).await.unwrap();
    assert_eq!(answer.cancelled_jobs, std::slice::from_ref(&first.job_id));
    eventually("the free slot is filled", async || {
        hand.heartbeat(&[&second]).await.unwrap().pending_jobs.len() == 1
    })
    .await;
    eventually("the worker's use of its machine is shown", async || {
        let shown = api.get(0, &format!("/api/v1/workers/{}", hand.id)).await.expect(200);
        shown["metadata"]["cpu_usage_percent"] == json!(12.5)
            && shown["current_job_count"] == 2
            && shown["status"] == "busy"
    })
    .await;
    api.leave().await;
}

#[tokio::test]
async fn an_unhealthy_worker_gets_nothing_until_it_is_well() {
    let api = Api::of("unhealthy").await;
    let hand = Hand::new(&api, 0, 1).await;
    let beat = |status: &str| HeartbeatRequest {
        worker_id: hand.id.clone(),
        status: status.to_owned(),
        ..HeartbeatRequest::default()
    };
    hand.client.clone().heartbeat(beat("unhealthy")).await.unwrap();
    let id = api.submit(0, &json!({})).await;
    eventually("the job is ready", async || api.ready().await.len() == 1).await;
    assert!(hand.poll(100).await.is_none());
    hand.client.clone().heartbeat(beat("idle")).await.unwrap();
    assert_eq!(hand.job().await.job_id, id);
    api.leave().await;
}

#[tokio::test]
async fn unknown_workers_and_jobs_are_not_found_and_bad_ids_are_invalid() {
    let api = Api::of("unknown-ids").await;
    let hand = Hand::new(&api, 0, 1).await;
    for replica in 0..REPLICAS {
        let mut client = connect(&api, replica).await;
        for (id, code) in
            [(NOBODY, Code::NotFound), ("nobody", Code::InvalidArgument), ("", Code::InvalidArgument)]
        {
            let worker_id = id.to_owned();
            let beat = HeartbeatRequest { worker_id: worker_id.clone(), ..Default::default() };
            assert_eq!(client.heartbeat(beat).await.unwrap_err().code(), code);
            let poll = PollJobRequest { worker_id: worker_id.clone(), wait_ms: 0 };
            assert_eq!(client.poll_job(poll).await.unwrap_err().code(), code);
            for (job, worker) in [(id, hand.id.as_str()), (NOBODY, id)] {
                let (job_id, worker_id) = (job.to_owned(), worker.to_owned());
                let update = JobStatusUpdate {
                    job_id: job_id.clone(),
                    worker_id: worker_id.clone(),
                    status: "running".to_owned(),
                    ..Default::default()
                };
                assert_eq!(client.update_job_status(update).await.unwrap_err().code(), code);
                let completion = JobCompletion { job_id, worker_id, success: true, ..Default::default() };
                assert_eq!(client.complete_job(completion).await.unwrap_err().code(), code);
            }
        }
        let poll = PollJobRequest { worker_id: hand.id.clone(), wait_ms: -1 };
        assert_eq!(client.poll_job(poll).await.unwrap_err().code(), Code::InvalidArgument);
        let nothing = client.register_worker(WorkerRegistration::default()).await.unwrap_err();
        assert_eq!(nothing.code(), Code::InvalidArgument);
        assert!(
            ["name", "hostname", "port"].iter().all(|field| nothing.message().contains(field)),
            "{nothing:?}"
        );
        let mut bad = hand.registration.clone();
        bad.capabilities.insert("gpu".to_owned(), "maybe".to_owned());
        bad.max_concurrent_jobs = 101;
        let refusal = client.register_worker(bad).await.unwrap_err();
        assert!(
            refusal.message().contains("capabilities.gpu")
                && refusal.message().contains("max_concurrent_jobs")
        );
        let beat = HeartbeatRequest {
            worker_id: hand.id.clone(),
            status: "asleep".to_owned(),
            ..Default::default()
        };
        assert_eq!(client.heartbeat(beat).await.unwrap_err().code(), Code::InvalidArgument);
    }
    api.leave().await;
}

#[tokio::test]
async fn each_worker_gets_what_it_can_do_and_a_job_for_nobody_blocks_no_other() {
    let api = Api::of("matching").await;
    let model = |name: &str| format!("{}-{name}", api.name);
    let (array, list) =
        (json!([model("a"), model("b")]).to_string(), format!(" {} , {}", model("c"), model("a")));
    let hands = [
        Hand::with(&api, 0, 50, &[("models", &array)]).await,
        Hand::with(&api, 1, 50, &[("models", &list), ("gpu", "true"), ("memory_gb", "16.5")]).await,
    ];
    let job = |name: &str, priority: u8, metadata: Value| json!({"model_name": model(name), "priority": priority, "metadata": metadata, "name": name});
    // At the head of the queue, and for nobody: an unknown model, too much memory, a GPU where there is none.
    for _ in 0..3 {
        api.submit(0, &job("d", 10, json!({}))).await;
        api.submit(0, &job("c", 10, json!({"required_memory_gb": 17}))).await;
        api.submit(0, &job("b", 10, json!({"requires_gpu": true}))).await;
    }
    eventually("the queue's head is ready", async || api.ready().await.len() == 9).await;
    let mut wanted = [Vec::new(), Vec::new()];
    for (worker, name, metadata) in [
        (0, "b", json!({})),
        (1, "c", json!({"requires_gpu": true})),
        (1, "a", json!({"requires_gpu": true, "required_memory_gb": 16.5})),
        (1, "a", json!({"required_memory_gb": 1})),
        (0, "b", json!({"requires_gpu": false, "required_memory_gb": 0})),
        (1, "c", json!({})),
    ] {
        wanted[worker].push(api.submit(worker, &job(name, 1, metadata)).await);
    }
    let shared = api.submit(2, &job("a", 1, json!({}))).await;
    let mut got = [Vec::new(), Vec::new()];
    while got[0].len() + got[1].len() < 7 {
        for (got, hand) in got.iter_mut().zip(&hands) {
            got.extend(hand.poll(50).await.map(|job| job.job_id));
        }
    }
    let both = got.concat();
    assert_eq!(both.iter().filter(|id| **id == shared).count(), 1);
    for (mut got, mut wanted) in got.into_iter().zip(wanted) {
        got.retain(|id| *id != shared);
        got.sort_unstable();
        wanted.sort_unstable();
        assert_eq!(got, wanted);
    }
    for hand in &hands {
        assert!(hand.poll(0).await.is_none());
    }
    assert_eq!(api.ready().await.len(), 9, "what nobody can take still waits");
    api.leave().await;
}

#[tokio::test]
async fn a_call_is_over_with_its_deadline() {
    let api = Api::of("poll-deadline").await;
    let hand = Hand::new(&api, 0, 1).await;
    let poll = PollJobRequest { worker_id: hand.id.clone(), wait_ms: 30_000 };
    let mut body = BytesMut::new();
    body.put_u8(0);
    body.put_u32(u32::try_from(poll.encoded_len()).unwrap());
    poll.encode(&mut body).unwrap();
    let body = Full::new(body.freeze());
    for replica in 0..REPLICAS {
        // tonic's client would end the call by itself.
        let address = api.grpc(replica);
        let stream = TcpStream::connect(address.trim_start_matches("http://")).await.unwrap();
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let call = http::Request::post(format!("{address}/cortex.JobService/PollJob"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-timeout", "200m")
            .body(body.clone())
            .unwrap();
        let answer = sender.send_request(call).await.unwrap();
        let code = Code::from_bytes(answer.headers()["grpc-status"].as_bytes());
        assert_eq!(code, Code::DeadlineExceeded, "replica {replica}");
    }
    api.leave().await;
}
