//! Workers that fail, jobs that take workers down, and what is counted of both.

use cortex_client::proto::PollJobResponse;
use serde_json::{Value, json};

use crate::group::{Api, UNHEALTHY_AFTER};
use crate::hand::Hand;
use crate::support::eventually;

async fn worker(api: &Api, hand: &Hand) -> Value {
    api.get(0, &format!("/api/v1/workers/{}", hand.id)).await.expect(200)
}

/// Waits until the worker's columns have these values.
async fn shows(api: &Api, hand: &Hand, wanted: &Value) {
    eventually(&format!("the worker shows {wanted}"), async || {
        let shown = worker(api, hand).await;
        wanted.as_object().unwrap().iter().all(|(column, value)| shown[column] == *value)
    })
    .await;
}

/// Fails one job for good.
async fn fail_once(api: &Api, hand: &Hand) {
    api.submit(0, &json!({"max_retries": 0})).await;
    let job = hand.job().await;
    assert!(hand.report(&hand.failure(&job, "broken", "")).await.acknowledged);
}

#[tokio::test]
async fn a_worker_that_fails_too_often_in_a_row_is_unhealthy_until_a_trial_ends_well() {
    let api = Api::of("failing-in-a-row").await;
    let mut hand = Hand::new(&api, 1, 3).await;
    for failures in 1..UNHEALTHY_AFTER {
        fail_once(&api, &hand).await;
        if failures == 1 {
            shows(&api, &hand, &json!({"status": "idle", "consecutive_failures": 1})).await;
        }
    }
    fail_once(&api, &hand).await;
    shows(&api, &hand, &json!({"status": "unhealthy", "consecutive_failures": UNHEALTHY_AFTER})).await;

    // After its rest it gets one job of two, and rests again when that fails.
    let (first, second) = (api.submit(0, &json!({"max_retries": 0})).await, api.submit(0, &json!({})).await);
    let trial = hand.job().await;
    assert_eq!(trial.job_id, first);
    assert!(hand.poll(0).await.is_none());
    assert!(hand.report(&hand.failure(&trial, "broken", "")).await.acknowledged);
    let failed_again: DateTime = ended_at(&api, &first).await;
    let trial = hand.job().await;
    assert_eq!(trial.job_id, second);
    assert!(granted_at(&api, &second).await - failed_again >= chrono::TimeDelta::seconds(1), "it has rested");
    assert!(hand.report(&hand.success(&trial, &json!({}))).await.acknowledged);
    shows(&api, &hand, &json!({"status": "idle", "consecutive_failures": 0})).await;
    for _ in 0..3 {
        api.submit(2, &json!({})).await;
    }
    for _ in 0..3 {
        hand.job().await;
    }

    // Registering anew is a fresh start, too.
    hand.register().await;
    for _ in 0..UNHEALTHY_AFTER {
        let job = hand.job().await;
        assert!(hand.report(&hand.failure(&job, "broken", "")).await.acknowledged);
        api.submit(0, &json!({"max_retries": 0})).await;
    }
    shows(&api, &hand, &json!({"status": "unhealthy"})).await;
    hand.register().await;
    shows(&api, &hand, &json!({"consecutive_failures": 0})).await;
    hand.job().await;
    api.leave().await;
}

type DateTime = chrono::DateTime<chrono::Utc>;

async fn ended_at(api: &Api, job: &str) -> DateTime {
    serde_json::from_value(api.rows(job).await["executions"][0]["completed_at"].clone()).unwrap()
}

async fn granted_at(api: &Api, job: &str) -> DateTime {
    serde_json::from_value(api.rows(job).await["executions"][0]["created_at"].clone()).unwrap()
}

/// The job runs at the worker, which then goes down.
async fn take_down(api: &Api, hand: &mut Hand, id: &str) -> PollJobResponse {
    let job = hand.job().await;
    assert_eq!(job.job_id, id);
    assert!(hand.status(&job, "running").await.acknowledged);
    hand.registration.capabilities.insert("models".to_owned(), "[]".to_owned());
    hand.register().await;
    let rows = api.rows(id).await;
    assert!(rows["job"]["lease_id"].is_null(), "{rows}");
    job
}

#[tokio::test]
async fn a_job_that_took_three_different_workers_down_fails_whatever_its_policy_says() {
    let api = Api::of("poison").await;
    let fields = json!({"max_retries": 10, "metadata": {"retry_policy": {"initial_delay_seconds": 3600, "max_delay_seconds": 3600}}});
    let id = api.submit(0, &fields).await;
    for number in 1..=3 {
        let mut hand = Hand::new(&api, number % 3, 1).await;
        take_down(&api, &mut hand, &id).await;
        let rows = api.rows(&id).await;
        let last = rows["executions"].as_array().unwrap().last().unwrap();
        assert_eq!((&last["status"], &last["worker_id"]), (&json!("failed"), &json!(hand.id)));
        if number < 3 {
            assert_eq!(
                (&rows["job"]["status"], &last["error_code"]),
                (&json!("pending"), &json!("worker_lost"))
            );
            api.retry(number, &id).await.expect(200);
        } else {
            assert_eq!((&rows["job"]["status"], &last["error_code"]), (&json!("failed"), &json!("poison")));
            assert_eq!(rows["job"]["retry_count"], 2);
            let message = "3 different workers were lost while they ran the job; it is not tried again.";
            assert_eq!(
                (&rows["job"]["error_message"], &last["error_message"]),
                (&json!(message), &json!(message))
            );
        }
        shows(
            &api,
            &hand,
            &json!({"total_jobs_failed": 1, "consecutive_failures": 0, "current_job_count": 0}),
        )
        .await;
    }
    // Whoever tries it again all the same starts from nothing.
    api.retry(0, &id).await.expect(200);
    let mut hand = Hand::new(&api, 0, 1).await;
    take_down(&api, &mut hand, &id).await;
    assert_eq!(api.rows(&id).await["job"]["status"], "pending");
    api.leave().await;
}

#[tokio::test]
async fn a_job_whose_worker_was_lost_is_tried_again_by_another_one() {
    let api = Api::of("elsewhere").await;
    let fields =
        json!({"max_retries": 10, "metadata": {"retry_policy": {"strategy": "fixed", "jitter": false}}});
    let id = api.submit(0, &fields).await;
    let mut roomy = Hand::new(&api, 0, 5).await;
    let run = async |hand: &Hand| {
        let job = hand.job().await;
        assert_eq!(job.job_id, id);
        assert!(hand.status(&job, "running").await.acknowledged);
    };
    run(&roomy).await;
    roomy.register().await;
    // Better the same one than none.
    run(&roomy).await;
    let small = Hand::new(&api, 1, 1).await;
    roomy.register().await;
    let waits = tokio::spawn({
        let roomy = roomy.clone();
        async move { roomy.poll(30_000).await }
    });
    run(&small).await;
    waits.abort();
    api.leave().await;
}

#[tokio::test]
async fn a_workers_counters_are_right_after_successes_failures_cancellations_and_losses() {
    let api = Api::of("counters").await;
    let mut hand = Hand::new(&api, 2, 7).await;
    let mut jobs = Vec::new();
    for _ in 0..7 {
        api.submit(0, &json!({"max_retries": 0})).await;
        let job = hand.job().await;
        assert!(hand.status(&job, "running").await.acknowledged);
        jobs.push(job);
    }
    shows(&api, &hand, &json!({"current_job_count": 7, "status": "busy", "average_execution_time_ms": null}))
        .await;
    for (job, duration_ms) in [(&jobs[0], 10), (&jobs[1], 11), (&jobs[2], 12), (&jobs[3], 13)] {
        let mut report = hand.success(job, &json!({}));
        report.duration_ms = duration_ms;
        assert!(hand.report(&report).await.acknowledged);
    }
    assert!(hand.report(&hand.failure(&jobs[4], "broken", "")).await.acknowledged);
    api.cancel(1, &jobs[5].job_id).await.expect(204);
    shows(
        &api,
        &hand,
        &json!({"current_job_count": 1, "status": "idle", "total_jobs_completed": 4, "total_jobs_failed": 1,
            "average_execution_time_ms": 11, "consecutive_failures": 1}),
    )
    .await;
    hand.register().await;
    api.reaches(&jobs[6].job_id, "failed").await;
    shows(
        &api,
        &hand,
        &json!({"current_job_count": 0, "status": "idle", "total_jobs_completed": 4, "total_jobs_failed": 2,
            "average_execution_time_ms": 11, "consecutive_failures": 0}),
    )
    .await;
    api.leave().await;
}
