//! Jobs that wait for their time.

use cortex::domain::ambient::{Ambient, System};
use cortex::domain::ids::LeaseId;
use cortex::domain::job::{JobFilter, JobStatus};
use cortex::storage::{Claim, Origin, StorageError};
use serde_json::json;

use crate::{Setting, job};

#[tokio::test]
async fn jobs_whose_time_has_come_are_queued_once_and_those_that_somebody_holds_are_passed_over() {
    let setting = Setting::fresh().await;
    let fence = setting.lead(1).await;
    let [due, held, later] =
        [1, 2, 3].map(|priority| job(json!({"priority": priority, "run_at": "2999-01-01T00:00:00Z"})));
    crate::store(&setting, fence, &[&due, &held, &later]).await;
    sqlx::query("UPDATE jobs SET next_retry_at = now() - interval '1 second' WHERE priority < 3")
        .execute(&setting.pool)
        .await
        .unwrap();
    let mut somebody = setting.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM jobs WHERE priority = 2 FOR UPDATE").execute(&mut *somebody).await.unwrap();
    let promote = async || {
        let promoted = setting.database.promote_due(fence, 7, 10).await.unwrap();
        promoted.iter().map(|job| (job.id, job.priority)).collect::<Vec<_>>()
    };
    assert_eq!(promote().await, [(due.id, 1)]);
    somebody.rollback().await.unwrap();
    assert_eq!(promote().await, [(held.id, 2)]);
    assert_eq!(promote().await, []);
    let stats = setting.database.stats().await.unwrap();
    assert_eq!((stats.queued, stats.pending), (2, 1));
    let waiting = JobFilter { status: Some(JobStatus::Pending), ..JobFilter::default() };
    let waiting = setting.database.jobs(&waiting, 1, 10).await.unwrap();
    assert_eq!(waiting.jobs.iter().map(|job| job.id).collect::<Vec<_>>(), [later.id]);
    setting.lead(2).await;
    assert!(matches!(setting.database.promote_due(fence, 7, 10).await, Err(StorageError::Fenced)));
}

#[tokio::test]
async fn a_job_whose_time_has_come_can_be_assigned_and_one_that_has_to_wait_or_is_held_cannot() {
    let setting = Setting::fresh().await;
    let fence = setting.lead(1).await;
    let mut transaction = setting.database.begin(fence).await.unwrap();
    let worker_id = transaction.register_worker(&crate::worker()).await.unwrap().0.id;
    transaction.commit().await.unwrap();
    let run_at = |time: &str| job(json!({"run_at": time}));
    let [due, held, early] =
        ["2001-01-01T00:00:00Z", "2002-01-01T00:00:00Z", "2999-01-01T00:00:00Z"].map(run_at);
    let queued = job(json!({}));
    crate::store(&setting, fence, &[&held, &due, &early, &queued]).await;
    let found = setting.database.due(10).await.unwrap();
    assert_eq!(
        found.iter().map(|job| job.id).collect::<Vec<_>>(),
        [held.id, due.id],
        "as they were submitted"
    );
    let mut somebody = setting.pool.begin().await.unwrap();
    sqlx::query("SELECT FROM jobs WHERE id = $1 FOR UPDATE")
        .bind(held.id.0)
        .execute(&mut *somebody)
        .await
        .unwrap();
    let claim = |job_id| Claim { job_id, worker_id, lease: LeaseId(System.uuid()), delivery: None };
    let claims = [&due, &held, &early, &queued].map(|job| claim(job.id));
    let assign = async |origin| {
        let taken = setting.database.assign_jobs(fence, 7, origin, &claims, 30).await.unwrap();
        assert!(taken.iter().all(|taken| taken.wait_ms < 60_000), "counted from its submission: {taken:?}");
        taken.into_iter().map(|taken| taken.job_id).collect::<Vec<_>>()
    };
    assert_eq!(assign(Origin::Backoff).await, [due.id]);
    let stats = setting.database.stats().await.unwrap();
    assert_eq!((stats.pending, stats.queued, stats.assigned), (2, 1, 1));
    somebody.rollback().await.unwrap();
    assert_eq!(assign(Origin::Backoff).await, [held.id]);
    assert_eq!(assign(Origin::Queue).await, [queued.id]);
    let stats = setting.database.stats().await.unwrap();
    assert_eq!((stats.pending, stats.queued, stats.assigned), (1, 0, 3));
}
