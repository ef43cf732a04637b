//! Clients that look, cancel, try again, and those that try what they may not.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::submitters::outcome_of;
use super::{Plan, Shared, pause};
use crate::history::{Outcome, Request};

/// Longest wait of a client for its answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(6);
/// Pause of a reader between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(40);
/// Looks at one job before the reader turns to another.
const LOOKS: usize = 12;
/// Pause of a canceller between two jobs.
const CANCEL_EVERY: Duration = Duration::from_millis(250);
/// Pause of an intruder between two attempts.
const INTRUDE_EVERY: Duration = Duration::from_millis(200);

/// Looks at one job at all replicas in turn, then at another.
pub(super) async fn read(shared: Arc<Shared>, number: usize, slower: u32, stop: CancellationToken) {
    let client = format!("reader-{number}");
    let mut draw = shared.draw(&client);
    while pause(LOOK_EVERY * slower, &stop).await {
        let Some(job) = shared.recent(&mut draw) else { continue };
        for _ in 0..LOOKS {
            let replica = draw.index(shared.cluster.size());
            let url = format!("http://{}/api/v1/jobs/{job}", shared.cluster.rest(replica));
            let get = shared.cluster.http.get(url).bearer_auth(&shared.cluster.tokens().viewer);
            let look = outcome_of(get.timeout(ANSWER_WITHIN));
            shared.recorder.call(&client, replica, Request::Get { job }, look).await;
            if !pause(LOOK_EVERY * slower, &stop).await {
                return;
            }
        }
    }
}

/// Cancels jobs, and tries some again that may have failed.
pub(super) async fn cancel(shared: Arc<Shared>, number: usize, slower: u32, stop: CancellationToken) {
    let client = format!("canceller-{number}");
    let mut draw = shared.draw(&client);
    while pause(CANCEL_EVERY * slower, &stop).await {
        let Some(job) = shared.recent(&mut draw) else { continue };
        let replica = draw.index(shared.cluster.size());
        let url = format!("http://{}/api/v1/jobs/{job}", shared.cluster.rest(replica));
        let (request, send) = if draw.percent(75) {
            (Request::Cancel { job }, shared.cluster.http.delete(url))
        } else {
            (Request::Retry { job }, shared.cluster.http.post(format!("{url}/retry")))
        };
        let send = send.bearer_auth(&shared.cluster.tokens().submitter).timeout(ANSWER_WITHIN);
        shared.recorder.call(&client, replica, request, outcome_of(send)).await;
    }
}

/// Tries what must be refused, at every replica.
pub(super) async fn intrude(shared: Arc<Shared>, number: usize, slower: u32, stop: CancellationToken) {
    let client = format!("intruder-{number}");
    let mut draw = shared.draw(&client);
    while pause(INTRUDE_EVERY * slower, &stop).await {
        let replica = draw.index(shared.cluster.size());
        let (request, send) = attempt(&shared, replica, &mut draw);
        let outcome = outcome_of(send.timeout(ANSWER_WITHIN));
        let outcome = shared.recorder.call(&client, replica, request, outcome).await;
        debug_assert!(!matches!(outcome, Outcome::Ok { .. }), "the judge will say so, too");
    }
}

fn attempt(
    shared: &Shared,
    replica: usize,
    draw: &mut crate::draw::Draw,
) -> (Request, reqwest::RequestBuilder) {
    let (http, tokens) = (&shared.cluster.http, shared.cluster.tokens());
    let jobs = format!("http://{}/api/v1/jobs", shared.cluster.rest(replica));
    let number = shared.next_number();
    let body = Plan::draw(number, draw).body(draw);
    let mut forged = tokens.admin.clone();
    forged.truncate(forged.len() - 8);
    forged.push_str("AAAAAAAA");
    let victim = shared.recent(draw);
    let (what, expected, send) = match (draw.index(7), victim) {
        (0, _) => ("submits without a token", 401, http.post(jobs).json(&body)),
        (1, _) => ("submits with a forged token", 401, http.post(jobs).json(&body).bearer_auth(forged)),
        (2, _) => ("submits as a viewer", 403, http.post(jobs).json(&body).bearer_auth(&tokens.viewer)),
        (3, Some(job)) => {
            ("cancels as a viewer", 403, http.delete(format!("{jobs}/{job}")).bearer_auth(&tokens.viewer))
        }
        (4, Some(job)) => {
            ("cancels with a forged token", 401, http.delete(format!("{jobs}/{job}")).bearer_auth(forged))
        }
        (5, _) => {
            let mut bad = body;
            bad["priority"] = json!(11);
            ("submits with a priority of 11", 422, http.post(jobs).json(&bad).bearer_auth(&tokens.submitter))
        }
        _ => {
            let text = format!("{{\"name\": \"job-{number}\", \"input_data\": [[[");
            let post = http.post(jobs).header("Content-Type", "application/json").body(text);
            ("submits half a body", 400, post.bearer_auth(&tokens.submitter))
        }
    };
    (Request::Intrusion { what: what.to_owned(), expected, job: victim }, send)
}
