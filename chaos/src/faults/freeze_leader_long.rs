//! The leader's process stops for longer than an election and the leases of workers that nobody hears take together.
//! When it goes on, it takes itself for the leader for a moment, and all that it knows of workers is old.

use std::sync::Arc;

use futures::FutureExt;
use tokio::time::sleep;

use super::{Fault, Miss, Needs, Strike, Struck, Subject};

pub(super) const FAULT: Fault = Fault {
    name: "freeze-leader-long",
    about: "SIGSTOP of the leader for 16 to 24 s, longer than a silent worker keeps its leases, then SIGCONT",
    subject: Subject::Replicas,
    needs: Needs::Nothing,
    strike: |strike| strike_leader(strike).boxed(),
};

async fn strike_leader(mut strike: Strike) -> Struck {
    let cluster = Arc::clone(&strike.cluster);
    let leader = strike.leader().await?;
    let term = cluster.view(leader).await.map_or(0, |view| view.term);
    let time = strike.draw.milliseconds(16_000, 24_000);
    strike.begins(&[leader], true, format!("SIGSTOP of replica {} for {} ms", leader + 1, time.as_millis()));
    if !cluster.signal(leader, cortex::dev::Signal::SIGSTOP).await {
        return Err("it was gone already".into());
    }
    sleep(time).await;
    let next = cluster.leader_other_than(Some(leader)).await;
    cluster.signal(leader, cortex::dev::Signal::SIGCONT).await;
    let follows = || async {
        cluster.view(leader).await.is_some_and(|view| view.leader.is_some() && view.role != "leader")
    };
    let follows = cluster.until("the former leader follows", follows).await;
    strike.heals();
    follows.map_err(Miss::Broke)?;
    let fenced = cluster.metric(leader, "cortex_fenced_writes_total").await.unwrap_or(0.0);
    let later = cluster.view(leader).await.map_or(0, |view| view.term);
    let next = next.map_err(Miss::Broke)? + 1;
    Ok(format!(
        "replica {next} leads, term {term} became {later}; writes of the former leader fenced off: {fenced}"
    ))
}
