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
