//! Emptying the queue, and looking into it.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};

use crate::scene::Scene;
use crate::support::eventually;

#[tokio::test(flavor = "multi_thread")]
async fn clearing_cancels_what_waits_in_the_queue_of_one_priority_or_of_all_and_nothing_else() {
    let scene = Scene::start().await;
    scene.start_worker(&["busy"], 1, Duration::from_secs(600));
    let held = scene.submit(0, "busy", 5, 1).await;
    scene.reach("busy", "running", 1).await;
    for priority in [1, 5, 10] {
        scene.submit(0, "m", priority, 700).await;
    }
    // One that waits for its backoff.
    let policy = json!({"strategy": "fixed", "initial_delay_seconds": 3_600, "max_delay_seconds": 3_600});
    let later = json!({"name": "later", "model_name": "later", "model_version": "1", "input_data": {"a": 1},
        "metadata": {"retry_policy": policy}});
    let (_, later) = scene.ask(0, Method::POST, "/api/v1/jobs", Some(later)).await;
    let later = format!("/api/v1/jobs/{}", later["id"].as_str().unwrap());
    for status in ["running", "failed"] {
        let (status, answer) = scene.ask(0, Method::PATCH, &later, Some(json!({"status": status}))).await;
        assert_eq!(status, 200, "{answer}");
    }

    let follower = scene.follower().await;
    let (status, cleared) = scene.ask(follower, Method::DELETE, "/api/v1/queues?priority=10", None).await;
    assert_eq!((status, cleared), (200, json!({"cancelled": 700})));
    assert_eq!((scene.count("m", "cancelled").await, scene.count("m", "queued").await), (700, 1_400));
    // More than a page.
    assert_eq!(scene.cortex("queues clear --output json").await, "{\n  \"cancelled\": 1400\n}\n");
    assert_eq!(scene.count("m", "cancelled").await, 2_100);
    assert_eq!((scene.count("busy", "running").await, scene.count("later", "pending").await), (1, 1));
    eventually("the ready queue is empty", async || {
        scene.get(0, "/api/v1/queues/depth").await == json!({"depth": 0})
    })
    .await;
    let (_, again) = scene.ask(0, Method::DELETE, "/api/v1/queues", None).await;
    assert_eq!(again, json!({"cancelled": 0}));
    assert_eq!(scene.get(1, &format!("/api/v1/jobs/{}", held[0])).await["status"], "running");
}

#[tokio::test(flavor = "multi_thread")]
async fn peek_and_depth_show_the_order_of_dispatch_by_priority() {
    let scene = Scene::start().await;
    let low = scene.submit(0, "a", 2, 3).await;
    let high = scene.submit(1, "b", 9, 2).await;
    let also_low = scene.submit(2, "c", 2, 1).await;
    let in_order: Vec<_> = [&high[..], &low, &also_low].concat();
    eventually("all are in the ready queue", async || {
        scene.get(0, "/api/v1/queues/depth").await == json!({"depth": 6})
    })
    .await;
    let peek = async |query: &str| -> Vec<String> {
        let jobs = scene.get(2, &format!("/api/v1/queues/peek{query}")).await;
        let id = |job: &Value| job["id"].as_str().unwrap().to_owned();
        jobs.as_array().unwrap().iter().map(id).collect()
    };
    assert_eq!(peek("").await, in_order);
    assert_eq!(peek("?limit=3").await, in_order[..3]);
    assert_eq!(peek("?priority=2").await, in_order[2..]);
    assert_eq!(peek("?priority=3").await, Vec::<String>::new());
    assert_eq!(scene.get(1, "/api/v1/queues/depth?priority=9").await, json!({"depth": 2}));
    assert_eq!(scene.cortex("queues depth --priority 2").await, "4\n");
    let table = scene.cortex("queues depth").await;
    assert!(table.contains("PRIORITY") && table.ends_with("nothing is paused\n"), "{table}");
    let shown: Value = serde_json::from_str(&scene.cortex("queues depth --output json").await).unwrap();
    assert_eq!((&shown["depth"], &shown["paused"]), (&json!(6), &json!(false)));
    assert_eq!(scene.cortex("queues peek --limit 2").await.lines().count(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_was_emptied_is_not_taken_for_an_empty_queue() {
    let scene = Scene::with(|builder| builder.replicas(1)).await;
    scene.submit(0, "m", 5, 50).await;
    let depth = async || scene.ask(0, Method::GET, "/api/v1/queues/depth", None).await;
    eventually("all are in the ready queue", async || depth().await == (200, json!({"depth": 50}))).await;
    let client = redis::Client::open(scene.stores.redis_url.as_str()).unwrap();
    let mut redis = client.get_multiplexed_async_connection().await.unwrap();
    let ours = format!("{}*", scene.stores.queue_prefix);
    let keys: Vec<String> = redis::cmd("KEYS").arg(ours).query_async(&mut redis).await.unwrap();
    let _: u64 = redis::cmd("DEL").arg(keys).query_async(&mut redis).await.unwrap();
    eventually("the ready queue is whole again", async || {
        let (status, answer) = depth().await;
        assert!(status == 503 || (status, &answer) == (200, &json!({"depth": 50})), "{status}: {answer}");
        status == 200
    })
    .await;
}
