//! What the leader says to the other replicas is lost, or what they say to it.

use futures::FutureExt;
use tokio::time::sleep;

use super::edges::{broken, others, proof, successor, united};
use super::{Fault, Miss, Needs, Strike, Struck, Subject};
use crate::cluster::Link;
use crate::history::NO_SUCCESSOR;

pub(super) const FAULT: Fault = Fault {
    name: "partition-one-way",
    about: "the leader is heard by no other replica, or hears none, for 0.5 to 4 s",
    subject: Subject::Network,
    needs: Needs::Nothing,
    strike: |strike| strike_leader(strike).boxed(),
};

async fn strike_leader(mut strike: Strike) -> Struck {
    let cluster = std::sync::Arc::clone(&strike.cluster);
    let time = strike.draw.milliseconds(500, 4000);
    let dumb = strike.draw.percent(50);
    let leader = strike.leader().await?;
    let silenced = |other| if dumb { Link::silenced(leader, other) } else { Link::silenced(other, leader) };
    let edges: Vec<_> = others(&cluster, leader).flat_map(silenced).collect();
    let what = if dumb { "is heard by" } else { "hears" };
    let detail = format!("replica {} {what} no other for {} ms", leader + 1, time.as_millis());
    // One that hears nothing goes on saying that it leads, which keeps the others from standing.
    strike.begins(&[leader], dumb, detail);
    let meanwhile = async { tokio::join!(sleep(time), successor(&cluster, leader)).1 };
    let (next, affected) = broken(&strike, &edges, meanwhile).await?;
    united(&cluster).await?;
    match next {
        Some(next) => proof(affected, format_args!("replica {} leads", next + 1)),
        None if dumb => Err(Miss::NoSuccessor),
        None => proof(affected, NO_SUCCESSOR),
    }
}
