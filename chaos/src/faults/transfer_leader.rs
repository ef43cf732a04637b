//! The leadership is moved at the word of an administrator.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use serde_json::json;
use tokio::time::sleep;

use super::gaps::Watch;
use super::{Fault, Miss, Needs, Strike, Struck, Subject};
use crate::history::{Outcome, Request};

/// How long waits are watched after the hand-over, so that those that it caused have ended.
const AFTERWARDS: Duration = Duration::from_secs(1);
/// Longest wait for the answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

pub(super) const FAULT: Fault = Fault {
    name: "transfer-leader",
    about: "the leadership is transferred, to a named replica or to any, at the word of any replica",
    subject: Subject::Replicas,
    needs: Needs::Nothing,
    strike: |strike| transfer(strike).boxed(),
};

async fn transfer(mut strike: Strike) -> Struck {
    let cluster = Arc::clone(&strike.cluster);
    let (leader, follower) = strike.leader_and_follower().await?;
    let asked = strike.draw.index(cluster.size());
    let to = if strike.draw.percent(50) { Some(cluster.id(follower).await) } else { None };
    let watch = Watch::start(&strike.shared().await);
    let detail = format!("replica {} leads; replica {} is asked that {to:?} does", leader + 1, asked + 1);
    strike.begins(&[leader], true, detail);
    let url = format!("http://{}/api/v1/cluster/transfer", cluster.rest(asked));
    let send = cluster.http.post(url).bearer_auth(&cluster.tokens().admin).timeout(ANSWER_WITHIN);
    let call = async {
        match send.json(&json!({"to": to})).send().await {
            Ok(answer) if answer.status() == 200 => Outcome::Ok { status: 200, jobs: Vec::new() },
            Ok(answer) => {
                let status = answer.status().as_u16();
                Outcome::Refused { status, why: answer.text().await.unwrap_or_default() }
            }
            Err(error) => Outcome::Unknown { why: error.to_string() },
        }
    };
    let outcome = strike.recorder.call("administrator", asked, Request::Transfer { to }, call).await;
    let next = match outcome {
        Outcome::Ok { .. } => cluster.leader_other_than(Some(leader)).await.map_err(Miss::Broke),
        other => Err(Miss::Idle(format!("{other:?}"))),
    };
    strike.heals();
    sleep(AFTERWARDS).await;
    let gaps = watch.end().await;
    Ok(format!("replica {} leads; {gaps}", next? + 1))
}
