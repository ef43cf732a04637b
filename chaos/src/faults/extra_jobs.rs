//! Work for all hands, where a fault needs somebody to have something in hand.

use std::time::Duration;

use serde_json::json;

use super::Strike;
use crate::history::{Outcome, Request};
use crate::workload::{Plan, outcome_of};

/// Longest wait for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(6);

/// Submits so many urgent jobs that take so long, at some replica; answers whether they were accepted.
pub(super) async fn submit(strike: &mut Strike, count: usize, work_ms: u64) -> bool {
    let shared = strike.shared().await;
    let numbers: Vec<u64> = (0..count).map(|_| shared.next_number()).collect();
    let mut body = |number: &u64| {
        let plan = Plan { number: *number, work_ms, fails: 0, run_at: None, overruns: false, poison: false };
        let mut body = plan.body(&mut strike.draw);
        body["priority"] = 10.into();
        body
    };
    let jobs: Vec<_> = numbers.iter().map(&mut body).collect();
    let replica = strike.draw.index(strike.cluster.size());
    let url = format!("http://{}/api/v1/jobs/batch", strike.cluster.rest(replica));
    let send = strike.cluster.http.post(url).bearer_auth(&strike.cluster.tokens().submitter);
    let send = send.json(&json!({"jobs": jobs})).timeout(ANSWER_WITHIN);
    let request = Request::Submit { key: None, numbers, batch: true };
    let outcome = strike.recorder.call("employer", replica, request, outcome_of(send)).await;
    matches!(outcome, Outcome::Ok { .. })
}
