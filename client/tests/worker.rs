//! The worker runtime against replicas that fail in all the ways they can.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use cortex_client::{
    AssignedJob, CancellationToken, ExecHandler, Handler, JobFailure, WorkerError,
    proto::{JobCompletionResponse, PollJobResponse},
};
use serde_json::{Value, json};
use support::{Memory, Mode, Replica, Store, job, run, worker};
use tokio::sync::{Semaphore, watch};
use tonic::Status;

/// Answers a job's input.
struct Echo;

impl Handler for Echo {
    async fn run(&self, job: AssignedJob, _cancel: CancellationToken) -> Result<Value, JobFailure> {
        job.input()
    }
}

/// Runs until it is let go or cancelled, and counts.
#[derive(Clone)]
struct Gate {
    gate: Arc<Semaphore>,
    running: watch::Sender<usize>,
    most: Arc<AtomicUsize>,
    cancelled: watch::Sender<usize>,
    ended: watch::Sender<usize>,
}

impl Gate {
    fn new() -> Self {
        Self {
            gate: Arc::new(Semaphore::new(0)),
            running: watch::Sender::new(0),
            most: Arc::default(),
            cancelled: watch::Sender::new(0),
            ended: watch::Sender::new(0),
        }
    }

    fn open(&self, jobs: usize) {
        self.gate.add_permits(jobs);
    }

    async fn running(&self, jobs: usize) {
        reaches(&self.running, jobs).await;
    }
}

struct Ended<'a>(&'a Gate);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.running.send_modify(|n| *n -= 1);
        self.0.ended.send_modify(|n| *n += 1);
    }
}

impl Handler for Gate {
    async fn run(&self, _job: AssignedJob, cancel: CancellationToken) -> Result<Value, JobFailure> {
        self.running.send_modify(|n| *n += 1);
        let _ended = Ended(self);
        self.most
            .fetch_max(*self.running.borrow(), Ordering::SeqCst);
        tokio::select! {
            permit = self.gate.acquire() => permit.unwrap().forget(),
            () = cancel.cancelled() => self.cancelled.send_modify(|n| *n += 1),
        }
        // Success even when cancelled: the runtime must know better.
        Ok(json!({}))
    }
}

async fn reaches(count: &watch::Sender<usize>, at_least: usize) {
    let mut count = count.subscribe();
    let reached = count.wait_for(|n| *n >= at_least);
    tokio::time::timeout(Duration::from_secs(20), reached)
        .await
        .expect("the count was never reached")
        .unwrap();
}

fn holds(memory: &Memory, job_id: &str) -> bool {
    let last = memory.heartbeats.last();
    last.is_some_and(|(_, beat)| beat.current_jobs.iter().any(|id| id == job_id))
}

#[tokio::test]
async fn a_job_is_run_and_completed_with_its_lease_token() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let worker = run(
        worker(&[&replica])
            .slots(3)
            .models(["echo", "other"])
            .gpu(true)
            .memory_gb(1.5)
            .token(Some("secret")),
        Echo,
    );
    store.add_job("a");
    store
        .wait_for("the completion", |m| m.completions.len() == 1)
        .await;
    worker.stop().await;
    store.change(|memory| {
        let (_, completion) = &memory.completions[0];
        assert!(completion.success);
        assert_eq!(completion.job_id, "a");
        assert_eq!(completion.worker_id, "worker-1");
        assert_eq!(completion.execution_id, "lease-a");
        assert_eq!(completion.attempt_number, 2);
        assert_eq!(&completion.output_data[..], br#"{"id":"a"}"#);
        let registration = &memory.registrations[0];
        assert_eq!(registration.max_concurrent_jobs, 3);
        assert_eq!(registration.heartbeat_interval_seconds, 5);
        assert_eq!(registration.ip_address, "127.0.0.1");
        assert_eq!(registration.capabilities["models"], r#"["echo","other"]"#);
        assert_eq!(registration.capabilities["gpu"], "true");
        assert_eq!(registration.capabilities["memory_gb"], "1.5");
        assert!(memory.tokens.iter().all(|token| token == "Bearer secret"));
        assert!(memory.tokens.len() > 3);
    });
}

#[tokio::test]
async fn a_job_is_reported_running_and_named_in_heartbeats() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let gate = Gate::new();
    let worker = run(worker(&[&replica]), gate.clone());
    store
        .wait_for("an idle heartbeat", |m| {
            m.heartbeats.last().is_some_and(|(_, beat)| {
                beat.status == "idle" && beat.metrics.contains_key("memory_usage_mb")
            })
        })
        .await;
    store.add_job("a");
    let status = store.until("the report", |m| m.statuses.pop()).await;
    assert_eq!(status.status, "running");
    assert_eq!(status.execution_id, "lease-a");
    assert_eq!(status.attempt_number, 2);
    store
        .wait_for("the job in a heartbeat", |m| holds(m, "a"))
        .await;
    store.change(|m| {
        let (_, beat) = m.heartbeats.last().unwrap();
        assert_eq!((beat.status.as_str(), beat.current_job_count), ("busy", 1));
    });
    gate.open(1);
    store
        .wait_for("an idle heartbeat", |m| !holds(m, "a"))
        .await;
    worker.stop().await;
}

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
    store
        .wait_for("the fifth attempt", |m| m.completions.len() == 5)
        .await;
    store
        .wait_for("letting go", |m| !m.heartbeats.is_empty() && !holds(m, "a"))
        .await;
    worker.stop().await;
    store.change(|m| {
        let tried: Vec<usize> = m.completions.iter().map(|(replica, _)| *replica).collect();
        assert_ne!(tried[0], tried[1], "UNAVAILABLE leads to the next replica");
        assert_ne!(tried[1], tried[2], "INTERNAL leads to the next replica");
        assert_eq!(tried[2], tried[3], "RESOURCE_EXHAUSTED stays");
        assert_ne!(
            tried[3], tried[4],
            "DEADLINE_EXCEEDED leads to the next replica"
        );
        assert!(m.completions.iter().all(|(_, c)| c == &m.completions[0].1));
        assert_eq!(m.registrations.len(), 1);
    });
}

#[tokio::test]
async fn an_unacknowledged_completion_keeps_its_job_in_the_heartbeats() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let failures = (0..4).map(|_| Err(Status::unavailable("no leader")));
    store.change(|m| m.completion_answers.extend(failures));
    let worker = run(worker(&[&replica]), Echo);
    store.add_job("a");
    store
        .wait_for("the second attempt", |m| m.completions.len() >= 2)
        .await;
    store
        .wait_for("the job in a heartbeat", |m| holds(m, "a"))
        .await;
    store.wait_for("letting go", |m| !holds(m, "a")).await;
    store.change(|m| assert_eq!(m.completions.len(), 5));
    worker.stop().await;
}

#[tokio::test]
async fn a_refused_completion_is_dropped() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    store.change(|m| {
        m.completion_answers.push_back(Ok(JobCompletionResponse {
            acknowledged: false,
            message: "stale lease".to_owned(),
        }));
    });
    let worker = run(worker(&[&replica]), Echo);
    store.add_job("a");
    store.add_job("b");
    store
        .wait_for("the next completion", |m| m.completions.len() == 2)
        .await;
    worker.stop().await;
    store.change(|m| {
        let ids: Vec<_> = m
            .completions
            .iter()
            .map(|(_, c)| c.job_id.as_str())
            .collect();
        assert_eq!(ids, ["a", "b"]);
    });
}

#[tokio::test]
async fn an_output_that_the_server_cannot_take_fails_the_job() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let refusal = Err(Status::invalid_argument("output too large"));
    store.change(|m| m.completion_answers.push_back(refusal));
    let worker = run(worker(&[&replica]), Echo);
    store.add_job("a");
    store
        .wait_for("the replacement", |m| m.completions.len() == 2)
        .await;
    worker.stop().await;
    store.change(|m| {
        let (_, second) = &m.completions[1];
        assert!(!second.success);
        assert_eq!(second.error_code, "bad_output");
        assert_eq!(second.execution_id, "lease-a");
    });
}

#[tokio::test]
async fn a_cancelled_jobs_handler_is_told_and_success_is_not_reported() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let gate = Gate::new();
    let worker = run(worker(&[&replica]).slots(2), gate.clone());
    store.add_job("a");
    store.add_job("b");
    gate.running(2).await;
    store.change(|m| m.cancelled.push("a".to_owned()));
    reaches(&gate.cancelled, 1).await;
    let (_, completion) = store.until("the completion", |m| m.completions.pop()).await;
    assert_eq!(completion.job_id, "a");
    assert!(!completion.success);
    assert_eq!(completion.error_code, "cancelled");
    gate.open(1);
    let (_, completion) = store
        .until("the other's completion", |m| m.completions.pop())
        .await;
    assert!(completion.job_id == "b" && completion.success);
    worker.stop().await;
}

#[tokio::test]
async fn a_job_whose_lease_is_gone_at_its_start_is_stopped() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    store.change(|m| m.refuse_statuses = true);
    let gate = Gate::new();
    let worker = run(worker(&[&replica]), gate.clone());
    store.add_job("a");
    reaches(&gate.cancelled, 1).await;
    worker.stop().await;
}

#[tokio::test]
async fn the_worker_id_is_kept_across_a_reconnect_and_the_job_goes_on() {
    let store = Store::new();
    let mut replicas = [Replica::start(0, &store), Replica::start(1, &store)];
    let gate = Gate::new();
    let worker = run(worker(&[&replicas[0], &replicas[1]]).slots(2), gate.clone());
    store.add_job("a");
    gate.running(1).await;
    let first = store
        .until("a heartbeat", |m| m.heartbeats.last().map(|beat| beat.0))
        .await;
    store
        .wait_for("a quiet moment with a poll under way", |m| {
            m.statuses.len() == 1 && m.waiting_polls == 1
        })
        .await;
    replicas[first].kill();
    store
        .wait_for("a heartbeat at the other replica", |m| {
            m.heartbeats.last().is_some_and(|beat| beat.0 != first) && holds(m, "a")
        })
        .await;
    gate.open(1);
    store
        .wait_for("the completion", |m| m.completions.len() == 1)
        .await;
    worker.stop().await;
    store.change(|m| {
        assert_eq!(
            m.registrations.len(),
            1,
            "registering again would lose the lease"
        );
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
    let worker = run(
        worker(&[&replicas[0], &replicas[1]]).poll_wait(Duration::from_secs(30)),
        Echo,
    );
    let first = store
        .until("a poll", |m| m.polls.first().map(|poll| poll.0))
        .await;
    let frozen_at = tokio::time::Instant::now();
    replicas[first].set(Mode::Frozen);
    store
        .wait_for("a poll at the other replica", |m| {
            m.polls.iter().any(|poll| poll.0 != first)
        })
        .await;
    assert!(frozen_at.elapsed() < Duration::from_secs(4));
    store.add_job("a");
    store
        .wait_for("the completion", |m| m.completions.len() == 1)
        .await;
    worker.drop_now().await;
}

#[tokio::test]
async fn an_unknown_worker_registers_again() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let worker = run(worker(&[&replica]).slots(10), Echo);
    store.wait_for("two polls", |m| m.waiting_polls == 2).await;
    store.change(|m| m.known_ids.clear());
    store
        .wait_for("the new registration", |m| m.registrations.len() == 2)
        .await;
    store.add_job("a");
    store
        .wait_for("the completion", |m| m.completions.len() == 1)
        .await;
    worker.stop().await;
    store.change(|m| {
        assert_eq!(m.completions[0].1.worker_id, "worker-2");
        assert_eq!(
            m.registrations.len(),
            2,
            "one of the callers registers for all"
        );
        assert_eq!(m.registrations[0], m.registrations[1]);
    });
}

#[tokio::test]
async fn a_worker_waits_for_a_replica_that_serves() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    replica.set(Mode::Unavailable);
    let worker = run(worker(&[&replica]).token(Some("counted")), Echo);
    store
        .wait_for("two attempts", |m| m.tokens.len() >= 2)
        .await;
    replica.set(Mode::Serving);
    store.add_job("a");
    store
        .wait_for("the completion", |m| m.completions.len() == 1)
        .await;
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
    store
        .wait_for("a poll for the other slot", |m| {
            m.polls.len() == 2 && m.waiting_polls == 1
        })
        .await;
    worker.shutdown.cancel();
    store
        .wait_for("the end of the last poll", |m| m.waiting_polls == 0)
        .await;
    let (polls, beats) = store.change(|m| (m.polls.len(), m.heartbeats.len()));
    store
        .wait_for("more heartbeats of a full worker", |m| {
            m.heartbeats.len() > beats + 3
                && m.heartbeats
                    .last()
                    .is_some_and(|(_, beat)| beat.current_job_count == 2)
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
    let worker = run(
        worker(&[&replica])
            .slots(2)
            .poll_wait(Duration::from_secs(10)),
        gate.clone(),
    );
    store.add_job("a");
    gate.running(1).await;
    store
        .wait_for("the next poll", |m| m.waiting_polls == 1)
        .await;
    worker.shutdown.cancel();
    store.add_job("late");
    let late = store
        .until("the rejection", |m| {
            m.statuses.iter().find(|s| s.status == "rejected").cloned()
        })
        .await;
    assert_eq!(
        (late.job_id.as_str(), late.execution_id.as_str()),
        ("late", "lease-late")
    );
    store.change(|m| m.pending.push("never fetched".to_owned()));
    store
        .wait_for("the second rejection", |m| {
            let rejected = |s: &&_| {
                matches!(s, cortex_client::proto::JobStatusUpdate { status, job_id, .. }
            if status == "rejected" && job_id == "never fetched")
            };
            m.statuses.iter().find(rejected).is_some()
        })
        .await;
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
async fn no_more_jobs_run_than_there_are_slots() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let gate = Gate::new();
    for id in 0..30 {
        store.add_job(&id.to_string());
    }
    let worker = run(worker(&[&replica]).slots(12), gate.clone());
    gate.running(12).await;
    store
        .wait_for("all running reports", |m| m.statuses.len() == 12)
        .await;
    store.change(|m| assert_eq!(m.jobs.len(), 18, "a job is fetched for a free slot only"));
    gate.open(30);
    store
        .wait_for("all completions", |m| m.completions.len() == 30)
        .await;
    assert_eq!(gate.most.load(Ordering::SeqCst), 12);
    worker.stop().await;
}

#[tokio::test]
async fn a_job_that_passes_its_timeout_is_cancelled_and_fails() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let gate = Gate::new();
    let worker = run(worker(&[&replica]), gate.clone());
    store.add(PollJobResponse {
        timeout_seconds: 1,
        ..job("a")
    });
    let (_, completion) = store.until("the completion", |m| m.completions.pop()).await;
    assert!(!completion.success);
    assert_eq!(completion.error_code, "timeout");
    assert!(completion.duration_ms >= 1000);
    assert_eq!(*gate.cancelled.borrow(), 1);
    worker.stop().await;
}

#[tokio::test]
async fn a_command_that_passes_its_timeout_is_killed_with_its_grandchildren() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let command = format!(
        "sh -c 'sleep 1000; true' & echo $! > {}; wait",
        file.display()
    );
    let worker = run(worker(&[&replica]), ExecHandler::new(command));
    store.add(PollJobResponse {
        timeout_seconds: 1,
        ..job("a")
    });
    let (_, completion) = store.until("the completion", |m| m.completions.pop()).await;
    assert_eq!(completion.error_code, "timeout");
    let pid = std::fs::read_to_string(file).unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
    // Init may not have reaped it yet.
    assert!(stat.is_err() || stat.is_ok_and(|stat| stat.contains(") Z ")));
    worker.stop().await;
}

#[tokio::test]
async fn a_panic_fails_its_job_and_not_the_worker() {
    struct Panics;
    impl Handler for Panics {
        async fn run(&self, job: AssignedJob, _: CancellationToken) -> Result<Value, JobFailure> {
            assert_ne!(job.id, "a", "no");
            Ok(json!([1]))
        }
    }
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let worker = run(worker(&[&replica]), Panics);
    store.add_job("a");
    let (_, completion) = store.until("the completion", |m| m.completions.pop()).await;
    assert_eq!(completion.error_code, "panic");
    assert!(completion.error_message.contains("no"));
    store.add_job("b");
    let (_, completion) = store.until("the completion", |m| m.completions.pop()).await;
    assert_eq!(completion.error_code, "bad_output");
    worker.stop().await;
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
