//! Each replica hears only its next one, so no two can talk to each other: nobody can lead until that is over.

use futures::FutureExt;
use tokio::time::sleep;

use super::edges::{broken, proof, united};
use super::{Fault, Needs, Strike, Struck, Subject};
use crate::cluster::Link;

pub(super) const FAULT: Fault = Fault {
    name: "partition-ring",
    about: "each replica hears only its next one, for 0.5 to 4 s",
    subject: Subject::Network,
    needs: Needs::Nothing,
    strike: |strike| strike_all(strike).boxed(),
};

async fn strike_all(mut strike: Strike) -> Struck {
    let cluster = std::sync::Arc::clone(&strike.cluster);
    let time = strike.draw.milliseconds(500, 4000);
    let size = cluster.size();
    let speakers = |hearer| (0..size).filter(move |other| *other != hearer && *other != (hearer + 1) % size);
    let edges: Vec<_> = (0..size)
        .flat_map(|hearer| speakers(hearer).flat_map(move |speaker| Link::silenced(speaker, hearer)))
        .collect();
    let all: Vec<_> = (0..size).collect();
    strike.begins(&all, false, format!("each hears its next one alone for {} ms", time.as_millis()));
    let ((), affected) = broken(&strike, &edges, sleep(time)).await?;
    let leader = united(&cluster).await?;
    proof(affected, format_args!("replica {} leads afterwards", leader + 1))
}
