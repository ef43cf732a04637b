//! How the worker runtime registers, outlives replicas and drains.

mod support;

use std::time::Duration;

use cortex_client::{CancellationToken, WorkerError};
use support::{
    Mode, Replica, Store,
    handlers::{Echo, Gate, reaches},
    holds, run, worker,
};
use tonic::Status;

#[tokio::test]
async fn a_completion_is_sent_to_the_next_replica_until_it_is_acknowledged() {
    let store = Store::new();
    let replicas = [0, 1, 2].map(|index| Replica::start(index, &store));
    store.change(|m| {
        m.completion_answers.extend([
            Err(Status::unavailable("no leader")),
            Err(Status::internal("broken pipe")),
            Err(Status::resource_exhausted("busy")),
            Err(Status::deadline_exceeded("slow")),
        ]);
    });
    let [a, b, c] = &replicas;
    let worker = run(worker(&[a, b, c]), Echo);
    store.add_job("a");
    store.wait_for("the fifth attempt", |m| m.completions.len() == 5).await;
    store.wait_for("letting go", |m| !m.heartbeats.is_empty() && !holds(m, "a")).await;
    worker.stop().await;
    store.change(|m| {
        let tried: Vec<usize> = m.completions.iter().map(|(replica, _)| *replica).collect();
        assert_ne!(tried[0], tried[1], "UNAVAILABLE leads to the next replica");
        assert_ne!(tried[1], tried[2], "INTERNAL leads to the next replica");
        assert_eq!(tried[2], tried[3], "RESOURCE_EXHAUSTED stays");
        assert_ne!(tried[3], tried[4], "DEADLINE_EXCEEDED leads to the next replica");
        assert!(m.completions.iter().all(|(_, c)| c == &m.completions[0].1));
        assert_eq!(m.registrations.len(), 1);
    });
}

#[tokio::test]
async fn the_worker_id_is_kept_across_a_reconnect_and_the_job_goes_on() {
    let store = Store::new();
    let mut replicas = [Replica::start(0, &store), Replica::start(1, &store)];
    let gate = Gate::new();
    let worker = run(worker(&[&replicas[0], &replicas[1]]).slots(2), gate.clone());
    store.add_job("a");
    gate.running(1).await;
    let first = store.until("a heartbeat", |m| m.heartbeats.last().map(|beat| beat.0)).await;
    store
        .wait_for("a quiet moment with a poll under way", |m| m.statuses.len() == 1 && m.waiting_polls == 1)
        .await;
    replicas[first].kill();
    store
        .wait_for("a heartbeat at the other replica", |m| {
            m.heartbeats.last().is_some_and(|beat| beat.0 != first) && holds(m, "a")
        })
        .await;
    store.wait_for("a poll at the other replica", |m| m.polls.iter().any(|poll| poll.0 != first)).await;
    gate.open(1);
    store.wait_for("the completion", |m| m.completions.len() == 1).await;
    worker.stop().await;
    store.change(|m| {
        assert_eq!(m.registrations.len(), 1, "registering again would lose the lease");
        let (replica, completion) = &m.completions[0];
        assert_ne!(*replica, first);
        assert_eq!(completion.worker_id, "worker-1");
        assert!(completion.success);
    });
    assert_eq!(*gate.cancelled.borrow(), 0);
}

#[tokio::test]
async fn a_frozen_replica_is_left_and_its_poll_with_it() {
    let store = Store::new();
    let replicas = [Replica::start(0, &store), Replica::start(1, &store)];
    let worker = run(worker(&[&replicas[0], &replicas[1]]).poll_wait(Duration::from_secs(30)), Echo);
    let first = store.until("a poll", |m| m.polls.first().map(|poll| poll.0)).await;
    let frozen_at = tokio::time::Instant::now();
    replicas[first].set(Mode::Frozen);
    store.wait_for("a poll at the other replica", |m| m.polls.iter().any(|poll| poll.0 != first)).await;
    assert!(frozen_at.elapsed() < Duration::from_secs(4));
    store.add_job("a");
    store.wait_for("the completion", |m| m.completions.len() == 1).await;
    worker.drop_now().await;
}

#[tokio::test]
async fn an_unknown_worker_registers_again() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let worker = run(worker(&[&replica]).slots(10), Echo);
    store.wait_for("two polls", |m| m.waiting_polls == 2).await;
    store.change(|m| m.known_ids.clear());
    store.wait_for("the new registration", |m| m.registrations.len() == 2).await;
    store.add_job("a");
    store.wait_for("the completion", |m| m.completions.len() == 1).await;
    worker.stop().await;
    store.change(|m| {
        assert_eq!(m.completions[0].1.worker_id, "worker-2");
        assert_eq!(m.registrations.len(), 2, "one of the callers registers for all");
        assert_eq!(m.registrations[0], m.registrations[1]);
    });
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
    store.wait_for("a poll for the other slot", |m| m.polls.len() == 2 && m.waiting_polls == 1).await;
    worker.shutdown.cancel();
    store.wait_for("the end of the last poll", |m| m.waiting_polls == 0).await;
    let (polls, beats) = store.change(|m| (m.polls.len(), m.heartbeats.len()));
    store
        .wait_for("more heartbeats of a leaving worker", |m| {
            m.heartbeats.len() > beats + 3
                && m.heartbeats.last().is_some_and(|(_, beat)| beat.status == "offline")
        })
        .await;
    gate.open(1);
    worker.ended().await.unwrap();
    store.change(|m| {
        assert_eq!(m.polls.len(), polls, "nothing is fetched during a drain");
        assert!(m.completions[0].1.success);
    });
}

#[tokio::test]
async fn jobs_that_come_during_a_drain_are_given_back() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let gate = Gate::new();
    let worker = run(worker(&[&replica]).slots(2).poll_wait(Duration::from_secs(10)), gate.clone());
    store.add_job("a");
    gate.running(1).await;
    store.wait_for("the next poll", |m| m.waiting_polls == 1).await;
    worker.shutdown.cancel();
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
