//! How the worker runtime registers, outlives replicas and drains.

mod support;

use cortex_client::{CancellationToken, WorkerError};
use support::{
    CompletionAnswer, Mode, Replica, Store,
    handlers::{Echo, Gate, reaches},
    holds, lease, run, worker,
};

#[tokio::test]
async fn a_completion_is_sent_to_the_next_replica_until_it_is_acknowledged() {
    let store = Store::new();
    let replicas = [0, 1, 2].map(|index| Replica::start(index, &store));
    store.change(|m| m.completion_answers.extend([CompletionAnswer::Broken, CompletionAnswer::Broken]));
    let [a, b, c] = &replicas;
    let worker = run(worker(&[a, b, c]), Echo);
    store.add_job("a");
    store.wait_for("the third attempt", |m| m.completions.len() == 3).await;
    worker.stop().await;
    store.change(|m| {
        let tried: Vec<usize> = m.completions.iter().map(|(replica, _)| *replica).collect();
        assert!(tried[0] != tried[1] && tried[1] != tried[2] && tried[0] != tried[2], "{tried:?}");
        assert!(m.completions.iter().all(|(_, completion)| *completion == m.completions[0].1));
        assert_eq!(m.registrations.len(), 1, "registering again would lose the lease");
    });
}

#[tokio::test]
async fn the_worker_id_is_kept_across_a_reconnect_and_the_job_goes_on() {
    let store = Store::new();
    let mut replicas = [Replica::start(0, &store), Replica::start(1, &store)];
    let gate = Gate::new();
    let worker = run(worker(&[&replicas[0], &replicas[1]]).slots(3), gate.clone());
    store.add_job("a");
    gate.running(1).await;
    store.wait_for("the report of the start", |m| m.statuses.len() == 1).await;
    let first = store.until("the session", |m| m.openings.first().map(|opening| opening.0)).await;
    replicas[first].kill();
    store.wait_for("the next session", |m| m.openings.len() == 2 && holds(m, "a")).await;
    store.wait_for("credits for the free slots", |m| m.credits == 2).await;
    gate.open(1);
    store.wait_for("the completion", |m| m.completions.len() == 1).await;
    worker.stop().await;
    store.change(|m| {
        let (replica, opening) = &m.openings[1];
        assert_ne!(*replica, first);
        assert_eq!((opening.worker_id.as_str(), &opening.registration), ("worker-1", &None));
        assert_eq!(opening.held, [lease("a")]);
        assert!(m.completions[0].1.success);
    });
    assert_eq!(*gate.cancelled.borrow(), 0);
}

#[tokio::test]
async fn a_frozen_replica_is_left() {
    let store = Store::new();
    let mut replicas = [Replica::start(0, &store), Replica::start(1, &store)];
    let worker = run(worker(&[&replicas[0], &replicas[1]]), Echo);
    let first = store.until("the session", |m| m.openings.first().map(|opening| opening.0)).await;
    replicas[first].freeze();
    store.wait_for("a session with the other replica", |m| m.openings.len() == 2).await;
    store.add_job("a");
    store.wait_for("the completion", |m| m.completions.len() == 1).await;
    worker.drop_now().await;
}

#[tokio::test]
async fn an_unknown_worker_registers_again() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let worker = run(worker(&[&replica]).slots(10), Echo);
    store.wait_for("the session", |m| m.open == 1 && m.credits == 10).await;
    store.change(|m| m.known_ids.clear());
    store.wait_for("the new registration", |m| m.registrations.len() == 2).await;
    store.add_job("a");
    store.wait_for("the completion", |m| m.completions.len() == 1).await;
    worker.stop().await;
    store.change(|m| assert_eq!(m.registrations[0], m.registrations[1]));
}

#[tokio::test]
async fn a_worker_that_registers_again_stops_what_it_ran_before_and_reports_nothing_of_it() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    store.change(|m| m.completion_answers.push_back(CompletionAnswer::Silence));
    let gate = Gate::new();
    let worker = run(worker(&[&replica]).slots(3), gate.clone());
    store.add_job("unanswered");
    gate.open(1);
    store.wait_for("the completion", |m| m.completions.len() == 1).await;
    store.add_job("running");
    gate.running(1).await;
    store.change(|m| m.known_ids.clear());
    reaches(&gate.cancelled, 1).await;
    store.wait_for("credits for all slots", |m| m.registrations.len() == 2 && m.credits == 3).await;
    gate.open(1);
    store.add_job("new");
    store.wait_for("the completion", |m| m.completions.iter().any(|(_, job)| job.job_id == "new")).await;
    worker.stop().await;
    store.change(|m| assert_eq!(m.completions.len(), 2, "{:?}", m.completions));
}

#[tokio::test]
async fn a_worker_waits_for_a_replica_that_serves() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    replica.set(Mode::Unavailable);
    let worker = run(worker(&[&replica]).token(Some("counted")), Echo);
    store.wait_for("two attempts", |m| m.tokens.len() >= 2).await;
    replica.set(Mode::Serving);
    store.add_job("a");
    store.wait_for("the completion", |m| m.completions.len() == 1).await;
    worker.stop().await;
}

#[tokio::test]
async fn an_idle_worker_leaves_at_once() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let worker = run(worker(&[&replica]), Echo);
    store.wait_for("the session", |m| m.open == 1).await;
    worker.stop().await;
    store.wait_for("the end of the session", |m| m.open == 0).await;
    store.change(|m| assert_eq!(m.heartbeats.last().unwrap().1.status, "offline"));
}

#[tokio::test]
async fn a_refused_registration_ends_the_worker() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    store.change(|m| m.refuse_registrations = true);
    let ended = run(worker(&[&replica]), Echo).ended().await;
    assert!(matches!(ended, Err(WorkerError::Refused(reason)) if reason == "as told"));
}

#[tokio::test]
async fn a_shutdown_lets_the_running_job_finish() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let gate = Gate::new();
    let worker = run(worker(&[&replica]).slots(2), gate.clone());
    store.add_job("a");
    gate.running(1).await;
    worker.shutdown.cancel();
    store
        .wait_for("a heartbeat of a leaving worker", |m| {
            m.heartbeats.last().is_some_and(|(_, beat)| beat.status == "offline")
        })
        .await;
    let credits = store.change(|m| m.credits);
    gate.open(1);
    worker.ended().await.unwrap();
    store.change(|m| {
        assert!(m.completions[0].1.success);
        assert_eq!(m.credits, credits, "nothing is asked for during a drain");
    });
}

#[tokio::test]
async fn jobs_that_come_during_a_drain_are_given_back() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let gate = Gate::new();
    let worker = run(worker(&[&replica]).slots(2), gate.clone());
    store.add_job("a");
    gate.running(1).await;
    worker.shutdown.cancel();
    store
        .wait_for("a heartbeat of a leaving worker", |m| {
            m.heartbeats.last().is_some_and(|(_, beat)| beat.status == "offline")
        })
        .await;
    store.add_job("late");
    let late =
        store.until("the rejection", |m| m.statuses.iter().find(|s| s.status == "rejected").cloned()).await;
    assert_eq!((late.job_id.as_str(), late.execution_id.as_str()), ("late", "lease-late"));
    gate.open(1);
    worker.ended().await.unwrap();
    store.change(|m| assert_eq!(m.completions.len(), 1));
}

#[tokio::test]
async fn an_abort_ends_a_drain_and_reports_the_stopped_jobs() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let gate = Gate::new();
    let abort = CancellationToken::new();
    let worker = run(worker(&[&replica]).abort(abort.clone()), gate.clone());
    store.add_job("a");
    gate.running(1).await;
    worker.shutdown.cancel();
    abort.cancel();
    worker.ended().await.unwrap();
    store.change(|m| {
        assert!(!m.completions[0].1.success);
        assert_eq!(m.completions[0].1.error_code, "worker_stopped");
    });
}

#[tokio::test]
async fn a_dropped_worker_drops_its_handlers() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let gate = Gate::new();
    let worker = run(worker(&[&replica]), gate.clone());
    store.add_job("a");
    gate.running(1).await;
    worker.drop_now().await;
    reaches(&gate.ended, 1).await;
    store.change(|m| assert!(m.completions.is_empty()));
}
