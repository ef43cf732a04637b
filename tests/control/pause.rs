//! Pausing and resuming, for a model and for all, through every kind of dispatch and a change of the leader.

use std::time::Duration;

use cortex::dev::Signal;
use cortex_client::proto::job_service_client::JobServiceClient;
use cortex_client::proto::{PollJobRequest, WorkerRegistration};
use futures::StreamExt;
use reqwest::Method;
use serde_json::json;

use crate::scene::Scene;
use crate::support::eventually;

const AT_ONCE: Duration = Duration::ZERO;

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_model_waits_while_others_go_on_and_resuming_lets_it_run() {
    let scene = Scene::start().await;
    scene.start_worker(&["held", "free"], 4, AT_ONCE);
    scene.submit(0, "held", 5, 1).await;
    scene.reach("held", "completed", 1).await;

    let follower = scene.follower().await;
    let paused = scene.post(follower, "/api/v1/queues/pause?model_name=held").await;
    assert_eq!(paused, json!({"paused": false, "paused_models": ["held"]}));
    assert_eq!(scene.post(0, "/api/v1/queues/pause?model_name=held").await, paused, "twice is once");
    // More urgent ones in front, with free slots: neither a round nor direct dispatch may take them.
    scene.submit(follower, "held", 10, 20).await;
    for _ in 0..10 {
        scene.submit(1, "free", 1, 2).await;
    }
    scene.reach("free", "completed", 20).await;
    assert_eq!((scene.count("held", "queued").await, scene.count("held", "completed").await), (20, 1));
    for replica in 0..3 {
        eventually("every replica shows what is paused", async || {
            let queue = scene.get(replica, "/api/v1/queues").await;
            queue["paused"] == false && queue["paused_models"] == json!(["held"]) && queue["depth"] == 20
        })
        .await;
    }
    let queue = scene.get(2, "/api/v1/queues").await;
    assert_eq!(
        (&queue["priorities"][0]["priority"], &queue["priorities"][0]["depth"]),
        (&json!(10), &json!(20))
    );
    assert!(queue["oldest_wait_ms"].as_i64() > Some(0), "{queue}");
    let held = scene.get(0, "/api/v1/jobs?model_name=held&status=queued&page_size=1").await;
    let held = held["jobs"][0]["id"].as_str().unwrap();
    let explained = scene.get(follower, &format!("/api/v1/jobs/{held}/explain")).await;
    assert_eq!(explained["reason"], "is_paused", "{explained}");

    let resumed = scene.post(follower, "/api/v1/queues/resume?model_name=held").await;
    assert_eq!(resumed, json!({"paused": false, "paused_models": []}));
    scene.reach("held", "completed", 21).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_would_be_ignored_pauses_nothing() {
    let scene = Scene::start().await;
    let calls = [
        (Method::POST, "/api/v1/queues/pause"),
        (Method::POST, "/api/v1/queues/resume"),
        (Method::DELETE, "/api/v1/queues"),
    ];
    for (method, path) in calls {
        let body = Some(json!({"model_name": "held"}));
        let (status, problem) = scene.ask(1, method.clone(), path, body).await;
        assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!("body")), "{path}: {problem}");
        assert_eq!(scene.ask(1, method, path, Some(json!({}))).await.0, 200, "nothing is meant by {{}}");
        assert_eq!(scene.post(1, "/api/v1/queues/resume").await["paused"], false);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn however_many_models_are_paused_all_can_be() {
    const MODELS: usize = 1_000;
    let scene = Scene::start().await;
    let pause = async |model: usize| {
        let path = format!("/api/v1/queues/pause?model_name=m{model}");
        scene.ask(model % 3, Method::POST, &path, None).await
    };
    let mut answers = futures::stream::iter(0..MODELS).map(&pause).buffer_unordered(64);
    while let Some((status, answer)) = answers.next().await {
        assert_eq!(status, 200, "{answer}");
    }
    let (status, problem) = pause(MODELS).await;
    assert_eq!(status, 409, "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("1000 models are paused"), "{problem}");
    assert_eq!(pause(7).await.0, 200, "it is paused already");
    let paused = scene.post(0, "/api/v1/queues/pause").await;
    assert_eq!(
        (&paused["paused"], paused["paused_models"].as_array().unwrap().len()),
        (&json!(true), MODELS)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_queue_gives_nothing_to_anybody_until_it_is_resumed_and_running_jobs_go_on() {
    let scene = Scene::start().await;
    scene.start_worker(&["m"], 2, Duration::from_secs(6));
    scene.submit(0, "m", 5, 2).await;
    scene.reach("m", "running", 2).await;
    scene.post(0, "/api/v1/queues/pause?model_name=n").await;
    assert_eq!(scene.cortex("queues pause").await, "paused: everything, and by name: n\n");

    let jobs = scene.submit(1, "m", 5, 3).await;
    scene.reach("m", "completed", 2).await;
    assert_eq!(scene.count("m", "queued").await, 3);
    // Nor does a call that polls get one.
    let mut poller = JobServiceClient::connect(format!("http://{}", scene.cluster.grpc(1))).await.unwrap();
    let registration = WorkerRegistration {
        name: "poller".into(),
        hostname: "poller".into(),
        ip_address: "127.0.0.1".into(),
        port: 1,
        max_concurrent_jobs: 1,
        ..WorkerRegistration::default()
    };
    let worker_id = poller.register_worker(registration).await.unwrap().into_inner().worker_id;
    let poll = PollJobRequest { worker_id, wait_ms: 1_500 };
    assert!(!poller.poll_job(poll).await.unwrap().into_inner().has_job);
    assert_eq!(scene.count("m", "queued").await, 3);

    // What waits is shown in the order in which it will run.
    let next = scene.get(2, "/api/v1/queues/peek").await;
    let shown: Vec<_> = next.as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap()).collect();
    assert_eq!(shown, jobs);
    assert_eq!(scene.get(0, "/api/v1/queues/depth").await, json!({"depth": 3}));

    assert_eq!(scene.cortex("queues resume").await, "nothing is paused\n");
    scene.reach("m", "queued", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_outlives_its_leader() {
    let mut scene = Scene::start().await;
    scene.start_worker(&["held", "free"], 4, AT_ONCE);
    scene.post(0, "/api/v1/queues/pause?model_name=held").await;
    scene.submit(0, "held", 5, 5).await;
    let former = scene.leader().await;
    assert!(scene.cluster.kill(former, Signal::SIGKILL));
    scene.cluster.wait_for_exit(former).await;
    let leader = scene.cluster.wait_for_leader(Some(former), Duration::from_secs(60)).await.unwrap();
    scene.submit(leader, "free", 1, 5).await;
    scene.reach("free", "completed", 5).await;
    assert_eq!(scene.count("held", "queued").await, 5);
    assert_eq!(scene.get(leader, "/api/v1/queues").await["paused_models"], json!(["held"]));

    scene.cluster.restart(former).await.unwrap();
    eventually("the replica that was away learns of it", async || {
        scene.cluster.is_ready(former).await
            && scene.get(former, "/api/v1/queues").await["paused_models"] == json!(["held"])
    })
    .await;
    scene.post(former, "/api/v1/queues/resume?model_name=held").await;
    scene.reach("held", "completed", 5).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_job_is_assigned_once_a_pause_is_answered() {
    let scene = Scene::start().await;
    scene.start_worker(&["m"], 16, Duration::from_millis(5));
    for _ in 0..5 {
        scene.submit(0, "m", 5, 300).await;
        scene.post(1, "/api/v1/queues/pause?model_name=m").await;
        // The database's own clock says when leases were granted, and when the pause was known.
        let late = "SELECT count(*) FROM executions WHERE created_at > $1";
        let paused: chrono::DateTime<chrono::Utc> =
            sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&scene.database).await.unwrap();
        scene.submit(2, "m", 5, 5).await;
        scene.reach("m", "running", 0).await;
        scene.reach("m", "assigned", 0).await;
        let late: i64 = sqlx::query_scalar(late).bind(paused).fetch_one(&scene.database).await.unwrap();
        assert_eq!(late, 0);
        assert!(scene.count("m", "queued").await >= 5);
        scene.post(0, "/api/v1/queues/resume").await;
    }
    scene.reach("m", "completed", 1_525).await;
}
