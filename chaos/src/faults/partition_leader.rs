//! The leader is cut off from all other replicas, both ways. It keeps its stores, its clients and its workers.

use futures::FutureExt;
use tokio::time::sleep;

use super::edges::{broken, others, proof, successor, united};
use super::{Fault, Miss, Needs, Strike, Struck, Subject};
use crate::cluster::{Condition, Link};

pub(super) const FAULT: Fault = Fault {
    name: "partition-leader",
    about: "the leader hears nothing of the other replicas and they nothing of it, for 0.5 to 4 s",
    subject: Subject::Network,
    needs: Needs::Nothing,
    strike: |strike| strike_leader(strike).boxed(),
};

async fn strike_leader(mut strike: Strike) -> Struck {
    let cluster = std::sync::Arc::clone(&strike.cluster);
    let time = strike.draw.milliseconds(500, 4000);
    let leader = strike.leader().await?;
    let links = others(&cluster, leader).flat_map(|other| Link::between(leader, other));
    let edges: Vec<_> = links.map(|link| (link, Condition::Cut)).collect();
    strike.begins(&[leader], true, format!("replica {} cut off for {} ms", leader + 1, time.as_millis()));
    let meanwhile = async { tokio::join!(sleep(time), successor(&cluster, leader)).1 };
    let (next, affected) = broken(&strike, &edges, meanwhile).await?;
    let united = united(&cluster).await;
    let fenced = cluster.metric(leader, "cortex_fenced_writes_total").await.unwrap_or(0.0);
    united?;
    let next = next.ok_or(Miss::NoSuccessor)?;
    proof(
        affected,
        format_args!("replica {} leads; writes of the former leader fenced off: {fenced}", next + 1),
    )
}
