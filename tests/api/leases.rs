//! Who may report on a job, and until when: everybody else is refused, and no row changes.

use cortex_client::proto::{JobCompletion, PollJobResponse};
use serde_json::{Value, json};

use crate::group::{Api, REPLICAS};
use crate::hand::{Hand, connect};
use crate::support::eventually;

/// Sends a report to every replica; answers whether all of them acknowledged it.
async fn acknowledged(api: &Api, hand: &Hand, report: &JobCompletion) -> bool {
    let mut answers = Vec::new();
    for replica in 0..REPLICAS {
        let answer = connect(api, replica).await.complete_job(report.clone()).await.unwrap().into_inner();
        assert!(answer.acknowledged || !answer.message.is_empty(), "a refusal has a reason");
        answers.push(answer.acknowledged);
    }
    answers.push(hand.report(report).await.acknowledged);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}");
    answers[0]
}

/// Every report that somebody could still send about `job` is refused, and no row changes.
async fn refused(api: &Api, hand: &Hand, job: &PollJobResponse) {
    let before = api.rows(&job.job_id).await;
    for report in [hand.success(job, &json!({"late": true})), hand.failure(job, "late", "late")] {
        assert!(!acknowledged(api, hand, &report).await, "{report:?}");
        let tokenless = JobCompletion { execution_id: String::new(), attempt_number: 0, ..report };
        assert!(!acknowledged(api, hand, &tokenless).await, "{tokenless:?}");
    }
    for status in ["running", "rejected", "failed"] {
        let answer = hand.status(job, status).await;
        assert!(!answer.acknowledged && !answer.message.is_empty(), "{status}: {answer:?}");
    }
    assert_eq!(api.rows(&job.job_id).await, before);
}

#[tokio::test]
async fn an_accepted_report_is_acknowledged_again_and_changes_nothing_while_another_one_is_refused() {
    let api = Api::of("repeated-reports").await;
    let hand = Hand::new(&api, 1, 4).await;
    let retry =
        json!({"metadata": {"retry_policy": {"initial_delay_seconds": 3600, "max_delay_seconds": 3600}}});
    for with_token in [true, false] {
        for (retries, succeeds) in [(3, true), (0, false), (3, false)] {
            let mut fields = retry.clone();
            fields["max_retries"] = json!(retries);
            api.submit(0, &fields).await;
            let mut job = hand.job().await;
            let token = std::mem::take(&mut job.execution_id);
            if with_token {
                job.execution_id = token;
            }
            let accepted = match succeeds {
                true => hand.success(&job, &json!({"a": [1, 2.0], "b": "é"})),
                false => hand.failure(&job, "out of memory", "oom"),
            };
            assert!(hand.report(&accepted).await.acknowledged);
            let before = api.rows(&job.job_id).await;
            let ended = if succeeds { "completed" } else { "failed" };
            assert_eq!(before["executions"][0]["status"], ended);
            let waits = retries > 0 && !succeeds;
            assert_eq!(before["job"]["status"], if waits { "pending" } else { ended });
            assert!(acknowledged(&api, &hand, &accepted).await);
            // The same JSON in other words is the same output; a failure has none.
            let words = &br#"{"b":"\u00e9", "a":[1,2.0]}"#[..];
            let reworded = JobCompletion { output_data: words.into(), ..accepted.clone() };
            assert!(acknowledged(&api, &hand, &reworded).await, "{reworded:?}");
            for other in [
                hand.success(&job, &json!({"a": [1, 3]})),
                JobCompletion { output_data: bytes::Bytes::new(), ..hand.success(&job, &json!({})) },
                hand.failure(&job, "another reason", "oom"),
                hand.failure(&job, "out of memory", "another_code"),
                JobCompletion { success: !succeeds, ..accepted.clone() },
            ] {
                assert!(!acknowledged(&api, &hand, &other).await, "{other:?}");
            }
            assert!(!hand.status(&job, "running").await.acknowledged);
            assert_eq!(api.rows(&job.job_id).await, before, "{accepted:?}");
        }
    }
    api.leave().await;
}

#[tokio::test]
async fn a_job_answers_to_its_holder_under_its_current_token_alone() {
    let api = Api::of("holder").await;
    let (hand, idle) = (Hand::new(&api, 0, 2).await, Hand::with(&api, 1, 1, &[("models", "[]")]).await);
    api.submit(0, &json!({})).await;
    api.submit(0, &json!({})).await;
    let (job, other) = (hand.job().await, hand.job().await);
    for running in [false, true] {
        if running {
            assert!(hand.status(&job, "running").await.acknowledged);
        }
        refused(&api, &idle, &job).await;
        // A token of nobody's, and one of another job.
        for execution_id in ["0190a5c0-0000-7000-8000-000000000001", &other.execution_id] {
            let mistaken = PollJobResponse { execution_id: execution_id.to_owned(), ..job.clone() };
            let before = (api.rows(&job.job_id).await, api.rows(&other.job_id).await);
            assert!(!acknowledged(&api, &hand, &hand.success(&mistaken, &json!({}))).await);
            assert!(!acknowledged(&api, &hand, &hand.failure(&mistaken, "no", "")).await);
            assert!(!hand.status(&mistaken, "running").await.acknowledged);
            assert_eq!((api.rows(&job.job_id).await, api.rows(&other.job_id).await), before);
        }
    }
    assert!(hand.report(&hand.success(&job, &json!({"a": 1}))).await.acknowledged);
    refused(&api, &idle, &job).await;
    api.leave().await;
}

#[tokio::test]
async fn who_names_another_s_lease_for_a_job_of_its_own_ends_nothing() {
    let api = Api::of("mixed-up").await;
    let (holder, other) = (Hand::new(&api, 0, 1).await, Hand::with(&api, 1, 1, &[("models", "none")]).await);
    api.submit(0, &json!({})).await;
    let held = holder.job().await;
    let own = api.submit(0, &json!({"model_name": format!("{}-none", api.name)})).await;
    for job_id in [own, "00000000-0000-7000-8000-000000000000".to_owned(), held.job_id.clone()] {
        let mixed = PollJobResponse { job_id, ..held.clone() };
        let report = other.client.clone().complete_job(other.success(&mixed, &json!({"a": 1}))).await;
        assert!(report.is_err() || !report.unwrap().into_inner().acknowledged);
        let heartbeat = holder.heartbeat(&[&held]).await.unwrap();
        assert!(heartbeat.cancelled_jobs.is_empty(), "its lease is live");
    }
    assert!(holder.report(&holder.success(&held, &json!({"a": 1}))).await.acknowledged);
    api.leave().await;
}

#[tokio::test]
async fn a_report_of_running_moves_the_job_and_says_it_once() {
    let api = Api::of("running").await;
    let hand = Hand::new(&api, 2, 1).await;
    let id = api.submit(0, &json!({"timeout_seconds": 60})).await;
    let job = hand.job().await;
    let assigned = api.rows(&id).await;
    assert_eq!(
        (&assigned["job"]["status"], &assigned["job"]["started_at"]),
        (&json!("assigned"), &Value::Null)
    );
    assert_eq!(assigned["executions"][0]["status"], "started");
    assert!(hand.status(&job, "running").await.acknowledged);
    let running = api.rows(&id).await;
    assert_eq!(
        (&running["job"]["status"], &running["executions"][0]["status"]),
        (&json!("running"), &json!("running"))
    );
    assert!(running["job"]["started_at"].is_string());
    assert_eq!(running["job"]["lease_id"], job.execution_id);
    assert!(hand.status(&job, "running").await.acknowledged);
    assert_eq!(api.rows(&id).await, running);
    assert!(hand.report(&hand.success(&job, &json!({"a": 1}))).await.acknowledged);
    let attempts = api.executions(1, &id).await;
    assert_eq!((&attempts[0]["id"], &attempts[0]["duration_ms"]), (&json!(job.execution_id), &json!(7)));
    assert_eq!(attempts[0]["output_data"], json!({"a": 1}));
    api.leave().await;
}

#[tokio::test]
async fn after_a_cancellation_no_report_counts_and_no_lease_is_given() {
    let api = Api::of("cancelled").await;
    let hand = Hand::new(&api, 1, 2).await;
    for running in [false, true] {
        let id = api.submit(0, &json!({})).await;
        let job = hand.job().await;
        if running {
            assert!(hand.status(&job, "running").await.acknowledged);
        }
        api.cancel(2, &id).await.expect(204);
        let rows = api.rows(&id).await;
        assert_eq!((&rows["job"]["status"], &rows["job"]["lease_id"]), (&json!("cancelled"), &Value::Null));
        assert_eq!(rows["executions"][0]["status"], "cancelled");
        refused(&api, &hand, &job).await;
        assert!(hand.poll(0).await.is_none());
    }
    let queued = api.submit(0, &json!({"model_name": format!("{}-unserved", api.name)})).await;
    eventually("the job is ready", async || api.ready().await == [queued.clone()]).await;
    api.cancel(1, &queued).await.expect(204);
    eventually("the job has left the ready queue", async || api.ready().await.is_empty()).await;
    api.leave().await;
}

#[tokio::test]
async fn the_leader_ends_what_runs_too_long_and_the_job_follows_its_policy() {
    let api = Api::of("timeout").await;
    let hand = Hand::new(&api, 2, 4).await;
    let spent = api.submit(0, &json!({"timeout_seconds": 1, "max_retries": 0})).await;
    let late = hand.job().await;
    assert!(hand.status(&late, "running").await.acknowledged);
    let waits = json!({"timeout_seconds": 1, "max_retries": 1, "metadata": {"retry_policy":
        {"initial_delay_seconds": 3600, "max_delay_seconds": 3600, "retry_on_errors": ["timeout"]}}});
    let again = api.submit(1, &waits).await;
    let late_again = hand.job().await;
    assert!(hand.status(&late_again, "running").await.acknowledged);
    let picky = json!({"timeout_seconds": 1, "metadata": {"retry_policy": {"retry_on_errors": ["oom"]}}});
    let forbidden = api.submit(1, &picky).await;
    let last = hand.job().await;
    assert!(hand.status(&last, "running").await.acknowledged);
    // Driven from outside, without any lease.
    let driven = api
        .submit(
            2,
            &json!({"timeout_seconds": 1, "max_retries": 0,
        "model_name": format!("{}-unserved", api.name)}),
        )
        .await;
    api.patch(0, &driven, &json!({"status": "running"})).await.expect(200);

    for (id, job) in [(&spent, &late), (&forbidden, &last)] {
        let rows = api.reaches(id, "timeout").await;
        let attempt = &rows["executions"][0];
        assert_eq!((&attempt["status"], &attempt["error_code"]), (&json!("timeout"), &json!("timeout")));
        assert_eq!(rows["job"]["retry_count"], 0);
        refused(&api, &hand, job).await;
    }
    let rows = api.reaches(&again, "pending").await;
    assert_eq!(
        (&rows["job"]["retry_count"], &rows["job"]["retry_backoff_seconds"].as_i64().map(|s| s > 3000)),
        (&json!(1), &Some(true))
    );
    assert_eq!(rows["executions"][0]["error_code"], "timeout");
    refused(&api, &hand, &late_again).await;
    api.reaches(&driven, "timeout").await;

    // None was ended before its time: the deadline is a second after the report that it runs.
    let early: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM executions e JOIN jobs j ON j.id = e.job_id WHERE j.created_by = $1
             AND (e.status <> 'timeout' OR e.completed_at < e.started_at + interval '1 s')",
    )
    .bind(&api.name)
    .fetch_one(&api.database)
    .await
    .unwrap();
    assert_eq!(early, 0);

    api.retry(1, &again).await.expect(200);
    let job = hand.job().await;
    assert_eq!((job.job_id.as_str(), job.attempt_number), (again.as_str(), 2));
    stale_token(&api, &hand, &late_again).await;
    // Nor does a report of the first attempt that names no token.
    let first = PollJobResponse { execution_id: String::new(), attempt_number: 1, ..job.clone() };
    let before = api.rows(&again).await;
    assert!(!acknowledged(&api, &hand, &hand.success(&first, &json!({"late": true}))).await);
    assert!(!hand.status(&first, "running").await.acknowledged);
    assert_eq!(api.rows(&again).await, before);
    let second = PollJobResponse { attempt_number: 2, ..first };
    assert!(hand.report(&hand.success(&second, &json!({"late": false}))).await.acknowledged);
    api.leave().await;
}

#[tokio::test]
async fn a_worker_that_was_removed_is_told_what_was_accepted_before_and_nothing_else() {
    let api = Api::of("removed-reporter").await;
    let hand = Hand::new(&api, 1, 3).await;
    for _ in 0..3 {
        api.submit(0, &json!({"max_retries": 0})).await;
    }
    let [done, broken, open] = [hand.job().await, hand.job().await, hand.job().await];
    let (success, failure) = (hand.success(&done, &json!({"a": 1})), hand.failure(&broken, "broken", "b"));
    for report in [&success, &failure] {
        assert!(hand.report(report).await.acknowledged);
    }
    api.remove_worker(2, &hand.id).await;
    let rows = async || {
        let mut rows = Vec::new();
        for job in [&done, &broken, &open] {
            rows.push(api.rows(&job.job_id).await);
        }
        rows
    };
    let before = rows().await;
    for report in [&success, &failure] {
        assert!(acknowledged(&api, &hand, report).await, "{report:?}");
    }
    let other = hand.success(&done, &json!({"a": 2}));
    for report in [&other, &hand.success(&open, &json!({}))] {
        assert!(!acknowledged(&api, &hand, report).await, "{report:?}");
    }
    assert_eq!(rows().await, before);
    api.leave().await;
}

#[tokio::test]
async fn a_worker_that_registers_again_loses_its_leases_and_only_running_jobs_spend_a_retry() {
    let api = Api::of("registered-again").await;
    let mut hand = Hand::new(&api, 0, 2).await;
    let retry =
        json!({"metadata": {"retry_policy": {"initial_delay_seconds": 3600, "max_delay_seconds": 3600}}});
    let (assigned, running) = (api.submit(0, &retry).await, api.submit(0, &retry).await);
    let mut jobs = [hand.job().await, hand.job().await];
    jobs.sort_by_key(|job| job.job_id == running);
    assert!(hand.status(&jobs[1], "running").await.acknowledged);
    // It takes nothing more, so that what was lost stays where it went.
    let capabilities = std::mem::take(&mut hand.registration.capabilities);
    hand.registration.capabilities.insert("models".to_owned(), "[]".to_owned());
    hand.client = connect(&api, 1).await;
    hand.register().await;

    let rows = api.rows(&assigned).await;
    assert_eq!((&rows["job"]["status"], &rows["job"]["retry_count"]), (&json!("queued"), &json!(0)));
    assert_eq!(
        (&rows["executions"][0]["status"], &rows["executions"][0]["error_code"]),
        (&json!("cancelled"), &json!("worker_lost"))
    );
    let rows = api.rows(&running).await;
    assert_eq!((&rows["job"]["status"], &rows["job"]["retry_count"]), (&json!("pending"), &json!(1)));
    assert_eq!(
        (&rows["executions"][0]["status"], &rows["executions"][0]["error_code"]),
        (&json!("failed"), &json!("worker_lost"))
    );
    for job in &jobs {
        refused(&api, &hand, job).await;
    }

    hand.registration.capabilities = capabilities;
    hand.register().await;
    let again = hand.job().await;
    assert_eq!((again.job_id.as_str(), again.attempt_number), (assigned.as_str(), 1));
    assert_ne!(again.execution_id, jobs[0].execution_id);
    stale_token(&api, &hand, &jobs[0]).await;
    assert!(hand.report(&hand.success(&again, &json!({"a": 1}))).await.acknowledged);
    api.leave().await;
}

#[tokio::test]
async fn a_rejected_job_goes_back_without_spending_a_retry_unless_it_ran() {
    let api = Api::of("rejected").await;
    let hand = Hand::new(&api, 1, 1).await;
    let id = api.submit(0, &json!({})).await;
    let first = hand.job().await;
    assert!(hand.status(&first, "rejected").await.acknowledged);
    let rows = api.rows(&id).await;
    assert_eq!((&rows["job"]["status"], &rows["job"]["retry_count"]), (&json!("pending"), &json!(0)));
    assert_eq!(
        (&rows["executions"][0]["status"], &rows["executions"][0]["error_code"]),
        (&json!("cancelled"), &json!("rejected"))
    );
    let before = api.rows(&id).await;
    assert!(hand.status(&first, "rejected").await.acknowledged, "the same report again");
    assert_eq!(api.rows(&id).await, before);
    let second = hand.job().await;
    assert_eq!((second.job_id.as_str(), second.attempt_number), (id.as_str(), 1));
    stale_token(&api, &hand, &first).await;
    assert!(hand.status(&second, "running").await.acknowledged);
    assert!(hand.status(&second, "rejected").await.acknowledged);
    let rows = api.rows(&id).await;
    assert_eq!(
        (&rows["job"]["retry_count"], &rows["executions"][1]["status"]),
        (&json!(1), &json!("failed"))
    );
    api.leave().await;
}

/// The worker holds the job again under another lease; the old token is worth nothing.
async fn stale_token(api: &Api, hand: &Hand, stale: &PollJobResponse) {
    let before = api.rows(&stale.job_id).await;
    assert!(!acknowledged(api, hand, &hand.success(stale, &json!({"late": true}))).await);
    assert!(!acknowledged(api, hand, &hand.failure(stale, "late", "")).await);
    assert!(!hand.status(stale, "running").await.acknowledged);
    assert_eq!(api.rows(&stale.job_id).await, before);
}

#[tokio::test]
async fn a_malformed_report_is_invalid_and_changes_no_row() {
    let api = Api::of("malformed-reports").await;
    let hand = Hand::new(&api, 0, 1).await;
    let id = api.submit(0, &json!({})).await;
    let job = hand.job().await;
    let before = api.rows(&id).await;
    let good = hand.success(&job, &json!({}));
    for bad in [
        JobCompletion { output_data: (&b"[1]"[..]).into(), ..good.clone() },
        JobCompletion { output_data: (&b"{\"a\""[..]).into(), ..good.clone() },
        JobCompletion { output_data: (&b"\xff"[..]).into(), ..good.clone() },
        JobCompletion { duration_ms: -1, ..good.clone() },
        JobCompletion { execution_id: "token".to_owned(), ..good.clone() },
        JobCompletion { error_code: "c".repeat(51), ..hand.failure(&job, "m", "") },
    ] {
        for replica in 0..REPLICAS {
            let refusal = connect(&api, replica).await.complete_job(bad.clone()).await.unwrap_err();
            assert_eq!(refusal.code(), tonic::Code::InvalidArgument, "{bad:?}");
        }
    }
    for status in ["", "completed", "Running"] {
        let refusal = hand.client.clone().update_job_status(hand.update(&job, status)).await.unwrap_err();
        assert_eq!(refusal.code(), tonic::Code::InvalidArgument, "{status}");
    }
    assert_eq!(api.rows(&id).await, before);
    assert!(hand.report(&good).await.acknowledged);
    api.leave().await;
}
