//! `GET /jobs/{id}/explain`.

use serde_json::{Value, json};

use crate::group::{Api, REPLICAS};
use crate::hand::Hand;
use crate::support::eventually;

async fn explain(api: &Api, replica: usize, job: &str) -> Value {
    api.get(replica, &format!("/api/v1/jobs/{job}/explain")).await.expect(200)
}

/// What is said of one worker; the shared group has others.
fn obstacle(explanation: &Value, worker: &str) -> Value {
    let list = explanation["workers"]["list"].as_array().unwrap();
    let verdict = list.iter().find(|verdict| verdict["worker_id"] == worker);
    verdict.map_or(json!("not listed"), |verdict| verdict["obstacle"].clone())
}

#[tokio::test]
async fn every_replica_says_why_no_worker_takes_a_job() {
    let api = Api::of("why-no-worker").await;
    let models = api.name.clone();
    let hand = Hand::with(&api, 0, 1, &[("models", &models), ("memory_gb", "1")]).await;
    let gpu = api.submit(0, &json!({"metadata": {"requires_gpu": true}})).await;
    let memory = api.submit(0, &json!({"metadata": {"required_memory_gb": 2}})).await;
    let model = api.submit(0, &json!({"model_name": format!("{models}-other")})).await;
    for replica in 0..REPLICAS {
        for (job, reason) in [(&gpu, "gpu"), (&memory, "memory"), (&model, "model")] {
            api.reaches(job, "queued").await;
            let explanation = explain(&api, replica, job).await;
            assert_eq!((&explanation["status"], &explanation["attempts"]), (&json!("queued"), &json!([])));
            assert_eq!(obstacle(&explanation, &hand.id), reason, "{explanation}");
            assert!(explanation["workers"]["obstacles"][reason].as_u64() >= Some(1), "{explanation}");
            assert!(explanation["queue"]["ahead"].is_u64() && explanation["due_at"].is_null());
        }
    }
    api.cancel(0, &model).await.expect(204);
    api.leave().await;
}

#[tokio::test]
async fn a_job_is_followed_from_a_full_worker_to_its_end() {
    let api = Api::of("why-full").await;
    let hand = Hand::new(&api, 1, 1).await;
    let first = api.submit(0, &json!({})).await;
    let given = hand.job().await;
    assert_eq!(given.job_id, first);
    assert_eq!(explain(&api, 2, &first).await["reason"], "is_assigned");
    hand.status(&given, "running").await;
    let running = explain(&api, 0, &first).await;
    assert_eq!((&running["reason"], &running["workers"]), (&json!("runs"), &json!(null)));
    assert!(running["detail"].as_str().unwrap().contains(&hand.id), "{running}");

    // After its failure it waits for longer than anybody looks.
    let policy = json!({"strategy": "fixed", "initial_delay_seconds": 3_600, "max_delay_seconds": 3_600});
    let fields = json!({"priority": 1, "max_retries": 1, "metadata": {"retry_policy": policy}});
    let waits = api.submit(1, &fields).await;
    let behind = api.submit(1, &json!({"priority": 1})).await;
    for replica in 0..REPLICAS {
        let explanation = explain(&api, replica, &waits).await;
        assert_eq!(obstacle(&explanation, &hand.id), "full", "{explanation}");
        // Jobs of other tests come and go meanwhile.
        let ahead = async |job: &str| explain(&api, replica, job).await["queue"]["ahead"].as_i64().unwrap();
        eventually("more go before the second", async || ahead(&behind).await > ahead(&waits).await).await;
    }
    api.cancel(0, &behind).await.expect(204);

    hand.report(&hand.success(&given, &json!({}))).await;
    assert_eq!(explain(&api, 1, &first).await["reason"], "has_ended");
    let given = hand.job().await;
    assert_eq!(given.job_id, waits);
    assert!(hand.report(&hand.failure(&given, "no luck", "luck")).await.acknowledged);
    let retried = explain(&api, 2, &waits).await;
    assert_eq!((&retried["reason"], &retried["retry_count"]), (&json!("waits_for_its_time"), &json!(1)));
    assert!(retried["due_at"].is_string());
    let attempt = &retried["attempts"][0];
    assert_eq!((&attempt["attempt_number"], &attempt["error_code"]), (&json!(1), &json!("luck")));
    assert_eq!((&attempt["status"], &attempt["worker_id"]), (&json!("failed"), &json!(hand.id)));
    api.leave().await;
}

#[tokio::test]
async fn a_worker_that_is_not_well_and_one_that_does_not_ask_are_named() {
    let api = Api::of("why-sick").await;
    let (sick, silent) = (Hand::new(&api, 0, 1).await, Hand::new(&api, 1, 1).await);
    let drained = Hand::new(&api, 2, 1).await;
    api.post(0, &format!("/api/v1/workers/{}/drain", drained.id), &json!({})).await.expect(200);
    let request = cortex_client::proto::HeartbeatRequest {
        worker_id: sick.id.clone(),
        status: "unhealthy".to_owned(),
        ..Default::default()
    };
    sick.client.clone().heartbeat(request).await.unwrap();
    assert!(silent.poll(500).await.is_none());
    let job = api.submit(2, &json!({})).await;
    eventually("each is named", async || {
        let explanation = explain(&api, 0, &job).await;
        explanation["reason"] == "workers_are_taken"
            && obstacle(&explanation, &sick.id) == "unhealthy"
            && obstacle(&explanation, &silent.id) == "not_polling"
            && obstacle(&explanation, &drained.id) == "draining"
    })
    .await;
    let driven = api.submit(0, &json!({})).await;
    api.patch(0, &driven, &json!({"status": "running"})).await.expect(200);
    assert_eq!(explain(&api, 1, &driven).await["reason"], "is_driven_from_outside");
    api.get(0, "/api/v1/jobs/0190a5c0-0000-7000-8000-000000000001/explain").await.expect(404);
    api.get(0, "/api/v1/jobs/x/explain").await.expect(400);
    api.leave().await;
}
