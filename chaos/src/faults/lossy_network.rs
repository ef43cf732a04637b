//! Packets between replicas, and between replicas and stores, get lost at random.

use futures::FutureExt;
use tokio::time::sleep;

use super::edges::{between_replicas, broken, proof, united};
use super::{Fault, Needs, Strike, Struck, Subject};
use crate::cluster::{Condition, End, Link};

pub(super) const FAULT: Fault = Fault {
    name: "lossy-network",
    about: "2 to 25 packets in a hundred are lost between replicas and on the way to stores, for 1 to 5 s",
    subject: Subject::Network,
    needs: Needs::Nothing,
    strike: |strike| strike_all(strike).boxed(),
};

async fn strike_all(mut strike: Strike) -> Struck {
    let cluster = std::sync::Arc::clone(&strike.cluster);
    let time = strike.draw.milliseconds(1000, 5000);
    let percent = strike.draw.between(2, 26);
    let all: Vec<_> = (0..cluster.size()).collect();
    let stores = all.iter().flat_map(|from| [End::Postgres, End::Redis].map(|to| Link { from: *from, to }));
    let edges: Vec<_> = between_replicas(&cluster)
        .into_iter()
        .chain(stores)
        .map(|link| (link, Condition::Lossy(percent)))
        .collect();
    strike.begins(&all, false, format!("{percent} % lost for {} ms", time.as_millis()));
    let ((), affected) = broken(&strike, &edges, sleep(time)).await?;
    let leader = united(&cluster).await?;
    proof(affected, format_args!("replica {} leads", leader + 1))
}
