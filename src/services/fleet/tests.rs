use uuid::Uuid;

use super::polls::LISTED_WITHIN;
use super::*;
use crate::domain::execution::Usage;
use crate::domain::explain::Obstacle;
use crate::domain::ids::DeliveryId;
use crate::domain::matching::Shape;
use crate::domain::worker::WorkerStatus;
use crate::services::command::Heartbeat;
use tokio::sync::oneshot;

pub(super) const TIMEOUT: Duration = Duration::from_secs(300);

#[expect(clippy::disallowed_methods, reason = "an arbitrary beginning")]
pub(super) fn start() -> Instant {
    Instant::now()
}

pub(super) const fn id(n: u128) -> Uuid {
    Uuid::from_u128(n)
}

pub(super) fn worker(slots: u32) -> Worker {
    let worker = serde_json::json!({
        "id": id(1), "name": "w", "hostname": "h", "ip_address": "127.0.0.1", "port": 1, "status": "idle",
        "capabilities": {}, "max_concurrent_jobs": slots, "current_job_count": 0,
        "total_jobs_completed": 0, "total_jobs_failed": 0, "last_heartbeat": "2026-01-01T00:00:00Z",
        "heartbeat_interval_seconds": 5, "consecutive_failures": 0, "metadata": {},
        "registered_at": "2026-01-01T00:00:00Z", "last_active_at": "2026-01-01T00:00:00Z",
        "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z"});
    serde_json::from_value(worker).unwrap()
}

pub(super) fn fleet(slots: u32, now: Instant) -> Fleet {
    let mut fleet = Fleet::default();
    fleet.admit(&worker(slots), TIMEOUT, now, now);
    fleet
}

pub(super) fn assignment(n: u128) -> Assignment {
    Assignment {
        lease: LeaseId(id(100 + n)),
        attempt_number: 1,
        worker_id: WorkerId(id(1)),
        job_id: JobId(id(200 + n)),
        job_name: "j".into(),
        model_name: "m".into(),
        model_version: "1".into(),
        input_data: crate::domain::payload::Payload::empty(),
        timeout_seconds: 60,
        trace: None,
    }
}

fn heartbeat(jobs: &[u128]) -> Heartbeat {
    Heartbeat {
        worker_id: WorkerId(id(1)),
        status: WorkerStatus::Idle,
        current_job_count: u32::try_from(jobs.len()).unwrap(),
        current_jobs: jobs.iter().map(|n| JobId(id(200 + n))).collect(),
        usage: Usage::default(),
        loaded_models: Vec::new(),
        metadata: None,
    }
}

#[test]
fn a_worker_that_this_leader_has_not_heard_of_gets_nothing_until_it_shows_itself() {
    let now = start();
    let who = WorkerId(id(1));
    let recalled = || {
        let mut fleet = Fleet::default();
        fleet.recall(&worker(2), TIMEOUT, now, now);
        assert!(fleet.reserve(who).is_none(), "it may be gone");
        fleet
    };
    let mut fleet = recalled();
    fleet.heartbeat(&heartbeat(&[]), now);
    assert!(fleet.reserve(who).is_some());
    let mut fleet = recalled();
    assert!(matches!(fleet.poll(who, DeliveryId(id(7)), true, now), Polled::Wait(_)));
    assert!(fleet.reserve(who).is_some());
    let mut fleet = recalled();
    fleet.admit(&worker(2), TIMEOUT, now, now);
    assert!(fleet.reserve(who).is_some(), "it registered anew");
}

#[test]
fn a_call_that_waits_gets_the_job_and_the_same_call_gets_it_again() {
    let now = start();
    let mut fleet = fleet(1, now);
    let call = DeliveryId(id(7));
    let Polled::Wait(mut waiting) = fleet.poll(WorkerId(id(1)), call, true, now) else {
        panic!("nothing is there")
    };
    let poller = fleet.reserve(WorkerId(id(1))).unwrap();
    assert!(!fleet.stop_waiting(WorkerId(id(1)), call), "a job is on its way");
    assert!(fleet.grant(assignment(1), poller, now));
    assert_eq!(waiting.try_recv().unwrap().lease, LeaseId(id(101)));
    assert!(
        matches!(fleet.poll(WorkerId(id(1)), call, true, now), Polled::Again(lease) if lease == LeaseId(id(101)))
    );
}

#[test]
fn a_job_whose_call_went_away_waits_to_be_fetched() {
    let now = start();
    let mut fleet = fleet(1, now);
    drop(fleet.poll(WorkerId(id(1)), DeliveryId(id(7)), true, now));
    let poller = fleet.reserve(WorkerId(id(1))).unwrap();
    assert!(poller.is_none(), "the call is gone");
    assert!(fleet.grant(assignment(1), poller, now));
    let (answer, _) = fleet.heartbeat(&heartbeat(&[]), now).unwrap();
    assert_eq!(answer.pending_jobs, [JobId(id(201))]);
    assert!(matches!(fleet.poll(WorkerId(id(1)), DeliveryId(id(8)), true, now), Polled::Fetch(_)));
}

#[test]
fn a_call_that_began_to_wait_while_a_job_was_given_to_nobody_looks_again_and_finds_it() {
    let now = start();
    let mut fleet = fleet(1, now);
    let nobody = fleet.reserve(WorkerId(id(1))).unwrap();
    assert!(nobody.is_none());
    let Polled::Wait(mut call) = fleet.poll(WorkerId(id(1)), DeliveryId(id(7)), true, now) else {
        panic!("not yet")
    };
    assert!(fleet.grant(assignment(1), nobody, now));
    assert!(
        matches!(call.try_recv(), Err(oneshot::error::TryRecvError::Closed)),
        "it must not go on waiting"
    );
    let polled = fleet.poll(WorkerId(id(1)), DeliveryId(id(7)), true, now);
    assert!(matches!(polled, Polled::Fetch(lease) if lease == assignment(1).lease));
}

#[test]
fn a_call_that_comes_while_an_assignment_is_committed_is_told_to_look_again() {
    let now = start();
    let mut fleet = fleet(1, now);
    let nobody = fleet.reserve(WorkerId(id(1))).unwrap();
    assert!(nobody.is_none());
    let call = DeliveryId(id(7));
    let Polled::Wait(mut waiting) = fleet.poll(WorkerId(id(1)), call, true, now) else {
        panic!("nothing is there")
    };
    assert!(fleet.grant(assignment(1), nobody, now));
    assert_eq!(waiting.try_recv().unwrap_err(), oneshot::error::TryRecvError::Closed);
    assert!(
        matches!(fleet.poll(WorkerId(id(1)), call, true, now), Polled::Fetch(lease) if lease == LeaseId(id(101)))
    );

    let other = DeliveryId(id(8));
    let Polled::Wait(mut waiting) = fleet.poll(WorkerId(id(1)), other, true, now) else {
        panic!("it is fetched")
    };
    fleet.unfetch(LeaseId(id(101)));
    assert_eq!(waiting.try_recv().unwrap_err(), oneshot::error::TryRecvError::Closed);
    assert!(
        matches!(fleet.poll(WorkerId(id(1)), other, true, now), Polled::Fetch(lease) if lease == LeaseId(id(101)))
    );
}

#[test]
fn slots_are_never_exceeded() {
    let now = start();
    let mut fleet = fleet(2, now);
    for n in 0..2 {
        let poller = fleet.reserve(WorkerId(id(1))).unwrap();
        assert!(fleet.grant(assignment(n), poller, now));
    }
    assert!(fleet.reserve(WorkerId(id(1))).is_none());
    assert_eq!(fleet.pool().free_slots(), 0);
    fleet.release(LeaseId(id(100)), true);
    assert_eq!(fleet.pool().free_slots(), 1);
}

#[test]
fn a_job_that_got_lost_on_the_way_is_given_back_and_a_taken_one_is_named() {
    let now = start();
    let mut fleet = fleet(2, now);
    let Polled::Wait(_waiting) = fleet.poll(WorkerId(id(1)), DeliveryId(id(7)), true, now) else { panic!() };
    let poller = fleet.reserve(WorkerId(id(1))).unwrap();
    assert!(fleet.grant(assignment(1), poller, now));
    // It holds a job that nobody gave it, and lists it, so it lists its jobs.
    let (answer, back) = fleet.heartbeat(&heartbeat(&[9]), now).unwrap();
    assert_eq!((answer.cancelled_jobs, back.len()), (vec![JobId(id(209))], 0));
    let (_, back) = fleet.heartbeat(&heartbeat(&[]), now + LISTED_WITHIN).unwrap();
    assert_eq!(back, [(JobId(id(201)), LeaseId(id(101)))]);
}

#[test]
fn a_running_job_is_never_given_back_by_a_heartbeat() {
    let now = start();
    let mut fleet = fleet(1, now);
    let Polled::Wait(_waiting) = fleet.poll(WorkerId(id(1)), DeliveryId(id(7)), true, now) else { panic!() };
    let poller = fleet.reserve(WorkerId(id(1))).unwrap();
    assert!(fleet.grant(assignment(1), poller, now));
    fleet.mark_running(LeaseId(id(101)), now);
    let (_, back) = fleet.heartbeat(&heartbeat(&[]), now + FETCH_WITHIN).unwrap();
    assert!(back.is_empty());
}

#[test]
fn a_leaving_worker_gets_nothing_and_returns_what_it_did_not_fetch() {
    let now = start();
    let mut fleet = fleet(2, now);
    let poller = fleet.reserve(WorkerId(id(1))).unwrap();
    assert!(fleet.grant(assignment(1), poller, now));
    let leaving = Heartbeat { status: WorkerStatus::Offline, ..heartbeat(&[]) };
    let (_, back) = fleet.heartbeat(&leaving, now).unwrap();
    assert_eq!(back, [(JobId(id(201)), LeaseId(id(101)))]);
    assert_eq!(fleet.pool().free_slots(), 0);
}

#[test]
fn silence_is_judged_after_the_limit_and_the_grace() {
    let now = start();
    let mut fleet = Fleet::default();
    fleet.admit(&worker(1), TIMEOUT, now.checked_sub(Duration::from_secs(60)).unwrap(), now);
    assert!(fleet.silent(now + Duration::from_secs(4)).is_empty(), "one heartbeat of grace");
    assert_eq!(fleet.silent(now + Duration::from_secs(5)).len(), 1);
    fleet.touch(WorkerId(id(1)), now + Duration::from_secs(5));
    assert!(fleet.silent(now + Duration::from_secs(19)).is_empty());
    assert_eq!(fleet.silent(now + Duration::from_secs(20)), [(WorkerId(id(1)), Duration::from_secs(15))]);
    assert_eq!(silence_limit(Duration::from_secs(3), Duration::from_secs(5)), Duration::from_secs(3));
}

#[test]
fn an_adopted_lease_gets_the_full_time_to_be_fetched() {
    let now = start();
    let mut fleet = fleet(1, now);
    let live = LiveLease {
        lease: LeaseId(id(101)),
        job_id: JobId(id(201)),
        worker_id: WorkerId(id(1)),
        running: false,
        delivery: None,
        timeout_seconds: 60,
        expires_in: 90.0,
    };
    fleet.adopt(&live, now);
    assert!(fleet.unfetched(now + Duration::from_secs(29)).is_empty());
    assert_eq!(fleet.unfetched(now + FETCH_WITHIN), [(JobId(id(201)), LeaseId(id(101)))]);
}

#[test]
fn a_worker_that_fails_too_often_rests_is_tried_with_one_job_and_is_well_again() {
    let (now, pause) = (start(), Duration::from_secs(10));
    let holder = WorkerId(id(1));
    let mut fleet = Fleet::new(Patience { failures: 2, pause });
    fleet.admit(&worker(3), TIMEOUT, now, now);
    let status = |fleet: &mut Fleet| {
        fleet.touch(holder, now);
        fleet.take_vitals(now)[0].status
    };
    fleet.note_failure(holder, now);
    assert_eq!((fleet.pool().free_slots(), status(&mut fleet)), (3, WorkerStatus::Idle));
    fleet.note_failure(holder, now);
    assert_eq!((fleet.pool().free_slots(), status(&mut fleet)), (0, WorkerStatus::Unhealthy));
    assert!(!fleet.end_rests(now));
    assert!(fleet.end_rests(now + pause));
    assert_eq!(fleet.pool().free_slots(), 1);
    let poller = fleet.reserve(holder).unwrap();
    assert!(fleet.reserve(holder).is_none(), "one trial at a time");
    assert!(fleet.grant(assignment(1), poller, now));
    assert_eq!((fleet.pool().free_slots(), status(&mut fleet)), (0, WorkerStatus::Unhealthy));
    fleet.complete(assignment(1).lease);
    assert_eq!((fleet.pool().free_slots(), status(&mut fleet)), (3, WorkerStatus::Idle));
}

#[test]
fn what_keeps_a_worker_with_free_slots_from_a_job_is_not_that_they_are_taken() {
    let (now, holder) = (start(), WorkerId(id(1)));
    let shape = Shape { model_name: "m".into(), requires_gpu: false, required_memory_mib: 0 };
    let seen = |fleet: &mut Fleet| {
        fleet.touch(holder, now);
        (fleet.verdicts(&shape)[0].obstacle, fleet.take_vitals(now)[0].status)
    };
    let mut fleet = Fleet::new(Patience { failures: 1, pause: Duration::from_secs(10) });
    fleet.admit(&worker(1), TIMEOUT, now, now);
    fleet.note_failure(holder, now);
    assert_eq!(seen(&mut fleet), (Some(Obstacle::Unhealthy), WorkerStatus::Unhealthy));
    fleet.admit(&worker(1), TIMEOUT, now, now);
    fleet.drain(holder);
    assert_eq!(seen(&mut fleet), (Some(Obstacle::Draining), WorkerStatus::Idle));
    fleet.admit(&worker(1), TIMEOUT, now, now);
    let poller = fleet.reserve(holder).unwrap();
    assert!(fleet.grant(assignment(1), poller, now));
    assert_eq!(seen(&mut fleet), (Some(Obstacle::Full), WorkerStatus::Busy));
}

#[test]
fn registering_again_makes_a_failing_worker_well() {
    let now = start();
    let mut fleet = Fleet::new(Patience { failures: 1, pause: Duration::from_secs(10) });
    let failing = Worker { consecutive_failures: 1, ..worker(3) };
    fleet.admit(&failing, TIMEOUT, now, now);
    assert_eq!(fleet.pool().free_slots(), 0, "a new leader finds it as it was");
    fleet.admit(&worker(3), TIMEOUT, now, now);
    assert_eq!(fleet.pool().free_slots(), 3);
}

#[test]
fn what_a_worker_says_of_itself_is_kept_until_it_says_something_else() {
    let now = start();
    let mut fleet = fleet(1, now);
    let metadata = |fleet: &mut Fleet| fleet.take_vitals(now)[0].metadata.clone();
    assert_eq!(metadata(&mut fleet), None, "what is stored stands");
    let zone = crate::domain::payload::Payload::parse(r#"{"zone":"a"}"#).unwrap();
    for said in [Some(zone.clone()), None] {
        fleet.heartbeat(&Heartbeat { metadata: said, ..heartbeat(&[]) }, now).unwrap();
        assert_eq!(metadata(&mut fleet), Some(zone.clone()));
    }
    let empty = crate::domain::payload::Payload::empty();
    fleet.heartbeat(&Heartbeat { metadata: Some(empty.clone()), ..heartbeat(&[]) }, now).unwrap();
    assert_eq!(metadata(&mut fleet), Some(empty));
}

#[test]
fn a_slot_reserved_on_a_worker_that_went_and_came_back_is_not_given_to_another_job() {
    let (now, holder) = (start(), WorkerId(id(1)));
    let mut fleet = fleet(1, now);
    let poller = fleet.reserve(holder).unwrap();
    fleet.remove(holder);
    fleet.admit(&worker(1), TIMEOUT, now, now);
    assert!(fleet.reserve(holder).is_none(), "the first assignment is on its way");
    assert!(fleet.grant(assignment(1), poller, now));
    assert_eq!(fleet.pool().free_slots(), 0);
    fleet.release(LeaseId(id(101)), true);

    let poller = fleet.reserve(holder).unwrap();
    fleet.remove(holder);
    fleet.unreserve(holder, poller);
    fleet.admit(&worker(1), TIMEOUT, now, now);
    assert_eq!(fleet.pool().free_slots(), 1, "it was given back while the worker was gone");
}

#[test]
fn a_worker_that_was_leaving_and_fetches_a_job_is_offered_others_at_once() {
    let now = start();
    let mut fleet = fleet(2, now);
    let poller = fleet.reserve(WorkerId(id(1))).unwrap();
    assert!(fleet.grant(assignment(1), poller, now));
    fleet.heartbeat(&Heartbeat { status: WorkerStatus::Offline, ..heartbeat(&[]) }, now).unwrap();
    assert_eq!(fleet.pool().free_slots(), 0);
    assert!(matches!(fleet.poll(WorkerId(id(1)), DeliveryId(id(7)), true, now), Polled::Fetch(_)));
    assert_eq!(fleet.pool().free_slots(), 1);
}

#[test]
fn a_job_that_runs_does_not_wait_to_be_fetched() {
    let (now, holder) = (start(), WorkerId(id(1)));
    let mut fleet = fleet(2, now);
    let poller = fleet.reserve(holder).unwrap();
    assert!(fleet.grant(assignment(1), poller, now));
    fleet.mark_running(LeaseId(id(101)), now);
    assert!(matches!(fleet.poll(holder, DeliveryId(id(7)), false, now), Polled::Wait(_)));

    let poller = fleet.reserve(holder).unwrap();
    assert!(fleet.grant(assignment(2), poller, now));
    assert!(matches!(fleet.poll(holder, DeliveryId(id(7)), false, now), Polled::Fetch(_)));
    fleet.mark_running(LeaseId(id(102)), now);
    fleet.unfetch(LeaseId(id(102)));
    assert!(matches!(fleet.poll(holder, DeliveryId(id(7)), false, now), Polled::Wait(_)));
    let leaving = Heartbeat { status: WorkerStatus::Offline, ..heartbeat(&[1, 2]) };
    assert!(fleet.heartbeat(&leaving, now).unwrap().1.is_empty());
    assert!(fleet.drain(holder).is_empty());
}
