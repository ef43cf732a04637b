//! The queue as a whole and the group of replicas, as far as asking for them does not stop the other tests'
//! jobs; what does is in `tests/control`.

use reqwest::Method;
use serde_json::{Value, json};

use crate::group::{Api, REPLICAS};
use crate::support::eventually;

#[tokio::test]
async fn a_paused_model_is_shown_by_every_replica_and_its_jobs_wait() {
    let api = Api::of("pause").await;
    let path = |what: &str| format!("/api/v1/queues/{what}?model_name={}", api.name);
    let holds = |answer: &Value| answer["paused_models"].as_array().unwrap().contains(&json!(api.name));
    assert!(holds(&api.send(1, Method::POST, &path("pause"), None).await.expect(200)));
    let job = api.submit(2, &json!({"priority": 3})).await;
    for replica in 0..REPLICAS {
        eventually("the replica shows the pause", async || {
            holds(&api.get(replica, "/api/v1/queues").await.expect(200))
        })
        .await;
        eventually("the replica shows the job", async || {
            let next = api.get(replica, "/api/v1/queues/peek?limit=100&priority=3").await.expect(200);
            next.as_array().unwrap().iter().any(|next| next["id"] == job.as_str())
        })
        .await;
        let depth = api.get(replica, "/api/v1/queues/depth?priority=3").await.expect(200);
        assert!(depth["depth"].as_u64() > Some(0), "{depth}");
    }
    assert!(!holds(&api.send(2, Method::POST, &path("resume"), None).await.expect(200)));
    api.leave().await;
}

#[tokio::test]
async fn a_queue_is_described_by_priority_the_most_urgent_first() {
    let api = Api::of("queue-view").await;
    for replica in 0..REPLICAS {
        let queue = api.get(replica, "/api/v1/queues").await.expect(200);
        let priorities = queue["priorities"].as_array().unwrap();
        let of = |member: &str| priorities.iter().filter_map(|of| of[member].as_u64()).collect::<Vec<_>>();
        assert_eq!(of("priority"), (1..=10).rev().collect::<Vec<_>>());
        assert_eq!(of("depth").iter().sum::<u64>(), queue["depth"]);
        assert_eq!(queue["paused"], false);
        assert!(queue["oldest_wait_ms"].is_null() || queue["oldest_wait_ms"].is_u64(), "{queue}");
        assert!(api.get(replica, "/api/v1/queues/metrics").await.expect(200).is_array());
    }
    api.leave().await;
}

#[tokio::test]
async fn bad_parameters_are_named_at_once_and_change_nothing() {
    let api = Api::of("queue-refusals").await;
    let long = format!("/api/v1/queues/pause?model_name={}", "x".repeat(256));
    for replica in 0..REPLICAS {
        for (method, path, fields) in [
            (Method::GET, "/api/v1/queues/depth?priority=11", &["priority"][..]),
            (Method::GET, "/api/v1/queues/peek?limit=0&priority=x", &["limit", "priority"]),
            (Method::GET, "/api/v1/queues/metrics?since=now&limit=1001", &["limit", "since"]),
            (Method::POST, "/api/v1/queues/pause?model_name=", &["model_name"]),
            (Method::POST, long.as_str(), &["model_name"]),
            (Method::POST, "/api/v1/queues/resume?model_name=%00", &["model_name"]),
            (Method::DELETE, "/api/v1/queues?priority=0", &["priority"]),
        ] {
            let reply = api.send(replica, method, path, None).await;
            assert_eq!((reply.status, reply.fields()), (422, fields.to_vec()), "{path}");
        }
    }
    api.leave().await;
}

#[tokio::test]
async fn a_model_of_the_longest_name_can_be_paused() {
    let api = Api::of("long-model").await;
    // 255 characters of four bytes each, percent-encoded.
    let name = "%F0%9F%A6%80".repeat(255);
    for what in ["pause", "resume"] {
        let path = format!("/api/v1/queues/{what}?model_name={name}");
        let paused = api.send(1, Method::POST, &path, None).await.expect(200);
        let models = paused["paused_models"].as_array().unwrap();
        assert_eq!(models.contains(&json!("🦀".repeat(255))), what == "pause");
    }
    api.leave().await;
}

#[tokio::test]
async fn members_are_checked_before_anything_changes() {
    let api = Api::of("members").await;
    let cluster = api.get(0, "/api/v1/cluster").await.expect(200);
    let known = &cluster["members"][0];
    let follower = api.follower().await;
    for replica in 0..REPLICAS {
        // A member that is there already, as it is, and elsewhere.
        let same = json!({"id": known["id"], "peer": known["peer"]});
        let answer = api.post(replica, "/api/v1/cluster/members", &same).await.expect(200);
        assert_eq!(answer["peer"], known["peer"]);
        let moved = json!({"id": known["id"], "peer": "elsewhere:1"});
        api.post(replica, "/api/v1/cluster/members", &moved).await.expect(409);
        let bad = api.post(replica, "/api/v1/cluster/members", &json!({"id": 0, "http": "x"})).await;
        assert_eq!((bad.status, bad.fields()), (422, vec!["http", "id", "peer"]));
        let remove = async |id: &str| {
            api.send(replica, Method::DELETE, &format!("/api/v1/cluster/members/{id}"), None).await
        };
        remove("99").await.expect(404);
        remove("four").await.expect(400);
        remove(&cluster["leader"].to_string()).await.expect(409);
        let transfer =
            async |to: Value| api.post(replica, "/api/v1/cluster/transfer", &json!({"to": to})).await;
        transfer(json!(99)).await.expect(404);
        assert_eq!(transfer(json!("one")).await.fields(), ["to"]);
        // No body needs no type, but a body does.
        let untyped = api.http.post(api.url(replica, "/api/v1/cluster/transfer")).body("{}").send().await;
        assert_eq!(untyped.unwrap().status(), 415);
    }
    let after = api.get(follower, "/api/v1/cluster").await.expect(200);
    assert_eq!(
        (&after["leader"], after["members"].as_array().unwrap().len()),
        (&cluster["leader"], REPLICAS)
    );
    api.leave().await;
}
