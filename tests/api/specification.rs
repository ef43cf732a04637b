//! The specification's own tests (`tests/integration/test_job_flow.py` there), under their names: step by step what they
//! do, through each of the three replicas, whoever leads. What they leave unsaid is looked at as well.

use serde_json::{Value, json};

use crate::group::{Api, REPLICAS};

/// The specification's `sample_job_create`, for a model of this test's own.
fn sample_job_create(api: &Api) -> Value {
    api.draft(&json!({"name": "test-job", "priority": 5, "max_retries": 3, "timeout_seconds": 3600}))
}

#[tokio::test]
async fn test_complete_job_flow_through_each_replica() {
    let api = Api::of("complete-flow").await;
    let mut leaders = 0;
    for replica in 0..REPLICAS {
        leaders += usize::from(api.leads(replica).await);
        // 1. Submit job.
        let job = api.post(replica, "/api/v1/jobs", &sample_job_create(&api)).await.expect(201);
        let id = job["id"].as_str().unwrap();
        assert_eq!(job["status"], "pending");
        // 2. Check job was queued.
        let seen = api.job(replica, id).await;
        assert!(["pending", "queued"].contains(&seen["status"].as_str().unwrap()), "{seen}");
        // 4. Update job to running.
        let job = api.patch(replica, id, &json!({"status": "running"})).await.expect(200);
        assert_eq!(job["status"], "running");
        // 5. Complete job.
        let done = json!({"status": "completed", "output_data": {"result": "success"},
            "execution_duration_ms": 1000});
        let job = api.patch(replica, id, &done).await.expect(200);
        assert_eq!(job["status"], "completed");
        assert_eq!(job["output_data"]["result"], "success");
        assert_eq!(job["execution_duration_ms"], 1000);
        // The same at every replica, and in PostgreSQL.
        for other in 0..REPLICAS {
            assert_eq!(api.job(other, id).await, job);
        }
        assert_eq!(api.rows(id).await["job"]["status"], "completed");
    }
    assert_eq!(leaders, 1, "the flow went through the leader once, and through two followers");
    api.leave().await;
}

#[tokio::test]
async fn test_job_retry_on_failure_through_each_replica() {
    let api = Api::of("retry-on-failure").await;
    for replica in 0..REPLICAS {
        // Submit job.
        let job = api.post(replica, "/api/v1/jobs", &sample_job_create(&api)).await.expect(201);
        let id = job["id"].as_str().unwrap();
        // Mark as failed.
        let failed = json!({"status": "failed", "error_message": "Worker crashed"});
        let job = api.patch(replica, id, &failed).await.expect(200);
        assert_eq!(job["error_message"], "Worker crashed");
        // Retry job.
        let job = api.retry(replica, id).await.expect(200);
        assert_eq!((&job["retry_count"], &job["status"]), (&json!(1), &json!("pending")));
        for other in 0..REPLICAS {
            assert_eq!(api.job(other, id).await["retry_count"], 1);
        }
    }
    api.leave().await;
}
