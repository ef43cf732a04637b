//! A follower is cut off from all other replicas, both ways. It keeps its stores, its clients and its workers.

use futures::FutureExt;
use tokio::time::sleep;

use super::edges::{broken, follower, others, proof, united};
use super::{Fault, Needs, Strike, Struck, Subject};
use crate::cluster::{Condition, Link};

pub(super) const FAULT: Fault = Fault {
    name: "partition-follower",
    about: "a follower hears nothing of the other replicas and they nothing of it, for 0.5 to 4 s",
    subject: Subject::Network,
    needs: Needs::Nothing,
    strike: |strike| strike_follower(strike).boxed(),
};

async fn strike_follower(mut strike: Strike) -> Struck {
    let cluster = std::sync::Arc::clone(&strike.cluster);
    let time = strike.draw.milliseconds(500, 4000);
    let follower = follower(&mut strike).await?;
    let links = others(&cluster, follower).flat_map(|other| Link::between(follower, other));
    let edges: Vec<_> = links.map(|link| (link, Condition::Cut)).collect();
    strike.begins(
        &[follower],
        false,
        format!("replica {} cut off for {} ms", follower + 1, time.as_millis()),
    );
    let ((), affected) = broken(&strike, &edges, sleep(time)).await?;
    let leader = united(&cluster).await?;
    proof(affected, format_args!("replica {} leads", leader + 1))
}
