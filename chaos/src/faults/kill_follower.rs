//! A follower's process is killed, and started again a while later. Nobody else should notice.

use std::sync::Arc;

use futures::FutureExt;
use tokio::time::sleep;

use super::gaps::Watch;
use super::{Fault, Miss, Needs, Strike, Struck, Subject};

pub(super) const FAULT: Fault = Fault {
    name: "kill-follower",
    about: "kill -9 of a follower, started again after 0.5 to 4 s",
    subject: Subject::Replicas,
    needs: Needs::Nothing,
    strike: |strike| strike_follower(strike).boxed(),
};

async fn strike_follower(mut strike: Strike) -> Struck {
    let cluster = Arc::clone(&strike.cluster);
    let (_, follower) = strike.leader_and_follower().await?;
    let before = cluster.pid(follower).await;
    let watch = Watch::start(&strike.shared().await);
    strike.begins(&[follower], false, format!("kill -9 of replica {}", follower + 1));
    let there = cluster.kill(follower).await;
    sleep(strike.draw.milliseconds(500, 4000)).await;
    let gaps = watch.end().await;
    cluster.revive(follower).await.map_err(Miss::Broke)?;
    strike.heals();
    let after = cluster.pid(follower).await;
    if !there || before == after {
        return Err("it was gone already".into());
    }
    Ok(format!(
        "process {before:?} was replaced by {after:?}; {} submissions meanwhile, {gaps}",
        gaps.submissions
    ))
}
