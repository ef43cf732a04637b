//! The state machine from outside: what each state refuses, and what a manual retry does.

use serde_json::{Value, json};

use crate::group::{Api, REPLICAS};
use crate::hand::Hand;

const STATES: [&str; 8] =
    ["pending", "queued", "assigned", "running", "completed", "failed", "cancelled", "timeout"];

/// How a job got where it is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    /// Waits for its retry time.
    Pending,
    Queued,
    /// A worker holds it and has not said that it runs.
    Assigned,
    /// A worker holds it and said so.
    Held,
    /// Driven from outside.
    Driven,
    Completed,
    Failed,
    Cancelled,
    Timeout,
}

impl Place {
    const ALL: [Self; 9] = [
        Self::Pending,
        Self::Queued,
        Self::Assigned,
        Self::Held,
        Self::Driven,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
        Self::Timeout,
    ];

    fn status(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Queued => "queued",
            Self::Assigned => "assigned",
            Self::Held | Self::Driven => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Timeout => "timeout",
        }
    }

    /// The states that a PATCH can ask for here; all others are refused.
    fn takes(self) -> &'static [&'static str] {
        match self {
            Self::Pending | Self::Queued => &["running", "failed", "cancelled"],
            Self::Assigned | Self::Held => &["cancelled"],
            Self::Driven => &["completed", "failed", "cancelled", "timeout"],
            Self::Completed | Self::Failed | Self::Cancelled | Self::Timeout => &[],
        }
    }

    fn may_be_cancelled(self) -> bool {
        self.takes().contains(&"cancelled")
    }

    fn may_be_retried(self) -> bool {
        matches!(self, Self::Pending | Self::Failed | Self::Cancelled | Self::Timeout)
    }
}

/// Brings a new job to a place. Its retries are an hour apart, or there are none.
async fn bring(api: &Api, hand: &Hand, place: Place) -> String {
    let worked_on = matches!(place, Place::Assigned | Place::Held);
    let model = if worked_on { api.name.clone() } else { format!("{}-unserved", api.name) };
    let retries = i32::from(place == Place::Pending);
    let fields = json!({"model_name": model, "max_retries": retries,
        "metadata": {"retry_policy": {"initial_delay_seconds": 3600, "max_delay_seconds": 3600}}});
    let id = api.submit(0, &fields).await;
    let status = |status: &str| json!({"status": status});
    match place {
        Place::Queued => {}
        Place::Pending | Place::Failed => drop(api.patch(1, &id, &status("failed")).await.expect(200)),
        Place::Cancelled => drop(api.cancel(1, &id).await.expect(204)),
        Place::Driven => drop(api.patch(2, &id, &status("running")).await.expect(200)),
        Place::Completed | Place::Timeout => {
            api.patch(2, &id, &status("running")).await.expect(200);
            api.patch(2, &id, &status(place.status())).await.expect(200);
        }
        Place::Assigned | Place::Held => {
            let job = hand.job().await;
            assert_eq!(job.job_id, id);
            if place == Place::Held {
                assert!(hand.status(&job, "running").await.acknowledged);
            }
        }
    }
    assert_eq!(api.job(0, &id).await["status"], place.status(), "{place:?}");
    id
}

#[tokio::test]
async fn every_illegal_transition_is_refused_and_changes_no_row() {
    let api = Api::of("illegal").await;
    let hand = Hand::new(&api, 0, 100).await;
    let mut replicas = (0..REPLICAS).cycle();
    for place in Place::ALL {
        let id = bring(&api, &hand, place).await;
        let before = api.rows(&id).await;
        let patches = STATES
            .iter()
            .filter(|status| !place.takes().contains(status))
            .map(|status| json!({"status": status, "output_data": {"a": 1}, "error_message": "no"}));
        // Data without a state can be given as long as nobody else answers for the job.
        let data = json!({"output_data": {"a": 1}});
        let closed = matches!(place, Place::Assigned | Place::Held) || place.takes().is_empty();
        for patch in patches.chain(closed.then_some(data)) {
            let reply = api.patch(replicas.next().unwrap(), &id, &patch).await;
            assert_eq!(reply.body["type"], "urn:cortex:problem:conflict", "{place:?} {patch} {reply:?}");
            reply.expect(409);
        }
        if !place.may_be_cancelled() {
            api.cancel(replicas.next().unwrap(), &id).await.expect(409);
        }
        if !place.may_be_retried() {
            api.retry(replicas.next().unwrap(), &id).await.expect(409);
        }
        assert_eq!(api.rows(&id).await, before, "{place:?}");
        for body in [json!({"status": "done"}), json!({}), json!({"execution_duration_ms": -1})] {
            api.patch(0, &id, &body).await.expect(422);
        }
        assert_eq!(api.rows(&id).await, before, "{place:?}");
    }
    api.leave().await;
}

#[tokio::test]
async fn every_legal_transition_leads_where_it_says() {
    let api = Api::of("legal").await;
    let hand = Hand::new(&api, 1, 100).await;
    for place in Place::ALL {
        for target in place.takes() {
            let id = bring(&api, &hand, place).await;
            let retries = api.job(0, &id).await["retry_count"].clone();
            let job = api.patch(2, &id, &json!({"status": target, "error_message": "why"})).await.expect(200);
            assert_eq!(job["status"], *target, "{place:?}");
            assert_eq!(job["retry_count"], retries);
            assert_eq!(job["completed_at"].is_null(), *target == "running", "{place:?} {job}");
        }
        if place.may_be_cancelled() {
            let id = bring(&api, &hand, place).await;
            api.cancel(0, &id).await.expect(204);
            let rows = api.rows(&id).await;
            assert_eq!(rows["job"]["status"], "cancelled");
            let ended = |execution: &Value| execution["status"] == "cancelled";
            assert!(rows["executions"].as_array().unwrap().iter().all(ended), "{rows}");
        }
    }
    api.leave().await;
}

#[tokio::test]
async fn a_failure_from_outside_goes_through_the_retry_policy() {
    let api = Api::of("patched-failure").await;
    let fields = json!({"max_retries": 2, "metadata": {"retry_policy": {"strategy": "linear", "jitter": false,
        "initial_delay_seconds": 100, "backoff_multiplier": 7}}});
    for (replica, from) in ["queued", "running"].into_iter().enumerate() {
        let id = api.submit(replica, &fields).await;
        let failed = json!({"status": "failed", "error_message": "lost", "error_stack": "at 1",
            "execution_duration_ms": 12});
        for (count, backoff) in [(1, 100), (2, 107)] {
            if from == "running" {
                api.patch(replica, &id, &json!({"status": "running"})).await.expect(200);
            }
            let job = api.patch(replica, &id, &failed).await.expect(200);
            assert_eq!((&job["status"], &job["retry_count"]), (&json!("pending"), &json!(count)));
            assert_eq!(job["retry_backoff_seconds"], backoff);
            assert!(job["next_retry_at"].is_string() && job["completed_at"].is_null(), "{job}");
            assert_eq!((&job["error_message"], &job["error_stack"]), (&json!("lost"), &json!("at 1")));
        }
        if from == "running" {
            api.patch(replica, &id, &json!({"status": "running"})).await.expect(200);
        }
        let job = api.patch(replica, &id, &failed).await.expect(200);
        assert_eq!((&job["status"], &job["retry_count"]), (&json!("failed"), &json!(2)));
        assert!(job["next_retry_at"].is_null() && job["completed_at"].is_string(), "{job}");
        assert_eq!(job["execution_duration_ms"], 12);
    }
    api.leave().await;
}

#[tokio::test]
async fn a_manual_retry_revives_an_ended_job_and_hastens_a_waiting_one() {
    let api = Api::of("manual-retry").await;
    let hand = Hand::new(&api, 2, 100).await;
    for place in [Place::Failed, Place::Timeout, Place::Cancelled] {
        let id = bring(&api, &hand, place).await;
        let job = api.retry(1, &id).await.expect(200);
        assert_eq!((&job["status"], &job["retry_count"]), (&json!("pending"), &json!(1)), "{place:?}");
        for emptied in [
            "completed_at",
            "error_message",
            "error_stack",
            "output_data",
            "execution_duration_ms",
            "started_at",
            "assigned_worker_id",
        ] {
            assert!(job[emptied].is_null(), "{place:?} {emptied} {job}");
        }
        assert!(due(&api, &id).await, "{place:?}");
        api.reaches(&id, "queued").await;
        api.retry(1, &id).await.expect(409);
    }
    let id = bring(&api, &hand, Place::Pending).await;
    let waiting = api.job(0, &id).await;
    assert!(!due(&api, &id).await);
    let job = api.retry(1, &id).await.expect(200);
    assert_eq!((&job["status"], &job["retry_count"]), (&json!("pending"), &waiting["retry_count"]));
    api.reaches(&id, "queued").await;

    // A job that was revived although its retries are spent runs as one attempt more.
    let id = api.submit(0, &json!({"max_retries": 0})).await;
    let job = hand.job().await;
    assert!(hand.report(&hand.failure(&job, "broken", "")).await.acknowledged);
    assert_eq!(api.job(1, &id).await["status"], "failed");
    api.retry(1, &id).await.expect(200);
    let job = hand.job().await;
    assert_eq!((job.job_id.as_str(), job.attempt_number), (id.as_str(), 2));
    assert!(hand.report(&hand.success(&job, &json!({"a": 1}))).await.acknowledged);
    let job = api.job(1, &id).await;
    assert_eq!((&job["status"], &job["error_message"]), (&json!("completed"), &Value::Null));
    let attempts = api.executions(2, &id).await;
    let numbers: Vec<_> =
        attempts.iter().map(|attempt| attempt["attempt_number"].as_i64().unwrap()).collect();
    assert_eq!(numbers, [1, 2]);
    api.leave().await;
}

/// Whether the time at which a job may run has come, or the job has gone on already.
async fn due(api: &Api, id: &str) -> bool {
    let due = "SELECT status <> 'pending' OR next_retry_at <= now() + interval '1 ms' FROM jobs WHERE id = $1::uuid";
    sqlx::query_scalar(due).bind(id).fetch_one(&api.database).await.unwrap()
}

#[tokio::test]
async fn a_job_driven_from_outside_leaves_the_ready_queue_and_no_worker_gets_it() {
    let api = Api::of("driven").await;
    let id = api.submit(0, &json!({})).await;
    let other = api.submit(0, &json!({"priority": 1})).await;
    let job = api.patch(1, &id, &json!({"status": "running"})).await.expect(200);
    assert!(job["started_at"].is_string() && job["assigned_worker_id"].is_null(), "{job}");
    crate::support::eventually("the job has left the ready queue", async || {
        api.ready().await == [other.clone()]
    })
    .await;
    let hand = Hand::new(&api, 1, 2).await;
    assert_eq!(hand.job().await.job_id, other);
    assert!(hand.poll(0).await.is_none());

    let stranger = json!({"status": "running", "assigned_worker_id": "0190a5c0-0000-7000-8000-000000000001"});
    let second = api.submit(0, &json!({"model_name": format!("{}-unserved", api.name)})).await;
    let reply = api.patch(1, &second, &stranger).await;
    assert_eq!(reply.fields(), ["assigned_worker_id"]);
    reply.expect(422);
    let removed = Hand::new(&api, 0, 1).await;
    api.remove_worker(0, &removed.id).await;
    let removed = json!({"status": "running", "assigned_worker_id": removed.id});
    assert_eq!(api.patch(1, &second, &removed).await.fields(), ["assigned_worker_id"]);
    let driver = json!({"assigned_worker_id": hand.id});
    api.patch(1, &second, &driver).await.expect(409);
    api.patch(1, &second, &json!({"status": "running"})).await.expect(200);
    assert_eq!(api.patch(0, &second, &driver).await.expect(200)["assigned_worker_id"], hand.id);
    let second = api.submit(0, &json!({"model_name": format!("{}-unserved", api.name)})).await;
    let named = json!({"status": "running", "assigned_worker_id": hand.id});
    assert_eq!(api.patch(1, &second, &named).await.expect(200)["assigned_worker_id"], hand.id);
    // Not as it ends; its own driver may be named.
    let other = Hand::new(&api, 0, 1).await;
    for status in ["completed", "failed", "timeout"] {
        let ends = json!({"status": status, "assigned_worker_id": other.id});
        api.patch(1, &second, &ends).await.expect(409);
    }
    // The worker that is named holds no lease, so its reports do not count.
    let report = cortex_client::proto::PollJobResponse { job_id: second.clone(), ..Default::default() };
    let before = api.rows(&second).await;
    assert!(!hand.report(&hand.success(&report, &json!({}))).await.acknowledged);
    assert_eq!(api.rows(&second).await, before);
    api.leave().await;
}
