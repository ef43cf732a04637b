//! Keys of the configuration whose effect is seen from outside. One replica is enough: it leads.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::scene::Scene;
use crate::support::eventually;

/// A replica with these keys, each `dotted.key=value`.
async fn replica_with(keys: &[&str]) -> Scene {
    Scene::with(|builder| keys.iter().fold(builder.replicas(1), |builder, key| builder.set(*key))).await
}

/// How often a loop of the leader has run.
async fn runs(scene: &Scene, name: &str) -> u64 {
    let url = format!("http://{}/metrics", scene.cluster.http(0));
    let text = reqwest::get(url).await.unwrap().text().await.unwrap();
    let series = format!("cortex_loop_runs_total{{loop=\"{name}\",result=\"ok\"}} ");
    let count = text.lines().find_map(|line| line.strip_prefix(series.as_str()));
    count.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_says_nothing_of_its_retries_follow_from_the_configuration() {
    let scene = replica_with(&[
        "retry.strategy=linear",
        "retry.initial_delay=100",
        "retry.backoff_multiplier=3.0",
        "retry.max_delay=104",
        "retry.jitter=false",
    ])
    .await;
    let own = json!({"retry_policy": {"strategy": "fixed"}});
    for (metadata, delays) in [(json!({}), [100, 103, 104]), (own, [100; 3])] {
        let job = json!({"name": "job", "model_name": "m", "model_version": "1", "input_data": {"a": 1},
            "metadata": metadata});
        let (status, job) = scene.ask(0, Method::POST, "/api/v1/jobs", Some(job)).await;
        assert_eq!(status, 201, "{job}");
        let path = format!("/api/v1/jobs/{}", job["id"].as_str().unwrap());
        for delay in delays {
            let failed = Some(json!({"status": "failed"}));
            let (status, job) = scene.ask(0, Method::PATCH, &path, failed).await;
            assert_eq!(status, 200, "{job}");
            assert_eq!(job["retry_backoff_seconds"], delay, "{job}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_not_to_schedule_takes_jobs_and_gives_none_to_anybody() {
    let scene = replica_with(&["scheduler.enabled=false"]).await;
    let first = scene.submit(0, "m", 5, 3).await;
    scene.start_worker(&["m"], 4, Duration::ZERO);
    let explained = format!("/api/v1/jobs/{}/explain", first[0]);
    eventually("a worker could take the job", async || {
        scene.get(0, &explained).await["workers"]["able"] == 1
    })
    .await;
    // Nor do those get to a worker that come while it has slots to spare.
    scene.submit(0, "m", 5, 2).await;
    let before = runs(&scene, "record_vitals").await;
    eventually("other loops go on", async || runs(&scene, "record_vitals").await >= before + 2).await;
    assert_eq!(scene.count("m", "queued").await, 5);
    assert_eq!(runs(&scene, "schedule_jobs").await, 0);
    let explanation = scene.get(0, &explained).await;
    assert_eq!(explanation["reason"], "scheduling_is_off", "{explanation}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queue_is_looked_at_as_often_as_is_configured_though_nothing_wakes_the_scheduler() {
    let scene = replica_with(&["scheduler.poll_interval=0.01"]).await;
    // By default it would take longer than anybody waits here.
    eventually("there were many looks", async || runs(&scene, "schedule_jobs").await >= 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_of_the_scheduler_has_no_more_jobs_than_is_configured() {
    let scene = replica_with(&["scheduler.batch_size=2"]).await;
    scene.submit(0, "m", 5, 10).await;
    scene.start_worker(&["m"], 10, Duration::ZERO);
    scene.reach("m", "completed", 10).await;
    // The jobs of a round are assigned in one transaction, and so at one time.
    let rounds = "SELECT max(jobs) FROM (SELECT count(*) AS jobs FROM jobs GROUP BY assigned_at) AS rounds";
    let largest: i64 = sqlx::query_scalar(rounds).fetch_one(&scene.database).await.unwrap();
    assert!((1..=2).contains(&largest), "a round had {largest} jobs");
}

#[tokio::test(flavor = "multi_thread")]
async fn where_metrics_are_off_none_are_shown() {
    let scene = replica_with(&["observability.metrics_enabled=false"]).await;
    let (status, problem) = scene.ask(0, Method::GET, "/metrics", None).await;
    assert_eq!((status, &problem["type"]), (404, &json!("urn:cortex:problem:no-such-route")));
    assert_eq!(problem["detail"], "observability.metrics_enabled is false");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_is_json_and_has_a_level_of_its_own_where_that_is_configured() {
    let scene = Scene::with(|builder| {
        builder
            .replicas(1)
            .set("server.log_level=error")
            .set("observability.logging_level=info")
            .set("observability.log_format=json")
            // That of whoever runs the tests would decide.
            .env("RUST_LOG", "")
    })
    .await;
    let lines = || -> Vec<Value> {
        let log = std::fs::read_to_string(scene.cluster.log(0)).unwrap();
        // The last line may be half written.
        let whole = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    eventually("the log says that the replica is up", async || {
        lines().iter().any(|line| line["message"] == "The replica is up." && line["level"] == "INFO")
    })
    .await;
    assert!(lines().iter().all(|line| line["level"] != "DEBUG"), "it is no more talkative than that");
}
