//! The series of the queue's metrics.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::scene::Scene;
use crate::support::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_recorded_at_the_interval_with_every_column_and_served_by_every_replica() {
    let scene = Scene::with(|builder| builder.set("queue.metrics_interval=1")).await;
    scene.start_worker(&["m"], 2, Duration::from_millis(50));
    scene.submit(0, "nobody", 3, 4).await;
    scene.submit(0, "m", 5, 60).await;
    let rows = async |replica: usize, query: &str| -> Vec<Value> {
        scene.get(replica, &format!("/api/v1/queues/metrics{query}")).await.as_array().unwrap().clone()
    };
    eventually("a row tells of completed jobs", async || {
        let told = |row: &Value| row["jobs_per_minute"].as_f64() > Some(0.0);
        rows(1, "").await.iter().any(told)
    })
    .await;
    scene.reach("m", "completed", 60).await;
    eventually("the last row shows what is left", async || {
        let rows = rows(2, "?limit=1").await;
        rows[0]["queue_depth"] == 4 && rows[0]["priority_3_count"] == 4 && rows[0]["idle_workers"] == 1
    })
    .await;
    let all = rows(0, "?limit=1000").await;
    let busy = all.iter().find(|row| row["jobs_per_minute"].as_f64() > Some(0.0)).unwrap();
    assert!(busy["average_execution_time_ms"].as_i64() >= Some(50), "{busy}");
    assert!(busy["average_wait_time_ms"].is_i64() && busy["total_workers"] == 1, "{busy}");
    assert!(all[0]["jobs_per_minute"].is_null(), "nothing was before the first row: {}", all[0]);
    assert!(all.iter().all(|row| row["running_jobs"].is_i64() && row["pending_jobs"] == 0), "{all:?}");
    let times: Vec<&str> = all.iter().map(|row| row["recorded_at"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "{times:?}");
    // From a row on, that row is the first, and the next one follows when its time has come.
    let from = format!("?since={}&limit=2", times[1]);
    eventually("another row has been recorded", async || rows(1, &from).await.len() == 2).await;
    assert_eq!(rows(1, &from).await[0], all[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_rows_go_and_new_ones_stay() {
    let scene = Scene::with(|builder| {
        builder.replicas(1).set("queue.metrics_interval=0").set("retention.queue_metrics=3600")
    })
    .await;
    // As if they had been recorded by a leader of before; pruning begins with the next one.
    sqlx::query(
        "INSERT INTO queue_metrics (queue_depth, pending_jobs, running_jobs, total_workers, idle_workers,
             busy_workers, recorded_at)
         SELECT n, 0, 0, 0, 0, 0, now() - interval '1 minute' * n FROM generate_series(1, 2600) n",
    )
    .execute(&scene.database)
    .await
    .unwrap();
    let mut scene = scene;
    scene.cluster.kill(0, cortex::dev::Signal::SIGKILL);
    scene.cluster.wait_for_exit(0).await;
    scene.cluster.restart(0).await.unwrap();
    eventually("the rows of the last hour are left", async || {
        let left: i64 = sqlx::query_scalar("SELECT count(*) FROM queue_metrics")
            .fetch_one(&scene.database)
            .await
            .unwrap();
        assert!(left >= 59);
        left <= 60
    })
    .await;
    eventually("the replica serves", async || scene.cluster.is_ready(0).await).await;
    let rows = scene.get(0, "/api/v1/queues/metrics?limit=1").await;
    assert_eq!(rows[0]["queue_depth"], json!(1), "the newest row, which no leader has added to");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_gauges_of_workers_and_of_the_queue_are_the_leaders_alone() {
    let scene = Scene::start().await;
    for name in ["stays", "goes"] {
        let worker = json!({"name": name, "hostname": name, "ip_address": "10.0.2.10", "port": 8000,
            "capabilities": {"models": ["m"]}, "max_concurrent_jobs": 1,
            "heartbeat_interval_seconds": 300});
        let (status, worker) = scene.ask(0, Method::POST, "/api/v1/workers", Some(worker)).await;
        assert_eq!(status, 201, "{worker}");
        if name == "goes" {
            let path = format!("/api/v1/workers/{}", worker["id"].as_str().unwrap());
            assert_eq!(scene.ask(1, Method::DELETE, &path, None).await.0, 204);
        }
    }
    scene.submit(0, "nobody", 3, 4).await;
    let shown = async |replica: usize| {
        let url = format!("http://{}/metrics", scene.cluster.http(replica));
        let text = reqwest::get(url).await.unwrap().text().await.unwrap();
        ["workers{status=\"idle\"}", "workers{status=\"offline\"}", "queue_depth{priority=\"3\"}"].map(
            |series| {
                let line = text.lines().find_map(|line| line.strip_prefix(&format!("cortex_{series} ")));
                line.unwrap().parse::<i64>().unwrap()
            },
        )
    };
    for _ in 0..2 {
        let mut leader = 0;
        eventually("the leader shows them, and nobody else", async || {
            leader = scene.leader().await;
            let mut all = Vec::new();
            for replica in 0..3 {
                let expected = if replica == leader { [1, 1, 4] } else { [0; 3] };
                all.push(shown(replica).await == expected);
            }
            all == [true; 3]
        })
        .await;
        let transfer = scene.ask(leader, Method::POST, "/api/v1/cluster/transfer", None).await;
        assert_eq!(transfer.0, 200, "to name nobody takes no body: {}", transfer.1);
        scene.cluster.wait_for_leader(Some(leader), Duration::from_secs(60)).await.unwrap();
    }
}
