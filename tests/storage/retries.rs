//! Jobs that wait for their time.

use cortex::domain::job::{JobFilter, JobStatus};
use cortex::storage::StorageError;
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
