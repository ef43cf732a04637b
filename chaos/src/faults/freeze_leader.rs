//! The leader's process stops in its tracks for longer than an election takes, and goes on as if nothing had happened.

use futures::FutureExt;
use tokio::time::sleep;

use super::{Fault, Miss, Needs, Strike, Struck, Subject};

pub(super) const FAULT: Fault = Fault {
    name: "freeze-leader",
    about: "SIGSTOP of the leader for 1 to 6 s, then SIGCONT",
    subject: Subject::Replicas,
    needs: Needs::Nothing,
    strike: |strike| strike_leader(strike).boxed(),
};

async fn strike_leader(mut strike: Strike) -> Struck {
    let cluster = std::sync::Arc::clone(&strike.cluster);
    let leader = strike.leader().await?;
    let time = strike.draw.milliseconds(1000, 6000);
    strike.begins(&[leader], true, format!("SIGSTOP of replica {} for {} ms", leader + 1, time.as_millis()));
    if !cluster.signal(leader, cortex::dev::Signal::SIGSTOP).await {
        return Err("it was gone already".into());
    }
    sleep(time).await;
    let next = cluster.leader_other_than(Some(leader)).await;
    cluster.signal(leader, cortex::dev::Signal::SIGCONT).await;
    strike.heals();
    let follows = || async {
        cluster.view(leader).await.is_some_and(|view| view.leader.is_some() && view.role != "leader")
    };
    cluster.until("the former leader follows", follows).await.map_err(Miss::Broke)?;
    let fenced = cluster.metric(leader, "cortex_fenced_writes_total").await.unwrap_or(0.0);
    Ok(format!(
        "replica {} leads; writes of the former leader fenced off: {fenced}",
        next.map_err(Miss::Broke)? + 1
    ))
}
