//! Jobs from submission to their end, by workers of both generations.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cortex_client::{AssignedJob, CancellationToken, Handler, JobFailure, Worker};
use futures::future::join_all;
use serde_json::{Value, json};

use crate::group::{Api, REPLICAS};
use crate::hand::channel;
use crate::hand::specification::job_service_client::JobServiceClient;
use crate::hand::specification::{
    HeartbeatRequest, JobCompletion, JobStatusUpdate, PollJobRequest, WorkerRegistration,
};
use crate::support::eventually;

#[tokio::test]
async fn a_worker_of_the_specifications_protocol_at_a_follower_runs_sixty_jobs_in_the_order_of_priority() {
    let api = Api::of("specification-worker").await;
    let mut submitted = Vec::new();
    for number in 0..60 {
        // A walk over all priorities that repeats each of them at different distances.
        let priority = number * 7 % 10 + 1;
        let fields =
            json!({"priority": priority, "input_data": {"number": number}, "name": format!("job {number}")});
        submitted.push((api.submit(number % REPLICAS, &fields).await, priority, number));
    }
    eventually("all jobs are ready", async || api.ready().await.len() == 60).await;

    let mut client = JobServiceClient::new(channel(&api, api.follower().await).await);
    let worker_id = register(&api, &mut client).await;
    let mut fetched = Vec::new();
    while fetched.len() < 60 {
        let job =
            client.poll_job(PollJobRequest { worker_id: worker_id.clone() }).await.unwrap().into_inner();
        if !job.has_job {
            // What a worker does that knows no long poll, only faster.
            tokio::task::yield_now().await;
            continue;
        }
        run_as_specified(&mut client, &worker_id, &job).await;
        fetched.push(job.job_id);
    }

    let mut expected = submitted.clone();
    expected.sort_by_key(|(_, priority, number)| (std::cmp::Reverse(*priority), *number));
    let expected: Vec<String> = expected.into_iter().map(|(id, _, _)| id).collect();
    assert_eq!(fetched, expected);
    for (at, (id, _, number)) in submitted.iter().enumerate() {
        let rows = api.rows(id).await;
        assert_eq!(rows["job"]["status"], "completed");
        assert_eq!(rows["job"]["output_data"], json!({"doubled": number * 2}));
        assert_eq!(rows["executions"].as_array().unwrap().len(), 1);
        assert_eq!(rows["executions"][0]["worker_id"], worker_id);
        assert_eq!(rows["executions"][0]["status"], "completed");
        assert_eq!(api.job((at + 1) % REPLICAS, id).await["output_data"]["doubled"], number * 2);
    }
    api.leave().await;
}

type Client = JobServiceClient<tonic::transport::Channel>;

async fn register(api: &Api, client: &mut Client) -> String {
    let registration = WorkerRegistration {
        name: api.name.clone(),
        hostname: api.name.clone(),
        ip_address: "10.0.2.10".to_owned(),
        port: 8000,
        capabilities: HashMap::from([("models".to_owned(), api.name.clone())]),
        max_concurrent_jobs: 1,
        version: "1.0.0".to_owned(),
    };
    let answer = client.register_worker(registration).await.unwrap().into_inner();
    assert!(answer.success);
    answer.worker_id
}

async fn run_as_specified(
    client: &mut Client,
    worker_id: &str,
    job: &crate::hand::specification::PollJobResponse,
) {
    let input: Value = serde_json::from_slice(&job.input_data).unwrap();
    assert_eq!(job.job_name, format!("job {}", input["number"]));
    assert_eq!((job.model_version.as_str(), job.timeout_seconds), ("v1.0.0", 3600));
    let beat = HeartbeatRequest {
        worker_id: worker_id.to_owned(),
        status: "busy".to_owned(),
        current_job_count: 1,
        current_jobs: vec![job.job_id.clone()],
        ..HeartbeatRequest::default()
    };
    let answer = client.heartbeat(beat).await.unwrap().into_inner();
    assert!(answer.acknowledged && answer.pending_jobs.is_empty(), "{answer:?}");
    let update = JobStatusUpdate {
        job_id: job.job_id.clone(),
        worker_id: worker_id.to_owned(),
        status: "running".to_owned(),
        ..JobStatusUpdate::default()
    };
    assert!(client.update_job_status(update).await.unwrap().into_inner().acknowledged);
    let completion = JobCompletion {
        job_id: job.job_id.clone(),
        worker_id: worker_id.to_owned(),
        success: true,
        output_data: json!({"doubled": input["number"].as_i64().unwrap() * 2}).to_string().into(),
        duration_ms: 3,
        ..JobCompletion::default()
    };
    let answer = client.complete_job(completion).await.unwrap().into_inner();
    assert!(answer.acknowledged, "{answer:?}");
}

/// Answers its input, and notes how many jobs it runs at once.
#[derive(Clone, Default)]
struct Echo(Arc<Load>);

#[derive(Default)]
struct Load {
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Handler for Echo {
    async fn run(&self, job: AssignedJob, _: CancellationToken) -> Result<Value, JobFailure> {
        let now = self.0.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.0.most.fetch_max(now, Ordering::SeqCst);
        // Long enough to overlap with other jobs and to be reported as running.
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        self.0.now.fetch_sub(1, Ordering::SeqCst);
        job.input()
    }
}

#[tokio::test]
async fn workers_of_the_runtime_at_different_replicas_run_every_job_exactly_once() {
    let api = Api::of("runtime-workers").await;
    let shutdown = CancellationToken::new();
    let handlers: Vec<_> = (0..REPLICAS).map(|_| Echo::default()).collect();
    let workers: Vec<_> = handlers
        .iter()
        .enumerate()
        .map(|(replica, handler)| {
            let worker = Worker::builder()
                .endpoints(api.grpc(replica))
                .name(format!("{}-{replica}", api.name))
                .hostname(&api.name)
                .port(u16::try_from(api.new_port()).unwrap())
                .models([&api.name])
                .slots(4)
                .build()
                .unwrap();
            tokio::spawn(worker.run(handler.clone(), shutdown.clone()))
        })
        .collect();
    let submissions = (0..90).map(|number| {
        let api = &api;
        async move { api.submit(number % REPLICAS, &json!({"input_data": {"number": number}})).await }
    });
    let ids = join_all(submissions).await;
    for (number, id) in ids.iter().enumerate() {
        let rows = api.reaches(id, "completed").await;
        assert_eq!(rows["job"]["output_data"], json!({"number": number}));
        assert_eq!(rows["executions"].as_array().unwrap().len(), 1, "{rows}");
    }
    shutdown.cancel();
    for (worker, handler) in workers.into_iter().zip(handlers) {
        worker.await.unwrap().unwrap();
        let most = handler.0.most.load(Ordering::SeqCst);
        assert!((1..=4).contains(&most), "a worker with 4 slots ran {most} jobs at once");
    }
    api.leave().await;
}
