//! Requests that are too large, too deep, of no format, or with a forged token, many at a time, at all replicas.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, StreamExt, stream};
use reqwest::RequestBuilder;
use serde_json::json;

use super::{Fault, Needs, Strike, Struck, Subject};
use crate::cluster::Cluster;
use crate::draw::Draw;
use crate::history::{Outcome, Request};
use crate::workload::outcome_of;

/// `limits.max_body_bytes`, where nothing else is said.
const MAX_BODY: usize = 1 << 20;
/// Deeper than JSON may be nested.
const DEPTH: usize = 10_000;
/// Requests under way at a time.
const AT_ONCE: usize = 32;
/// Longest wait for an answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

pub(super) const FAULT: Fault = Fault {
    name: "malformed-flood",
    about: "200 to 800 requests that are too large, too deep, of no format or forged, 32 at a time",
    subject: Subject::Clients,
    needs: Needs::Nothing,
    strike: |strike| flood(strike).boxed(),
};

async fn flood(mut strike: Strike) -> Struck {
    let cluster = Arc::clone(&strike.cluster);
    let shared = strike.shared().await;
    let count = strike.draw.between(200, 800);
    let before = shared.accepted();
    strike.begins(&[], false, format!("{count} bad requests"));
    let attempts: Vec<_> = (0..count)
        .map(|_| {
            let replica = strike.draw.index(cluster.size());
            (replica, attempt(&cluster, replica, shared.next_number(), &mut strike.draw))
        })
        .collect();
    let strike = &strike;
    let outcomes: Vec<Outcome> = stream::iter(attempts)
        .map(|(replica, (request, send))| async move {
            let call = outcome_of(send.timeout(ANSWER_WITHIN));
            strike.recorder.call("flooder", replica, request, call).await
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    strike.heals();
    let answers = answers(&outcomes)?;
    let served = shared.accepted() - before;
    Ok(format!("{answers}; {served} good submissions accepted meanwhile"))
}

/// What became of how many requests.
///
/// # Errors
/// When none was answered by a replica: then nobody was flooded.
fn answers(outcomes: &[Outcome]) -> Result<String, String> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let mut answered = false;
    for outcome in outcomes {
        let what = match outcome {
            Outcome::Ok { status, .. } => format!("ACCEPTED with {status}"),
            Outcome::Refused { status: 0, .. } => "not taken".to_owned(),
            Outcome::Refused { status, .. } => format!("refused with {status}"),
            Outcome::Unknown { .. } => "cut off".to_owned(),
        };
        answered |= matches!(outcome, Outcome::Ok { .. } | Outcome::Refused { status: 1.., .. });
        *counts.entry(what).or_default() += 1;
    }
    let counts: Vec<String> = counts.into_iter().map(|(what, count)| format!("{count} {what}")).collect();
    let counts = counts.join(", ");
    if answered { Ok(counts) } else { Err(format!("no request was answered: {counts}")) }
}

fn attempt(cluster: &Cluster, replica: usize, number: u64, draw: &mut Draw) -> (Request, RequestBuilder) {
    let tokens = cluster.tokens();
    let post = cluster.http.post(format!("http://{}/api/v1/jobs", cluster.rest(replica)));
    let of = |format: &str, body: Vec<u8>| {
        post.try_clone().unwrap_or_else(|| cluster.http.get("")).header("Content-Type", format).body(body)
    };
    let good = json!({"name": format!("job-{number}"), "model_name": "m0", "model_version": "1", "input_data": {"number": number}});
    let (json, packed) = ("application/json", "application/msgpack");
    let (what, expected, send) = match draw.index(6) {
        0 => {
            let mut large = good.clone();
            large["input_data"]["filler"] = "x".repeat(MAX_BODY).into();
            (
                "submits more than a body may have",
                413,
                of(json, large.to_string().into()).bearer_auth(&tokens.submitter),
            )
        }
        1 => {
            let deep = format!("{}{}", "[".repeat(DEPTH), "]".repeat(DEPTH));
            let text = good.to_string().replace(&format!("{{\"number\":{number}}}"), &deep);
            ("submits what is nested too deep", 422, of(json, text.into()).bearer_auth(&tokens.submitter))
        }
        2 => {
            // Says that four thousand million members follow.
            let bytes = [&[0xdf, 0xff, 0xff, 0xff, 0xff][..], &number.to_be_bytes()].concat();
            (
                "submits a MessagePack that claims too much",
                400,
                of(packed, bytes).bearer_auth(&tokens.submitter),
            )
        }
        3 => {
            let bytes = (0..64).map(|_| u8::try_from(draw.between(0, 256)).unwrap_or(0xc1)).collect();
            ("submits noise as MessagePack", 400, of(packed, bytes).bearer_auth(&tokens.submitter))
        }
        4 => {
            let send = of(json, good.to_string().into()).bearer_auth(tokens.forged());
            ("submits with a forged token", 401, send)
        }
        _ => {
            // {"alg":"none"}, and the claims of an administrator.
            let claims = tokens.admin.split('.').nth(1).unwrap_or_default();
            let unsigned = format!("eyJhbGciOiJub25lIn0.{claims}.");
            ("submits with an unsigned token", 401, of(json, good.to_string().into()).bearer_auth(unsigned))
        }
    };
    (Request::Intrusion { what: what.to_owned(), expected, job: None }, send)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_that_nobody_answers_has_flooded_nobody() {
        let refused = |status| Outcome::Refused { status, why: String::new() };
        let (lost, away) = (Outcome::Unknown { why: String::new() }, refused(0));
        let none = answers(&[lost.clone(), away.clone(), lost.clone()]);
        assert_eq!(none, Err("no request was answered: 2 cut off, 1 not taken".to_owned()));
        let some = answers(&[lost, away, refused(413)]);
        assert_eq!(some, Ok("1 cut off, 1 not taken, 1 refused with 413".to_owned()));
    }
}
