//! Submissions that are sent again.

use std::collections::BTreeSet;

use super::*;

#[tokio::test]
async fn a_submission_that_is_sent_twice_is_stored_once() {
    let setting = Setting::fresh().await;
    let fence = setting.lead(1).await;
    let new_job = job(json!({}));
    let first = setting.database.insert_jobs(fence, 0, &queued(&[&new_job]), 30).await.unwrap();
    let other = job(json!({}));
    // Both copies may meet in one batch, and so may one with a job that was stored long ago.
    let again = queued(&[&other, &new_job, &other]);
    let again = setting.database.insert_jobs(fence, 0, &again, 30).await.unwrap();
    assert_eq!(again.iter().map(|job| job.new).collect::<Vec<_>>(), [true, false, false]);
    assert_eq!(again[1].submitted_at, first[0].submitted_at);
    assert_eq!(again[2].submitted_at, again[0].submitted_at);
    let stats = setting.database.stats().await.unwrap();
    assert_eq!((stats.total_jobs, stats.queued), (2, 2));
}

#[tokio::test]
async fn copies_of_a_submission_that_are_stored_at_once_are_stored_once() {
    let setting = Setting::fresh().await;
    let fence = setting.lead(1).await;
    let jobs: Vec<NewJob> = (0..40).map(|_| job(json!({}))).collect();
    let copies = (0..4).map(|copy| {
        let (database, mut rows) = (setting.database.clone(), jobs.iter().collect::<Vec<_>>());
        // Each in an order of its own, so that they wait for each other in circles.
        rows.rotate_left(copy * 10);
        async move {
            loop {
                match database.insert_jobs(fence, 0, &queued(&rows), 30).await {
                    Ok(stored) => return rows.iter().map(|job| job.id).zip(stored).collect::<Vec<_>>(),
                    Err(error) => assert!(error.retryable(), "{error:?}"),
                }
            }
        }
    });
    let stored: Vec<_> = futures::future::join_all(copies).await.into_iter().flatten().collect();
    assert_eq!(stored.iter().filter(|(_, job)| job.new).count(), jobs.len());
    let moments: BTreeSet<_> = stored.iter().map(|(id, job)| (id.0, job.submitted_at)).collect();
    assert_eq!(moments.len(), jobs.len(), "all copies of a job name the same moment");
    let stats = setting.database.stats().await.unwrap();
    assert_eq!((stats.total_jobs, stats.queued), (40, 40));
}

#[tokio::test]
async fn a_copy_of_a_submission_gets_no_lease() {
    let setting = Setting::fresh().await;
    let fence = setting.lead(1).await;
    let mut transaction = setting.database.begin(fence).await.unwrap();
    let (worker, _) = transaction.register_worker(&worker()).await.unwrap();
    transaction.commit().await.unwrap();
    let worker_id = worker.id;
    let (known, new_job) = (job(json!({})), job(json!({})));
    store(&setting, fence, &[&known]).await;
    let row = |job| {
        let job: &NewJob = job;
        let claim = Claim { job_id: job.id, worker_id, lease: LeaseId(System.uuid()), delivery: None };
        Insertion { job, claim: Some(claim), trace: None }
    };
    let rows = [row(&new_job), row(&known), row(&new_job)];
    let stored = setting.database.insert_jobs(fence, 0, &rows, 30).await.unwrap();
    assert_eq!(stored.iter().map(|job| job.new).collect::<Vec<_>>(), [true, false, false]);
    let holders = stored.iter().map(|job| job.assigned_to).collect::<Vec<_>>();
    assert_eq!(holders, [Some(worker_id), None, Some(worker_id)]);
    let stats = setting.database.stats().await.unwrap();
    assert_eq!((stats.total_jobs, stats.queued, stats.assigned), (2, 1, 1));
    // The lease that counts is the first copy's.
    let claims = rows.map(|row| completion(row.claim.unwrap(), false));
    let done = setting.database.complete_jobs(fence, 0, &claims[2..]).await.unwrap();
    assert!(done.is_empty());
    let done = setting.database.complete_jobs(fence, 0, &claims[..1]).await.unwrap();
    assert_eq!(done.len(), 1);
}
