//! The leader's process is killed, and started again a while later.

use futures::FutureExt;
use tokio::time::sleep;

use super::{Fault, Miss, Needs, Strike, Struck, Subject};

pub(super) const FAULT: Fault = Fault {
    name: "kill-leader",
    about: "kill -9 of the leader, started again after 0 to 3 s",
    subject: Subject::Replicas,
    needs: Needs::Nothing,
    strike: |strike| strike_leader(strike).boxed(),
};

async fn strike_leader(mut strike: Strike) -> Struck {
    let cluster = std::sync::Arc::clone(&strike.cluster);
    let leader = strike.leader().await?;
    strike.begins(&[leader], true, format!("kill -9 of replica {}", leader + 1));
    if !cluster.kill(leader).await {
        return Err("it was gone already".into());
    }
    let next = cluster.leader_other_than(Some(leader)).await;
    sleep(strike.draw.milliseconds(0, 3000)).await;
    cluster.revive(leader).await.map_err(Miss::Broke)?;
    strike.heals();
    Ok(format!("replica {} leads", next.map_err(Miss::Broke)? + 1))
}
