//! The leader is asked to end, and hands over before it does.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::sleep;

use super::gaps::Watch;
use super::{Fault, Miss, Needs, Strike, Struck, Subject};

/// How long waits are watched after the hand-over, so that those that it caused have ended.
const AFTERWARDS: Duration = Duration::from_secs(1);

pub(super) const FAULT: Fault = Fault {
    name: "stop-leader",
    about: "SIGTERM to the leader, which hands over; started again after 0 to 2 s",
    subject: Subject::Replicas,
    needs: Needs::Nothing,
    strike: |strike| strike_leader(strike).boxed(),
};

async fn strike_leader(mut strike: Strike) -> Struck {
    let cluster = Arc::clone(&strike.cluster);
    let leader = strike.leader().await?;
    let watch = Watch::start(&strike.shared().await);
    strike.begins(&[leader], true, format!("SIGTERM to replica {}", leader + 1));
    let ended = cluster.end(leader).await;
    let next = cluster.leader_other_than(Some(leader)).await;
    sleep(AFTERWARDS).await;
    let gaps = watch.end().await;
    sleep(strike.draw.milliseconds(0, 2000)).await;
    cluster.revive(leader).await.map_err(Miss::Broke)?;
    strike.heals();
    let ended = ended.map_err(Miss::Broke)?.ok_or("it was gone already")?;
    let how = if ended.success() { "in order" } else { "with an error" };
    Ok(format!("it ended {how}, replica {} leads; {gaps}", next.map_err(Miss::Broke)? + 1))
}
