//! What the worker runtime does with jobs.

mod support;

use std::sync::atomic::Ordering;
use std::time::Duration;

use cortex_client::{
    AssignedJob, CancellationToken, ExecHandler, Handler, JobFailure, ReportOutcome, Settled,
    proto::PollJobResponse,
};
use serde_json::{Value, json};
use support::{
    CompletionAnswer, Replica, Store,
    handlers::{Echo, Gate, reaches},
    holds, job, lease, run, worker,
};
use tokio::sync::mpsc;
use tonic::Code;

#[tokio::test]
async fn a_job_is_run_and_completed_with_its_lease_token() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let worker = run(
        worker(&[&replica]).slots(3).models(["echo", "other"]).gpu(true).memory_gb(1.5).token(Some("secret")),
        Echo,
    );
    store.add_job("a");
    store.wait_for("the completion", |m| m.completions.len() == 1).await;
    worker.stop().await;
    store.change(|memory| {
        let (_, completion) = &memory.completions[0];
        assert!(completion.success);
        assert_eq!(completion.job_id, "a");
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
        assert!(!memory.tokens.is_empty());
    });
}

#[tokio::test]
async fn a_job_that_runs_for_a_while_is_reported_running_and_a_short_one_is_not() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let gate = Gate::new();
    let worker = run(worker(&[&replica]).slots(2), gate.clone());
    store
        .wait_for("an idle heartbeat", |m| {
            m.heartbeats.last().is_some_and(|(_, beat)| {
                beat.status == "idle" && beat.metrics.contains_key("memory_usage_mb")
            })
        })
        .await;
    gate.open(1);
    store.add_job("short");
    store.wait_for("the end of the short one", |m| m.completions.len() == 1).await;
    store.add_job("long");
    let status = store.until("the report", |m| m.statuses.pop()).await;
    assert_eq!((status.status.as_str(), status.job_id.as_str()), ("running", "long"));
    assert_eq!((status.execution_id.as_str(), status.attempt_number), ("lease-long", 2));
    store
        .wait_for("a busy heartbeat", |m| m.heartbeats.last().is_some_and(|(_, beat)| beat.status == "busy"))
        .await;
    gate.open(1);
    store.wait_for("the end", |m| m.completions.len() == 2).await;
    store.change(|m| assert!(m.statuses.is_empty(), "the short one was never reported as running"));
    worker.stop().await;
}

#[tokio::test]
async fn the_models_that_a_handler_has_loaded_are_told() {
    struct Loaded;
    impl Handler for Loaded {
        async fn run(&self, job: AssignedJob, _: CancellationToken) -> Result<Value, JobFailure> {
            job.input()
        }
        fn loaded_models(&self) -> Vec<String> {
            (0..150).map(|n| format!("model-{n}")).collect()
        }
    }
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let worker = run(worker(&[&replica]), Loaded);
    let beat = store.until("a heartbeat", |m| m.heartbeats.pop()).await.1;
    assert_eq!((beat.loaded_models.len(), beat.loaded_models[0].as_str()), (100, "model-0"));
    worker.stop().await;
}

#[tokio::test]
async fn a_completion_that_cannot_be_taken_now_is_sent_again_on_the_same_session() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let codes = [Code::Unavailable, Code::ResourceExhausted, Code::Unknown, Code::Internal];
    store.change(|m| m.completion_answers.extend(codes.map(CompletionAnswer::Refused)));
    let worker = run(worker(&[&replica]), Echo);
    store.add_job("a");
    store.wait_for("the fifth attempt", |m| m.completions.len() == 5).await;
    worker.stop().await;
    store.change(|m| {
        assert!(m.completions.iter().all(|(_, completion)| *completion == m.completions[0].1));
        assert_eq!(m.openings.len(), 1);
    });
}

#[tokio::test]
async fn an_unanswered_completion_is_sent_again_on_the_next_session_which_names_its_job_as_held() {
    let store = Store::new();
    let mut replicas = [Replica::start(0, &store), Replica::start(1, &store)];
    store.change(|m| m.completion_answers.push_back(CompletionAnswer::Silence));
    let worker = run(worker(&[&replicas[0], &replicas[1]]), Echo);
    store.add_job("a");
    let first = store.until("the completion", |m| m.completions.first().map(|first| first.0)).await;
    replicas[first].kill();
    store.wait_for("the second attempt", |m| m.completions.len() == 2).await;
    store.change(|m| {
        assert!(holds(m, "a"));
        assert_eq!(m.completions[0].1, m.completions[1].1);
    });
    worker.stop().await;
}

#[tokio::test]
async fn a_refused_completion_is_dropped() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    store.change(|m| m.completion_answers.push_back(CompletionAnswer::Refused(Code::FailedPrecondition)));
    let worker = run(worker(&[&replica]), Echo);
    store.add_job("a");
    store.add_job("b");
    store.wait_for("the next completion", |m| m.completions.len() == 2).await;
    worker.stop().await;
    store.change(|m| {
        let ids: Vec<_> = m.completions.iter().map(|(_, c)| c.job_id.as_str()).collect();
        assert_eq!(ids, ["a", "b"]);
    });
}

#[tokio::test]
async fn a_handler_hears_once_what_became_of_each_end() {
    struct Listening(mpsc::UnboundedSender<Settled>);
    impl Handler for Listening {
        async fn run(&self, job: AssignedJob, _: CancellationToken) -> Result<Value, JobFailure> {
            job.input()
        }
        fn settled(&self, end: Settled) {
            self.0.send(end).unwrap();
        }
    }
    async fn next(ends: &mut mpsc::UnboundedReceiver<Settled>) -> Option<Settled> {
        tokio::time::timeout(Duration::from_secs(20), ends.recv()).await.expect("nothing was said")
    }
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let (told, mut ends) = mpsc::unbounded_channel();
    let worker = run(worker(&[&replica]), Listening(told));
    let refused = ReportOutcome::Refused { reason: "as told".to_owned() };
    let cases = [
        ("sent again", Code::Unavailable, None, ReportOutcome::Acknowledged),
        ("stale", Code::FailedPrecondition, None, refused),
        ("not taken", Code::InvalidArgument, Some("bad_output"), ReportOutcome::Acknowledged),
    ];
    for (id, answer, code, outcome) in cases {
        store.change(|m| m.completion_answers.push_back(CompletionAnswer::Refused(answer)));
        store.add_job(id);
        let end = next(&mut ends).await.unwrap();
        assert_eq!(end.is_completed(), id == "sent again");
        assert_eq!((end.job_id.as_str(), end.execution_id, end.attempt), (id, format!("lease-{id}"), 2));
        assert_eq!(end.failure.and_then(|failure| failure.code).as_deref(), code);
        assert_eq!(end.outcome, outcome);
    }
    store.change(|m| m.completion_answers.push_back(CompletionAnswer::Silence));
    store.add_job("unanswered");
    store
        .wait_for("the completion", |m| m.completions.iter().any(|(_, end)| end.job_id == "unanswered"))
        .await;
    store.change(|m| m.known_ids.clear());
    let end = next(&mut ends).await.unwrap();
    assert_eq!((end.job_id.as_str(), end.outcome), ("unanswered", ReportOutcome::Unknown));
    worker.stop().await;
    assert_eq!(next(&mut ends).await, None);
}

#[tokio::test]
async fn an_output_that_the_server_cannot_take_fails_the_job() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    store.change(|m| m.completion_answers.push_back(CompletionAnswer::Refused(Code::InvalidArgument)));
    let worker = run(worker(&[&replica]), Echo);
    store.add_job("a");
    store.wait_for("the replacement", |m| m.completions.len() == 2).await;
    worker.stop().await;
    store.change(|m| {
        let (_, second) = &m.completions[1];
        assert!(!second.success);
        assert_eq!(second.error_code, "bad_output");
        assert_eq!(second.execution_id, "lease-a");
    });
}

#[tokio::test]
async fn a_result_that_is_too_large_for_the_server_fails_its_job_and_no_other() {
    struct Large;
    impl Handler for Large {
        async fn run(&self, job: AssignedJob, _: CancellationToken) -> Result<Value, JobFailure> {
            let size = if job.id == "huge" { 5 << 20 } else { 600 << 10 };
            Ok(json!({"text": "x".repeat(size)}))
        }
    }
    let store = Store::new();
    // The server of the tests takes 4 MiB.
    let replica = Replica::start(0, &store);
    let ids = ["a", "b", "huge", "c", "d", "e", "f", "g"];
    ids.iter().for_each(|id| store.add_job(id));
    let worker = run(worker(&[&replica]).slots(8), Large);
    let ended = |m: &support::Memory| ids.iter().all(|id| m.completions.iter().any(|(_, c)| c.job_id == *id));
    store.wait_for("the end of all", ended).await;
    worker.stop().await;
    store.change(|m| {
        for (_, completion) in &m.completions {
            assert_eq!(completion.success, completion.job_id != "huge", "{}", completion.job_id);
        }
    });
}

#[tokio::test]
async fn a_job_that_was_taken_away_is_stopped_and_not_reported() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let gate = Gate::new();
    let worker = run(worker(&[&replica]).slots(2), gate.clone());
    store.add_job("a");
    store.add_job("b");
    gate.running(2).await;
    store.change(|m| m.ended.push(lease("a")));
    reaches(&gate.cancelled, 1).await;
    store.wait_for("the slot's credit", |m| m.credits == 1).await;
    gate.open(1);
    store.wait_for("the other's completion", |m| !m.completions.is_empty()).await;
    worker.stop().await;
    store.change(|m| {
        let ids: Vec<_> = m.completions.iter().map(|(_, c)| (c.job_id.as_str(), c.success)).collect();
        assert_eq!(ids, [("b", true)]);
    });
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
async fn a_job_that_is_pushed_twice_runs_once_and_costs_no_credit() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let gate = Gate::new();
    let worker = run(worker(&[&replica]).slots(2), gate.clone());
    store.add_job("a");
    store.add_job("a");
    gate.running(1).await;
    store.wait_for("the credit of the second push", |m| m.pushed.len() == 2 && m.credits == 1).await;
    gate.open(2);
    store.wait_for("the completion", |m| m.completions.len() == 1).await;
    worker.stop().await;
    assert_eq!(*gate.ended.borrow(), 1);
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
    store.wait_for("all running reports", |m| m.statuses.len() == 12).await;
    store.change(|m| assert_eq!(m.jobs.len(), 18, "a job is pushed for a free slot only"));
    gate.open(30);
    store.wait_for("all completions", |m| m.completions.len() == 30).await;
    assert_eq!(gate.most.load(Ordering::SeqCst), 12);
    worker.stop().await;
}

#[tokio::test]
async fn a_worker_that_got_more_than_it_asked_for_asks_for_less_until_it_has_slots() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let gate = Gate::new();
    let worker = run(worker(&[&replica]).slots(2), gate.clone());
    store.wait_for("credits", |m| m.credits == 2).await;
    store.change(|m| {
        m.unasked = 5;
        m.jobs.extend(["a", "b", "c", "d", "e"].map(job));
    });
    gate.open(5);
    store.wait_for("all ends", |m| m.completions.len() == 5).await;
    store.change(|m| assert_eq!(m.credits, 2));
    worker.stop().await;
}

#[tokio::test]
async fn a_job_that_passes_its_timeout_is_cancelled_and_fails() {
    let store = Store::new();
    let replica = Replica::start(0, &store);
    let gate = Gate::new();
    let worker = run(worker(&[&replica]), gate.clone());
    store.add(PollJobResponse { timeout_seconds: 1, ..job("a") });
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
    let command = format!("sh -c 'sleep 1000; true' & echo $! > {}; wait", file.display());
    let worker = run(worker(&[&replica]), ExecHandler::new(command));
    store.add(PollJobResponse { timeout_seconds: 1, ..job("a") });
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
