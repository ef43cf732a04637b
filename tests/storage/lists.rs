//! Lists of jobs: what is counted, and what is found of each state.

use cortex::domain::job::{JobFilter, JobStatus};
use serde_json::json;

use crate::{Setting, job};

/// A row in a state, without a way there.
async fn plant(setting: &Setting, status: &str, count: i32) {
    sqlx::query(
        "INSERT INTO jobs (id, name, model_name, model_version, status, input_data, next_retry_at, queued_at,
             assigned_worker_id, lease_id, lease_expires_at, completed_at, submitted_at)
         SELECT gen_random_uuid(), $1, 'planted', '1', $1, '{\"a\": 1}',
             CASE WHEN $1 = 'pending' THEN now() END, now(),
             CASE WHEN $1 IN ('assigned', 'running') THEN gen_random_uuid() END,
             CASE WHEN $1 IN ('assigned', 'running') THEN gen_random_uuid() END,
             CASE WHEN $1 IN ('assigned', 'running') THEN now() END,
             CASE WHEN $1 IN ('completed', 'failed', 'cancelled', 'timeout') THEN now() END,
             now() - n * interval '1 second'
         FROM generate_series(1, $2) n",
    )
    .bind(status)
    .bind(count)
    .execute(&setting.pool)
    .await
    .unwrap();
    let counted = format!("UPDATE job_counters SET {status} = {status} + {count} WHERE slot = 9");
    sqlx::query(sqlx::AssertSqlSafe(counted)).execute(&setting.pool).await.unwrap();
}

fn of_state(status: JobStatus) -> JobFilter {
    JobFilter { status: Some(status), ..JobFilter::default() }
}

#[tokio::test]
async fn jobs_of_every_state_are_found_and_counted() {
    let setting = Setting::fresh().await;
    for (count, status) in (1..).zip(JobStatus::ALL) {
        plant(&setting, status.as_str(), count).await;
    }
    sqlx::query("INSERT INTO leases (job_id, id) SELECT id, lease_id FROM jobs WHERE lease_id IS NOT NULL")
        .execute(&setting.pool)
        .await
        .unwrap();
    // One more that runs, driven from outside.
    sqlx::query(
        "UPDATE jobs SET status = 'running', lease_expires_at = now(), next_retry_at = NULL WHERE status = 'pending'",
    )
    .execute(&setting.pool)
    .await
    .unwrap();
    sqlx::query("UPDATE job_counters SET pending = 0, running = running + 1 WHERE slot = 9")
        .execute(&setting.pool)
        .await
        .unwrap();
    let running = JobStatus::ALL.iter().position(|status| *status == JobStatus::Running).unwrap();
    for (place, status) in JobStatus::ALL.into_iter().enumerate() {
        let count = if status == JobStatus::Pending { 0 } else { place + 1 + usize::from(place == running) };
        for filter in [of_state(status), JobFilter { model_name: Some("planted".into()), ..of_state(status) }]
        {
            let found = setting.database.jobs(&filter, 1, 100).await.unwrap();
            assert_eq!((found.jobs.len(), found.total), (count, i64::try_from(count).unwrap()), "{filter:?}");
            assert!(found.jobs.iter().all(|job| job.status == status));
            assert!(found.jobs.is_sorted_by_key(|job| std::cmp::Reverse(job.submitted_at)));
        }
    }
}

#[tokio::test]
async fn a_total_is_exact_by_state_and_reaches_ten_thousand_beyond_the_page_otherwise() {
    let setting = Setting::fresh().await;
    plant(&setting, "completed", 12_500).await;
    let total = async |filter: &JobFilter, page| {
        let list = setting.database.jobs(filter, page, 100).await.unwrap();
        (list.jobs.len(), list.total, list.pages)
    };
    let by_model = JobFilter { model_name: Some("planted".into()), ..JobFilter::default() };
    for exact in [JobFilter::default(), of_state(JobStatus::Completed)] {
        assert_eq!(total(&exact, 1).await, (100, 12_500, 125));
        assert_eq!(total(&exact, 125).await, (100, 12_500, 125));
        assert_eq!(total(&exact, 126).await, (0, 12_500, 125));
    }
    assert_eq!(total(&by_model, 1).await, (100, 10_100, 101));
    assert_eq!(total(&by_model, 11).await, (100, 11_100, 111));
    assert_eq!(total(&by_model, 125).await, (100, 12_500, 125));
    assert_eq!(total(&by_model, 126).await, (0, 12_500, 125));
    assert_eq!(total(&by_model, 1_000_000_000).await.0, 0);
}

#[tokio::test]
async fn how_many_go_before_a_job_is_counted_in_the_order_of_dispatch() {
    let setting = Setting::fresh().await;
    let fence = setting.lead(1).await;
    let [urgent, first, second] = [json!({"priority": 9}), json!({}), json!({})].map(job);
    crate::store(&setting, fence, &[&first, &second, &urgent]).await;
    for (job, ahead) in [(&urgent, 0), (&first, 1), (&second, 2)] {
        let job = setting.database.job(job.id).await.unwrap().unwrap();
        assert_eq!(setting.database.ahead_of(&job, 10).await.unwrap(), ahead);
        assert_eq!(setting.database.ahead_of(&job, 1).await.unwrap(), ahead.min(1), "no more are counted");
    }
}
