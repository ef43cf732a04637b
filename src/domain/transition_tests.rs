use proptest::prelude::*;
use uuid::Uuid;

use super::*;

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

fn job(status: JobStatus) -> JobState {
    let worker_id = WorkerId(Uuid::from_u128(7));
    let leased = matches!(status, JobStatus::Assigned | JobStatus::Running);
    JobState {
        id: JobId(Uuid::from_u128(1)),
        status,
        priority: 5,
        shape: Shape { model_name: "m".into(), requires_gpu: false, required_memory_mib: 0 },
        submitted_at: at(0),
        retry_count: 0,
        max_retries: 2,
        retry_policy: RetryPolicy { jitter: false, ..RetryPolicy::default() },
        timeout_seconds: 60,
        next_retry_at: (status == JobStatus::Pending).then(|| at(10)),
        retry_backoff_seconds: None,
        queued_at: Some(at(0)),
        assigned_at: leased.then(|| at(1)),
        assigned_worker_id: leased.then_some(worker_id),
        started_at: (status == JobStatus::Running).then(|| at(2)),
        completed_at: status.is_terminal().then(|| at(3)),
        execution_duration_ms: None,
        output_data: None,
        error_message: None,
        error_stack: None,
        lost_workers: Vec::new(),
        early_losses: 0,
        lease: leased.then(|| Lease {
            id: LeaseId(Uuid::from_u128(9)),
            worker_id,
            running: status == JobStatus::Running,
            expires_at: at(62),
        }),
        trace: None,
        executions: Vec::new(),
    }
}

fn holder() -> Reporter {
    Reporter {
        worker_id: WorkerId(Uuid::from_u128(7)),
        lease: Some(LeaseId(Uuid::from_u128(9))),
        attempt_number: None,
    }
}

fn completed(by: Reporter) -> JobEvent {
    JobEvent::Completed { by, output: None, duration_ms: Some(5), usage: Usage::default() }
}

fn failed(code: Option<&str>) -> JobEvent {
    let failure = Failure { message: "broke".into(), stack: None, code: code.map(str::to_owned) };
    JobEvent::Failed { by: holder(), failure, duration_ms: None, usage: Usage::default() }
}

#[test]
fn the_holder_runs_and_completes_the_job_in_one_batch() {
    let mut state = job(JobStatus::Assigned);
    state.apply(&JobEvent::Started { by: holder(), usage: Usage::default() }, at(5), 0.5).unwrap();
    state.apply(&completed(holder()), at(6), 0.5).unwrap();
    assert_eq!(
        (state.status, state.started_at, state.lease.clone()),
        (JobStatus::Completed, Some(at(5)), None)
    );
    assert_eq!(state.executions.len(), 1);
    assert_eq!(state.executions[0].status, ExecutionStatus::Completed);
}

#[test]
fn nobody_but_the_holder_of_the_current_lease_changes_anything() {
    let other_worker = Reporter { worker_id: WorkerId(Uuid::from_u128(8)), ..holder() };
    let other_lease = Reporter { lease: Some(LeaseId(Uuid::from_u128(10))), ..holder() };
    for by in [other_worker, other_lease] {
        let mut state = job(JobStatus::Running);
        assert_eq!(state.apply(&completed(by), at(5), 0.5), Err(Refusal::NotHolder));
        assert_eq!(state, job(JobStatus::Running));
    }
    let mut state = job(JobStatus::Running);
    assert_eq!(state.apply(&completed(holder()), at(62), 0.5), Err(Refusal::LeaseExpired));
    assert_eq!(state, job(JobStatus::Running));
}

#[test]
fn a_worker_that_sends_no_token_is_known_by_its_id() {
    let mut state = job(JobStatus::Running);
    state.apply(&completed(Reporter { lease: None, ..holder() }), at(5), 0.5).unwrap();
    assert_eq!(state.status, JobStatus::Completed);
}

#[test]
fn a_report_without_a_token_counts_for_the_attempt_that_it_names() {
    for (attempt, counts) in [(1, false), (2, true), (3, false)] {
        let mut state = JobState { retry_count: 1, ..job(JobStatus::Running) };
        let by = Reporter { lease: None, attempt_number: Some(attempt), ..holder() };
        assert_eq!(state.apply(&completed(by), at(5), 0.5).is_ok(), counts, "{attempt}");
    }
}

#[test]
fn a_failed_attempt_waits_for_its_backoff_until_retries_are_spent() {
    let mut state = job(JobStatus::Running);
    state.apply(&failed(None), at(5), 0.5).unwrap();
    assert_eq!((state.status, state.retry_count, state.next_retry_at), (JobStatus::Pending, 1, Some(at(6))));
    assert_eq!(state.retry_backoff_seconds, Some(1));
    let mut spent = JobState { retry_count: 2, ..job(JobStatus::Running) };
    spent.apply(&failed(None), at(5), 0.5).unwrap();
    assert_eq!((spent.status, spent.completed_at), (JobStatus::Failed, Some(at(5))));
}

#[test]
fn a_job_is_not_due_before_its_time() {
    let mut state = job(JobStatus::Pending);
    state.apply(&JobEvent::Due, at(9), 0.5).unwrap();
    assert_eq!(state.status, JobStatus::Pending);
    state.apply(&JobEvent::Due, at(10), 0.5).unwrap();
    assert_eq!((state.status, state.queued_at), (JobStatus::Queued, Some(at(10))));
}

#[test]
fn the_database_clock_decides_whether_a_deadline_has_passed() {
    let event = JobEvent::DeadlinePassed { lease: holder().lease };
    let mut state = JobState { max_retries: 0, ..job(JobStatus::Running) };
    state.apply(&event, at(61), 0.5).unwrap();
    assert_eq!(state.status, JobStatus::Running);
    state.apply(&event, at(62), 0.5).unwrap();
    assert_eq!(state.status, JobStatus::Timeout);
    assert_eq!(state.executions[0].error.as_ref().unwrap().code.as_deref(), Some(TIMEOUT));
}

#[test]
fn a_lost_worker_costs_a_retry_only_if_the_job_ran() {
    let lost = JobEvent::WorkerLost { lease: holder().lease.unwrap() };
    let mut assigned = job(JobStatus::Assigned);
    assigned.apply(&lost, at(5), 0.5).unwrap();
    assert_eq!((assigned.status, assigned.retry_count), (JobStatus::Queued, 0));
    let mut running = job(JobStatus::Running);
    running.apply(&lost, at(5), 0.5).unwrap();
    assert_eq!((running.status, running.retry_count), (JobStatus::Pending, 1));
}

#[test]
fn a_manual_retry_makes_a_waiting_job_due_and_revives_an_ended_one() {
    let mut waiting = job(JobStatus::Pending);
    waiting.apply(&JobEvent::Retry, at(5), 0.5).unwrap();
    assert_eq!((waiting.retry_count, waiting.next_retry_at), (0, Some(at(5))));
    for status in [JobStatus::Failed, JobStatus::Timeout, JobStatus::Cancelled] {
        let mut ended = job(status);
        ended.apply(&JobEvent::Retry, at(5), 0.5).unwrap();
        assert_eq!((ended.status, ended.retry_count), (JobStatus::Pending, 1));
    }
    let mut completed = job(JobStatus::Completed);
    assert!(completed.apply(&JobEvent::Retry, at(5), 0.5).is_err());
}

#[test]
fn a_job_that_a_worker_holds_cannot_be_driven_from_outside_but_can_be_cancelled() {
    let patch = |status| JobEvent::Patch(JobPatch { status: Some(status), ..JobPatch::default() });
    let mut state = job(JobStatus::Running);
    let refused = state.apply(&patch(JobStatus::Completed), at(5), 0.5);
    assert!(matches!(refused, Err(Refusal::HeldByWorker(_))));
    state.apply(&patch(JobStatus::Cancelled), at(5), 0.5).unwrap();
    assert_eq!(state.status, JobStatus::Cancelled);
    assert_eq!(state.executions[0].status, ExecutionStatus::Cancelled);
}

#[test]
fn clearing_the_queue_calls_off_those_who_wait_there_and_nobody_else() {
    for status in JobStatus::ALL {
        let mut state = job(status);
        let cleared = state.apply(&JobEvent::Clear, at(5), 0.5);
        assert_eq!(cleared.is_ok(), status == JobStatus::Queued, "{status}");
        assert_eq!(state.status, if cleared.is_ok() { JobStatus::Cancelled } else { status });
    }
}

#[test]
fn the_specification_s_flow_from_outside_works() {
    let patch = |status| JobEvent::Patch(JobPatch { status: Some(status), ..JobPatch::default() });
    let mut state = job(JobStatus::Queued);
    assert!(state.apply(&patch(JobStatus::Completed), at(4), 0.5).is_err());
    state.apply(&patch(JobStatus::Running), at(5), 0.5).unwrap();
    state.apply(&patch(JobStatus::Completed), at(6), 0.5).unwrap();
    assert_eq!((state.status, state.execution_duration_ms), (JobStatus::Completed, Some(1000)));
    let mut failing = job(JobStatus::Queued);
    failing.apply(&patch(JobStatus::Failed), at(5), 0.5).unwrap();
    failing.apply(&JobEvent::Retry, at(5), 0.5).unwrap();
    assert_eq!((failing.status, failing.retry_count), (JobStatus::Pending, 1));
}

fn events() -> impl Strategy<Value = JobEvent> {
    let token = holder().lease.unwrap();
    prop_oneof![
        Just(JobEvent::Started { by: holder(), usage: Usage::default() }),
        Just(JobEvent::Rejected { by: holder(), message: String::new() }),
        Just(completed(holder())),
        Just(failed(None)),
        Just(failed(Some(TIMEOUT))),
        Just(JobEvent::DeadlinePassed { lease: Some(token) }),
        Just(JobEvent::DeadlinePassed { lease: None }),
        Just(JobEvent::WorkerLost { lease: token }),
        Just(JobEvent::WorkerRemoved { lease: token }),
        Just(JobEvent::NotFetched { lease: token }),
        Just(JobEvent::Cancel),
        Just(JobEvent::Clear),
        Just(JobEvent::Retry),
        Just(JobEvent::Due),
        proptest::sample::select(&JobStatus::ALL[..])
            .prop_map(|status| { JobEvent::Patch(JobPatch { status: Some(status), ..JobPatch::default() }) }),
    ]
}

proptest! {
    /// What the database's constraints repeat: a lease exactly where one may be, an end time exactly
    /// at the end, and only the steps that the state machine allows.
    #[test]
    fn no_sequence_of_events_breaks_the_state_machine(
        start in proptest::sample::select(&JobStatus::ALL[..]),
        steps in proptest::collection::vec((events(), 0_i64..40), 0..20),
    ) {
        let mut state = job(start);
        let mut now = at(4);
        for (event, wait) in steps {
            now += TimeDelta::seconds(wait);
            let before = state.clone();
            if state.apply(&event, now, 0.5).is_err() {
                prop_assert_eq!(&state, &before);
            }
            prop_assert!(state.status == before.status || before.status.may_become(state.status));
            prop_assert!(state.lease.is_none() || matches!(state.status, JobStatus::Assigned | JobStatus::Running));
            prop_assert!(state.status != JobStatus::Assigned || state.lease.is_some());
            prop_assert_eq!(state.status.is_terminal(), state.completed_at.is_some());
            prop_assert_eq!(state.status == JobStatus::Pending, state.next_retry_at.is_some());
        }
    }
}

proptest! {
    #[test]
    fn a_retry_is_never_due_before_its_delay_is_over_nor_a_millisecond_late(
        ns in 0_i64..2_000_000_000, count in 0_u32..10, unit in 0.0..1.0_f64, jitter in any::<bool>(),
    ) {
        let now = at(5) + TimeDelta::nanoseconds(ns);
        let mut state = JobState { retry_count: count, max_retries: 10, ..job(JobStatus::Running) };
        state.retry_policy.jitter = jitter;
        let delay = TimeDelta::from_std(state.retry_policy.delay(count, unit)).unwrap();
        state.apply(&failed(None), now, unit).unwrap();
        let due = state.next_retry_at.unwrap();
        prop_assert!(due >= now + delay && due < now + delay + TimeDelta::milliseconds(1));
        prop_assert_eq!(due.timestamp_subsec_nanos() % 1_000_000, 0);
        prop_assert!(state.retry_backoff_seconds.unwrap() * 1000 >= delay.num_milliseconds());
        let waiting = state.clone();
        state.apply(&JobEvent::Due, due - TimeDelta::microseconds(1), 0.5).unwrap();
        prop_assert_eq!(&state, &waiting);
        state.apply(&JobEvent::Due, due, 0.5).unwrap();
        prop_assert_eq!(state.status, JobStatus::Queued);
    }
}

/// The job runs on this worker and is lost with it.
fn lost_with(state: &mut JobState, worker: u128) -> ExecutionChange {
    gone_with(state, worker, |lease| JobEvent::WorkerLost { lease })
}

/// The job runs on this worker, which goes away like this.
fn gone_with(state: &mut JobState, worker: u128, how: fn(LeaseId) -> JobEvent) -> ExecutionChange {
    let lease = Lease {
        id: LeaseId(Uuid::from_u128(100 + worker)),
        worker_id: WorkerId(Uuid::from_u128(worker)),
        running: true,
        expires_at: at(62),
    };
    (state.status, state.lease) = (JobStatus::Running, Some(lease.clone()));
    (state.next_retry_at, state.assigned_worker_id) = (None, Some(lease.worker_id));
    state.apply(&how(lease.id), at(5), 0.5).unwrap();
    state.executions.pop().unwrap()
}

#[test]
fn a_job_that_takes_three_different_workers_down_is_given_up_whatever_its_policy_says() {
    let mut state = JobState { max_retries: 10, ..job(JobStatus::Running) };
    for worker in [21, 22, 21, 22] {
        let ended = lost_with(&mut state, worker);
        assert_eq!(ended.error.unwrap().code.as_deref(), Some(WORKER_LOST));
        assert_eq!(state.status, JobStatus::Pending, "each counts once");
    }
    let last = lost_with(&mut state, 23);
    assert_eq!((state.status, state.retry_count, state.lease.clone()), (JobStatus::Failed, 4, None));
    assert_eq!(
        (last.status, last.error.clone().unwrap().code.as_deref()),
        (ExecutionStatus::Failed, Some(POISON))
    );
    assert!(state.error_message.as_deref().unwrap().starts_with("3 different workers were lost"));
    assert!(!last.blames_worker());
    state.apply(&JobEvent::Retry, at(9), 0.5).unwrap();
    assert_eq!((state.status, state.lost_workers.len()), (JobStatus::Pending, 0), "somebody knows better");
}

#[test]
fn a_worker_that_is_lost_before_it_ran_the_job_was_not_taken_down_by_it() {
    let mut state = job(JobStatus::Assigned);
    state.apply(&JobEvent::WorkerLost { lease: holder().lease.unwrap() }, at(5), 0.5).unwrap();
    assert_eq!((state.status, state.lost_workers.len()), (JobStatus::Queued, 0));
}

#[test]
fn a_job_that_kills_every_worker_at_once_comes_to_its_end() {
    let mut state = job(JobStatus::Assigned);
    let assigned = state.clone();
    for loss in 1..=MOST_EARLY_LOSSES {
        let (status, lease) = (JobStatus::Assigned, assigned.lease.clone());
        state = JobState { early_losses: state.early_losses, status, lease, ..assigned.clone() };
        state.apply(&JobEvent::WorkerLost { lease: holder().lease.unwrap() }, at(5), 0.5).unwrap();
        let expected = if loss < MOST_EARLY_LOSSES { JobStatus::Queued } else { JobStatus::Failed };
        assert_eq!((state.status, state.early_losses), (expected, loss));
    }
    assert!(state.error_message.as_deref().unwrap().starts_with("10 times a worker was lost before"));
    assert_eq!(state.executions.last().unwrap().error.clone().unwrap().code.as_deref(), Some(POISON));
    state.apply(&JobEvent::Retry, at(9), 0.5).unwrap();
    assert_eq!((state.status, state.early_losses), (JobStatus::Pending, 0), "somebody knows better");
}

#[test]
fn workers_that_an_operator_removes_are_not_taken_down_by_their_jobs() {
    let mut state = JobState { max_retries: 10, ..job(JobStatus::Running) };
    for worker in [21, 22, 23, 24] {
        let ended = gone_with(&mut state, worker, |lease| JobEvent::WorkerRemoved { lease });
        assert_eq!(ended.error.unwrap().code.as_deref(), Some(WORKER_LOST));
        assert_eq!((state.status, state.lost_workers.len()), (JobStatus::Pending, 0));
    }
    assert_eq!(state.retry_count, 4, "its policy counts them all the same");
}

#[test]
fn failures_and_timeouts_speak_against_a_worker_and_its_loss_does_not() {
    for (event, blamed) in [
        (failed(Some("oom")), true),
        (JobEvent::DeadlinePassed { lease: holder().lease }, true),
        (JobEvent::WorkerLost { lease: holder().lease.unwrap() }, false),
        (JobEvent::Cancel, false),
        (completed(holder()), false),
    ] {
        let mut state = job(JobStatus::Running);
        let now = if matches!(event, JobEvent::DeadlinePassed { .. }) { at(70) } else { at(5) };
        state.apply(&event, now, 0.5).unwrap();
        assert_eq!(state.executions[0].blames_worker(), blamed, "{event:?}");
    }
}
