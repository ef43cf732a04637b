//! All replicas are killed at once, as when the power of a whole room is lost, and started again.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::join_all;
use tokio::time::sleep;

use super::{Fault, Miss, Needs, Strike, Struck, Subject};

pub(super) const FAULT: Fault = Fault {
    name: "kill-all",
    about: "kill -9 of all replicas at once, started again after 0 to 2 s",
    subject: Subject::Replicas,
    needs: Needs::Nothing,
    strike: |strike| strike_all(strike).boxed(),
};

async fn strike_all(mut strike: Strike) -> Struck {
    let cluster = Arc::clone(&strike.cluster);
    let leader = strike.leader().await?;
    let term = cluster.view(leader).await.map_or(0, |view| view.term);
    let all: Vec<usize> = (0..cluster.size()).collect();
    // No new leader can be elected while nobody is there: the wait for one says nothing about elections.
    strike.begins(&all, false, "kill -9 of all replicas");
    let killed = join_all(all.iter().map(|index| cluster.kill(*index))).await;
    sleep(strike.draw.milliseconds(0, 2000)).await;
    for index in &all {
        cluster.restart(*index).await?;
    }
    let leader = cluster.leader_other_than(None).await.map_err(Miss::Broke)?;
    for index in &all {
        let ready = || async { cluster.replicas.read().await.is_ready(*index).await };
        cluster.until("the replica is ready again", ready).await.map_err(Miss::Broke)?;
    }
    strike.heals();
    let later = cluster.view(leader).await.ok_or("the new leader does not say in which term it leads")?.term;
    if later <= term {
        return Err(Miss::Broke(format!("the term was {term} and is {later}")));
    }
    let killed = killed.into_iter().filter(|killed| *killed).count();
    Ok(format!("{killed} were killed; replica {} leads in term {later} after {term}", leader + 1))
}
