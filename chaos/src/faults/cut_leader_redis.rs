//! The leader is cut off from Redis; the other replicas are not.

use futures::FutureExt;
use tokio::time::sleep;

use super::edges::{broken, proof, united};
use super::{Fault, Needs, Strike, Struck, Subject};
use crate::cluster::{Condition, End, Link};

pub(super) const FAULT: Fault = Fault {
    name: "cut-leader-redis",
    about: "the leader alone does not reach Redis, for 0.5 to 8 s",
    subject: Subject::Network,
    needs: Needs::Nothing,
    strike: |strike| strike_leader(strike).boxed(),
};

async fn strike_leader(mut strike: Strike) -> Struck {
    let cluster = std::sync::Arc::clone(&strike.cluster);
    let time = strike.draw.milliseconds(500, 8000);
    let leader = strike.leader().await?;
    let edges = [(Link { from: leader, to: End::Redis }, Condition::Cut)];
    let detail = format!("replica {} cut off from Redis for {} ms", leader + 1, time.as_millis());
    strike.begins(&[leader], false, detail);
    let ((), affected) = broken(&strike, &edges, sleep(time)).await?;
    let now = united(&cluster).await?;
    proof(affected, format_args!("replica {} leads", now + 1))
}
