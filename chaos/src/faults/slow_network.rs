//! Whatever replicas say to each other takes longer, and not always as long.

use futures::FutureExt;
use tokio::time::sleep;

use super::edges::{between_replicas, broken, proof, united};
use super::{Fault, Needs, Strike, Struck, Subject};
use crate::cluster::Condition;

pub(super) const FAULT: Fault = Fault {
    name: "slow-network",
    about: "5 to 100 ms of delay and up to 50 ms of jitter between replicas, for 1 to 5 s",
    subject: Subject::Network,
    needs: Needs::Nothing,
    strike: |strike| strike_all(strike).boxed(),
};

async fn strike_all(mut strike: Strike) -> Struck {
    let cluster = std::sync::Arc::clone(&strike.cluster);
    let time = strike.draw.milliseconds(1000, 5000);
    let (delay, jitter) = (strike.draw.milliseconds(5, 100), strike.draw.milliseconds(0, 50));
    let edges: Vec<_> = between_replicas(&cluster)
        .into_iter()
        .map(|link| (link, Condition::Slow { delay, jitter }))
        .collect();
    let all: Vec<_> = (0..cluster.size()).collect();
    let (delay, jitter) = (delay.as_millis(), jitter.as_millis());
    strike.begins(&all, false, format!("{delay} ms and up to {jitter} ms more for {} ms", time.as_millis()));
    let ((), affected) = broken(&strike, &edges, sleep(time)).await?;
    let leader = united(&cluster).await?;
    proof(affected, format_args!("replica {} leads", leader + 1))
}
