use chrono::TimeDelta;
use serde_json::json;
use uuid::Uuid;

use super::*;

const NOW: DateTime<Utc> = DateTime::UNIX_EPOCH;

fn job(status: &str) -> Job {
    let id = Uuid::nil();
    serde_json::from_value(
        json!({"id": id, "name": "n", "model_name": "m", "model_version": "1", "status": status,
        "priority": 5, "max_retries": 3, "retry_count": 0, "timeout_seconds": 1, "input_data": {"a": 1},
        "submitted_at": NOW, "tags": {}, "metadata": {}, "created_at": NOW, "updated_at": NOW}),
    )
    .unwrap()
}

fn outlook(obstacles: &[Option<Obstacle>]) -> Outlook {
    let verdict = |(number, obstacle): (u128, &Option<Obstacle>)| Verdict {
        worker_id: WorkerId(Uuid::from_u128(number)),
        obstacle: *obstacle,
    };
    Outlook {
        scheduling: true,
        paused: false,
        workers: Workers::of((0..).zip(obstacles).map(verdict).collect(), 2),
    }
}

fn why(job: &Job, outlook: Option<Outlook>) -> Reason {
    let explained = Explanation::of(job, Vec::new(), None, outlook, NOW);
    assert!(!explained.detail.is_empty());
    explained.reason
}

#[test]
fn workers_are_counted_by_what_keeps_them_and_the_nearest_are_shown() {
    let workers =
        outlook(&[Some(Obstacle::Model), None, Some(Obstacle::Full), Some(Obstacle::Model)]).workers;
    assert_eq!((workers.total, workers.able), (4, 1));
    assert_eq!(workers.obstacles, [(Obstacle::Full, 1), (Obstacle::Model, 2)].into());
    let shown: Vec<_> = workers.list.iter().map(|verdict| verdict.obstacle).collect();
    assert_eq!(shown, [None, Some(Obstacle::Full)]);
}

#[test]
fn a_queued_job_waits_for_the_first_thing_that_is_missing() {
    let queued = job("queued");
    assert_eq!(why(&queued, None), Reason::NoLeader);
    assert_eq!(
        why(&queued, Some(Outlook { scheduling: false, ..outlook(&[None]) })),
        Reason::SchedulingIsOff
    );
    assert_eq!(why(&queued, Some(Outlook { paused: true, ..outlook(&[None]) })), Reason::IsPaused);
    assert_eq!(why(&queued, Some(outlook(&[]))), Reason::NoWorkers);
    let lasting = [Some(Obstacle::Model), Some(Obstacle::Gpu), Some(Obstacle::Memory)];
    assert_eq!(why(&queued, Some(outlook(&lasting))), Reason::NoWorkerHasWhatItNeeds);
    let passing = [Some(Obstacle::Model), Some(Obstacle::Full)];
    assert_eq!(why(&queued, Some(outlook(&passing))), Reason::WorkersAreTaken);
    assert_eq!(why(&queued, Some(outlook(&[Some(Obstacle::Model), None]))), Reason::IsNext);
}

#[test]
fn a_pending_job_waits_for_its_time() {
    let mut pending = job("pending");
    pending.next_retry_at = Some(NOW + TimeDelta::seconds(1));
    assert_eq!(why(&pending, None), Reason::WaitsForItsTime);
    pending.next_retry_at = Some(NOW);
    assert_eq!(why(&pending, None), Reason::NoLeader);
    assert_eq!(why(&pending, Some(outlook(&[]))), Reason::IsDue);
}

#[test]
fn a_job_that_nobody_is_to_take_shows_no_workers() {
    let mut running = job("running");
    assert_eq!(why(&running, None), Reason::IsDrivenFromOutside);
    running.assigned_at = Some(NOW);
    assert_eq!(why(&running, None), Reason::Runs);
    assert_eq!(why(&job("assigned"), None), Reason::IsAssigned);
    let ended = Explanation::of(&job("failed"), Vec::new(), None, Some(outlook(&[None])), NOW);
    assert_eq!((ended.reason, ended.workers), (Reason::HasEnded, None));
}

#[test]
fn what_follows_a_failed_attempt_is_told() {
    let state = |status: &str, retry_count: u32, code: Option<&str>| {
        let job =
            Job { retry_count, retry_backoff_seconds: Some(2), next_retry_at: Some(NOW), ..job(status) };
        retry_state(&job, code)
    };
    let next = state("pending", 1, Some("oom")).unwrap();
    assert_eq!((next.can_retry, next.attempt_number, next.reason), (true, 1, None));
    assert_eq!((next.next_retry_at, next.backoff_seconds), (Some(NOW), Some(2)));
    for (status, retries, code, why) in [
        ("failed", 3, Some("oom"), Some("max_retries_exceeded")),
        ("timeout", 3, None, Some("max_retries_exceeded")),
        ("failed", 1, Some("oom"), Some("error_not_retryable: oom")),
        ("failed", 3, Some(POISON), Some(POISON)),
        ("timeout", 1, Some("oom"), Some("error_not_retryable: timeout")),
        ("failed", 1, None, None),
    ] {
        let end = state(status, retries, code).unwrap();
        assert_eq!((end.can_retry, end.next_retry_at, end.backoff_seconds), (false, None, None));
        assert_eq!(end.reason.as_deref(), why, "{status} {retries} {code:?}");
    }
    for (status, retries) in
        [("pending", 0), ("queued", 1), ("running", 1), ("completed", 1), ("cancelled", 1)]
    {
        assert_eq!(state(status, retries, None), None, "{status}");
    }
}
