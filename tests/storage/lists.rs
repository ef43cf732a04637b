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
async fn completed_jobs_are_told_apart_from_few_and_from_many_that_are_under_way() {
    let setting = Setting::fresh().await;
    plant(&setting, "completed", 30).await;
    plant(&setting, "failed", 10).await;
    let by_model = JobFilter { model_name: Some("planted".into()), ..of_state(JobStatus::Completed) };
    for under_way in [20, 5_100] {
        plant(&setting, "queued", under_way).await;
        for filter in [of_state(JobStatus::Completed), by_model.clone()] {
            for (page, shown) in [(1, 20), (2, 10), (3, 0)] {
                let found = setting.database.jobs(&filter, page, 20).await.unwrap();
                assert!(found.jobs.iter().all(|job| job.status == JobStatus::Completed));
                assert_eq!((found.jobs.len(), found.total), (shown, 30), "{under_way}, page {page}");
            }
        }
    }
}

#[tokio::test]
async fn a_total_reaches_a_hundred_beyond_the_page_where_tags_are_asked_for() {
    let setting = Setting::fresh().await;
    plant(&setting, "completed", 400).await;
    sqlx::query("UPDATE jobs SET tags = '{\"k\": \"v\"}'").execute(&setting.pool).await.unwrap();
    let tags = [("k".to_owned(), "v".to_owned())].into();
    let filter = JobFilter { tags, ..JobFilter::default() };
    for (page, shown, total) in [(1, 50, 150), (6, 50, 400), (8, 50, 400), (9, 0, 400), (4_000, 0, 400)] {
        let found = setting.database.jobs(&filter, page, 50).await.unwrap();
        assert_eq!((found.jobs.len(), found.total), (shown, total), "page {page}");
    }
}

#[tokio::test]
async fn the_end_of_a_job_that_is_completed_is_written_in_place() {
    let setting = Setting::fresh().await;
    plant(&setting, "running", 20).await;
    plant(&setting, "assigned", 1).await;
    let mut transaction = setting.pool.begin().await.unwrap();
    let mut in_place = async |update: &'static str| -> i64 {
        sqlx::query(update).execute(&mut *transaction).await.unwrap();
        let count = "SELECT n_tup_hot_upd FROM pg_stat_xact_user_tables WHERE relname = 'jobs'";
        sqlx::query_scalar(count).fetch_one(&mut *transaction).await.unwrap()
    };
    let runs = "UPDATE jobs SET status = 'running', started_at = now() WHERE status = 'assigned'";
    assert_eq!(in_place(runs).await, 1);
    // Four, for which a page has room, as it has when jobs end one after the other.
    let completed =
        "UPDATE jobs SET status = 'completed', completed_at = now(), output_data = '{}', lease_id = NULL,
        lease_expires_at = NULL WHERE id IN (SELECT id FROM jobs WHERE status = 'running' LIMIT 4)";
    assert_eq!(in_place(completed).await, 5);
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
