//! Workers that give signs of life over REST, are drained and are removed.

use cortex_client::proto::{JobStatusUpdate, PollJobResponse};
use serde_json::{Value, json};
use tonic::Code;

use crate::group::{Api, REPLICAS};
use crate::hand::Hand;
use crate::support::eventually;
use crate::talk::{Talk, done, resumed, update};

const NOBODY: &str = "0190a5c0-0000-7000-8000-000000000001";

/// A valid registration of this test's only REST worker.
fn registration(api: &Api, fields: &Value) -> Value {
    let mut worker = json!({"name": api.name, "hostname": api.name, "ip_address": "10.0.2.10", "port": 8000,
        "capabilities": {"models": [api.name]}, "max_concurrent_jobs": 2});
    for (field, value) in fields.as_object().unwrap() {
        worker[field] = value.clone();
    }
    worker
}

async fn register(api: &Api, replica: usize, fields: &Value) -> String {
    let reply = api.post(replica, "/api/v1/workers", &registration(api, fields)).await;
    assert!([200, 201].contains(&reply.status), "{reply:?}");
    reply.body["id"].as_str().unwrap().to_owned()
}

async fn worker(api: &Api, id: &str) -> Value {
    api.get(1, &format!("/api/v1/workers/{id}")).await.expect(200)
}

async fn drain(api: &Api, replica: usize, id: &str) -> Value {
    api.post(replica, &format!("/api/v1/workers/{id}/drain"), &json!({})).await.expect(200)
}

#[tokio::test]
async fn a_heartbeat_over_rest_names_what_waits_for_the_worker_and_what_was_taken_from_it() {
    let api = Api::of("rest-heartbeat").await;
    let hand = Hand::new(&api, 0, 2).await;
    let beat = async |replica: usize, body: Value| {
        api.post(replica, &format!("/api/v1/workers/{}/heartbeat", hand.id), &body).await
    };
    let (waiting, taken) = (api.submit(0, &json!({})).await, api.submit(1, &json!({})).await);
    for id in [&waiting, &taken] {
        api.reaches(id, "assigned").await;
    }
    let answer = beat(2, json!({"status": "idle", "current_job_count": 0})).await.expect(200);
    let mut pending: Vec<_> = answer["pending_jobs"].as_array().unwrap().iter().collect();
    pending.sort_unstable_by_key(|id| id.as_str());
    let mut both = [&json!(waiting), &json!(taken)];
    both.sort_unstable_by_key(|id| id.as_str());
    assert_eq!(pending, both);
    assert_eq!((&answer["acknowledged"], &answer["draining"]), (&json!(true), &json!(false)));
    api.cancel(1, &taken).await.expect(204);
    for replica in 0..REPLICAS {
        let body = json!({"worker_id": hand.id, "status": "busy", "current_job_count": 1, "current_jobs": [taken],
            "cpu_usage_percent": 12.5, "memory_usage_mb": 2048, "gpu_usage_percent": 100,
            "loaded_models": [api.name], "metadata": {"zone": "a"}});
        let answer = beat(replica, body).await.expect(200);
        assert_eq!(
            (&answer["pending_jobs"], &answer["cancelled_jobs"]),
            (&json!([waiting]), &json!([taken]))
        );
    }

    let bad = json!({"worker_id": NOBODY, "status": "tired", "current_job_count": -1, "current_jobs": ["x"],
        "cpu_usage_percent": 101, "memory_usage_mb": -1, "gpu_usage_percent": "x", "loaded_models": [""],
        "metadata": 1});
    let reply = beat(1, bad).await;
    assert_eq!(
        reply.fields(),
        [
            "cpu_usage_percent",
            "current_job_count",
            "current_jobs",
            "gpu_usage_percent",
            "loaded_models",
            "memory_usage_mb",
            "metadata",
            "status",
            "worker_id"
        ]
    );
    reply.expect(422);
    let body = json!({"status": "idle", "current_job_count": 0});
    api.post(0, &format!("/api/v1/workers/{NOBODY}/heartbeat"), &body).await.expect(404);
    api.post(0, "/api/v1/workers/nobody/heartbeat", &body).await.expect(400);
    api.leave().await;
}

#[tokio::test]
async fn what_a_worker_declares_and_what_it_reports_stand_side_by_side_and_are_exported() {
    let api = Api::of("worker-metadata").await;
    let id = register(&api, 0, &json!({"metadata": {"rack": "r1", "cpu_usage_percent": "declared"}})).await;
    let metadata = async |wanted: Value| {
        eventually(&format!("the metadata is {wanted}"), async || {
            worker(&api, &id).await["metadata"] == wanted
        })
        .await;
    };
    metadata(json!({"rack": "r1", "cpu_usage_percent": "declared"})).await;
    let beat = async |fields: Value| {
        let mut body = json!({"status": "idle", "current_job_count": 0});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        api.post(2, &format!("/api/v1/workers/{id}/heartbeat"), &body).await.expect(200);
    };
    beat(json!({"cpu_usage_percent": 12.5, "memory_usage_mb": 2048, "metadata": {"load": 1}})).await;
    metadata(json!({"rack": "r1", "cpu_usage_percent": 12.5, "memory_usage_mb": 2048.0, "load": 1})).await;
    let label = format!("{{worker=\"{}:8000\"}}", api.name);
    let exported = async |line: String| {
        eventually(&format!("{line} is exported"), async || {
            let mut all = String::new();
            for replica in 0..REPLICAS {
                all.push_str(api.get(replica, "/metrics").await.expect(200).as_str().unwrap());
            }
            all.lines().any(|found| found == line)
        })
        .await;
    };
    exported(format!("cortex_worker_cpu_usage_percent{label} 12.5")).await;
    exported(format!("cortex_worker_memory_usage_mb{label} 2048")).await;

    // Registering again changes what is declared, and only that.
    let again = register(&api, 1, &json!({"metadata": {"floor": 2}})).await;
    assert_eq!(again, id);
    metadata(json!({"floor": 2, "cpu_usage_percent": 12.5, "memory_usage_mb": 2048.0, "load": 1})).await;
    // Reports replace the reports before them, and what was declared shows again.
    beat(json!({"gpu_usage_percent": 3, "metadata": {}})).await;
    metadata(json!({"floor": 2, "gpu_usage_percent": 3.0})).await;
    exported(format!("cortex_worker_gpu_usage_percent{label} 3")).await;
    let long = registration(&api, &json!({"metadata": {"text": "t".repeat(16 << 10)}}));
    let reply = api.post(0, "/api/v1/workers", &long).await;
    assert_eq!(reply.fields(), ["metadata"]);
    reply.expect(422);
    api.leave().await;
}

#[tokio::test]
async fn a_drained_worker_keeps_its_running_job_and_gets_nothing_new_until_it_registers_again() {
    let api = Api::of("drain").await;
    for replica in 0..REPLICAS {
        let mut talk = Talk::register(&api, api.follower().await, 2, 2).await;
        let running = api.submit(replica, &json!({})).await;
        let job = talk.job().await;
        talk.report(1, update(&job, "running"));
        talk.acknowledged(1).await;
        let drained = drain(&api, replica, &talk.worker_id).await;
        assert_eq!((&drained["id"], &drained["draining"]), (&json!(talk.worker_id), &json!(true)));
        talk.hear("that it is drained", |said| std::mem::take(&mut said.draining).then_some(())).await;
        let waiting = api.submit(replica, &json!({})).await;
        eventually("the job is ready", async || api.ready().await.contains(&waiting)).await;
        talk.beat("idle");
        talk.report(2, done(&job));
        talk.acknowledged(2).await;
        api.reaches(&running, "completed").await;

        // Another stream changes nothing, and is told.
        let mut second = Talk::resume(&api, replica, &talk.worker_id, &[]).await;
        second.credits(2);
        second.hear("that it is drained", |said| std::mem::take(&mut said.draining).then_some(())).await;
        assert!(
            drain(&api, replica, &talk.worker_id).await["draining"] == json!(true),
            "it may be said again"
        );
        assert_eq!(api.rows(&waiting).await["job"]["status"], "queued");
        assert!(second.said.assignments.is_empty());

        let registered = registered_again(&api, &talk.worker_id).await;
        let mut third = Talk::open(&api, replica, registered).await.unwrap();
        assert_eq!(third.worker_id, talk.worker_id);
        assert_eq!(third.job().await.job_id, waiting);
        assert_eq!(worker(&api, &talk.worker_id).await["draining"], json!(false));
        api.cancel(replica, &waiting).await.expect(204);
        api.remove_worker(replica, &talk.worker_id).await;
    }
    let drain = |id: &str| format!("/api/v1/workers/{id}/drain");
    api.post(0, &drain(NOBODY), &json!({})).await.expect(404);
    api.post(0, &drain("nobody"), &json!({})).await.expect(400);
    api.leave().await;
}

/// The opening with which a worker registers under the hostname and port of another one.
async fn registered_again(api: &Api, id: &str) -> cortex_client::proto::SessionRequest {
    let port = worker(api, id).await["port"].as_i64().unwrap();
    let registration = cortex_client::proto::WorkerRegistration {
        port: i32::try_from(port).unwrap(),
        ..crate::talk::registration(api, 2)
    };
    let mut opening = resumed("", &[]);
    opening.opening.as_mut().unwrap().registration = Some(registration);
    opening.credits = 2;
    opening
}

#[tokio::test]
async fn a_drained_worker_that_polls_hands_back_what_it_has_not_fetched_and_is_told_by_its_heartbeat() {
    let api = Api::of("drain-poll").await;
    let hand = Hand::new(&api, 0, 2).await;
    let fetched = api.submit(0, &json!({})).await;
    // With calls that do not wait, so that it is given what it has not asked for.
    let mut polled = None;
    eventually("the job is fetched", async || {
        polled = hand.poll(0).await;
        polled.is_some()
    })
    .await;
    let job = polled.unwrap();
    let unfetched = api.submit(0, &json!({})).await;
    api.reaches(&unfetched, "assigned").await;
    assert_eq!(hand.heartbeat(&[&job]).await.unwrap().pending_jobs, std::slice::from_ref(&unfetched));
    drain(&api, 1, &hand.id).await;
    api.reaches(&unfetched, "queued").await;
    assert!(hand.heartbeat(&[&job]).await.unwrap().draining);
    assert!(hand.poll(0).await.is_none());
    assert!(hand.report(&hand.success(&job, &json!({"a": 1}))).await.acknowledged);
    api.reaches(&fetched, "completed").await;
    api.leave().await;
}

#[tokio::test]
async fn a_removed_worker_loses_its_jobs_and_its_stream_and_counts_for_nothing_until_it_registers_again() {
    let api = Api::of("remove").await;
    for replica in 0..REPLICAS {
        let mut talk = Talk::register(&api, (replica + 1) % REPLICAS, 2, 2).await;
        let slow = json!({"retry_policy": {"initial_delay_seconds": 3600, "max_delay_seconds": 3600}});
        let running = api.submit(replica, &json!({"metadata": slow})).await;
        let job = talk.job().await;
        talk.report(1, update(&job, "running"));
        talk.acknowledged(1).await;
        let begun = api.submit(replica, &json!({})).await;
        let other = talk.job().await;
        api.remove_worker(replica, &talk.worker_id).await;

        let rows = api.rows(&running).await;
        assert_eq!((&rows["job"]["status"], &rows["job"]["retry_count"]), (&json!("pending"), &json!(1)));
        assert_eq!(rows["executions"][0]["error_code"], "worker_lost");
        let rows = api.rows(&begun).await;
        assert_eq!(
            (&rows["job"]["retry_count"], &rows["executions"][0]["error_code"]),
            (&json!(0), &json!("worker_lost"))
        );
        let shown = worker(&api, &talk.worker_id).await;
        assert_eq!((&shown["status"], &shown["current_job_count"]), (&json!("offline"), &json!(0)));
        assert!(shown["removed_at"].is_string());
        talk.ended(&job).await;
        talk.ended(&other).await;
        let worker_id = talk.worker_id.clone();
        assert_eq!(talk.end().await, Err(Code::FailedPrecondition));

        let refused = Talk::open(&api, replica, resumed(&worker_id, &[])).await.err().unwrap();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        let body = json!({"status": "idle", "current_job_count": 0});
        api.post(replica, &format!("/api/v1/workers/{worker_id}/heartbeat"), &body).await.expect(409);
        api.post(replica, &format!("/api/v1/workers/{worker_id}/drain"), &json!({})).await.expect(409);
        report_is_stale(&api, replica, &worker_id, &job).await;
        api.remove_worker(replica, &worker_id).await;
        assert_eq!(worker(&api, &worker_id).await["removed_at"], shown["removed_at"], "once is enough");

        let opening = registered_again(&api, &worker_id).await;
        let mut again = Talk::open(&api, replica, opening).await.unwrap();
        assert_eq!(again.worker_id, worker_id);
        assert_eq!(worker(&api, &worker_id).await["removed_at"], Value::Null);
        let job = again.job().await;
        assert_eq!((job.job_id.as_str(), job.attempt_number), (begun.as_str(), 1));
        again.report(1, done(&job));
        again.acknowledged(1).await;
        api.remove_worker(replica, &worker_id).await;
    }
    let path = |id: &str| format!("/api/v1/workers/{id}");
    api.send(0, reqwest::Method::DELETE, &path(NOBODY), None).await.expect(404);
    api.send(0, reqwest::Method::DELETE, &path("nobody"), None).await.expect(400);
    api.leave().await;
}

async fn report_is_stale(api: &Api, replica: usize, worker_id: &str, job: &PollJobResponse) {
    let update = JobStatusUpdate {
        job_id: job.job_id.clone(),
        worker_id: worker_id.to_owned(),
        execution_id: job.execution_id.clone(),
        status: "running".to_owned(),
        ..JobStatusUpdate::default()
    };
    let answer =
        crate::hand::connect(api, replica).await.update_job_status(update).await.unwrap().into_inner();
    assert!(!answer.acknowledged && answer.message.contains("was removed"), "{answer:?}");
}

#[tokio::test]
async fn the_statistics_of_workers_are_not_taken_for_a_worker_and_add_up() {
    let api = Api::of("worker-statistics").await;
    let idle = json!({"max_concurrent_jobs": 100, "capabilities": {"models": []}});
    let id = register(&api, 0, &idle).await;
    // A worker is busy while the replicas are asked.
    let hand = Hand::new(&api, 0, 1).await;
    api.submit(0, &json!({})).await;
    hand.job().await;
    eventually("the job is counted", async || worker(&api, &hand.id).await["current_job_count"] == 1).await;
    for replica in 0..REPLICAS {
        let stats = api.get(replica, "/api/v1/workers/stats/summary").await.expect(200);
        let states = ["idle_workers", "busy_workers", "offline_workers", "unhealthy_workers"];
        let sum: i64 = states.iter().map(|state| stats[state].as_i64().unwrap()).sum();
        assert_eq!(stats["total_workers"], sum);
        let (capacity, held) =
            (stats["total_capacity"].as_i64().unwrap(), stats["current_utilization"].as_i64().unwrap());
        assert!(capacity >= 101 && (1..=capacity).contains(&held), "{stats}");
        #[expect(clippy::cast_precision_loss, reason = "small counts")]
        let percent = 100.0 * held as f64 / capacity as f64;
        assert!((stats["utilization_percent"].as_f64().unwrap() - percent).abs() < 1e-9, "{stats}");
    }
    api.remove_worker(0, &id).await;
    api.leave().await;
}

/// What `cortex workers` prints, if it succeeds.
async fn cortex_workers(api: &Api, arguments: &[&str]) -> Result<String, i32> {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_cortex"))
        .arg("workers")
        .args(arguments)
        .args(["--endpoint", &api.url(1, "")])
        .output()
        .await
        .unwrap();
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout).unwrap());
    }
    assert!(!output.stderr.is_empty());
    Err(output.status.code().unwrap())
}

#[tokio::test]
async fn workers_are_drained_and_listed_from_the_command_line() {
    let api = Api::of("drain-command").await;
    let id = register(&api, 0, &json!({})).await;
    let printed = cortex_workers(&api, &["drain", &id]).await.unwrap();
    let line = printed.lines().find(|line| line.contains(&id)).unwrap();
    assert!(line.contains("idle, draining"), "{printed}");
    assert_eq!(worker(&api, &id).await["draining"], json!(true));
    let listed = cortex_workers(&api, &["list", "--output", "json"]).await.unwrap();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let mine = listed["workers"].as_array().unwrap().iter().find(|worker| worker["id"] == id.as_str());
    assert_eq!(mine.unwrap()["draining"], json!(true));
    assert_eq!(cortex_workers(&api, &["drain", NOBODY]).await, Err(1));
    assert_eq!(cortex_workers(&api, &["drain"]).await, Err(2));
    api.remove_worker(0, &id).await;
    api.leave().await;
}
