//! The group grows by an empty replica and shrinks again, under load.

use std::sync::Arc;

use futures::FutureExt;
use reqwest::Method;
use tokio::time::sleep;

use super::gaps::Watch;
use super::{Fault, Miss, Needs, Strike, Struck, Subject};

pub(super) const FAULT: Fault = Fault {
    name: "membership-change",
    about: "a replica is started empty, added, leads for a while, and is removed; its id is never used again",
    subject: Subject::Replicas,
    needs: Needs::Nothing,
    strike: |strike| grow_and_shrink(strike).boxed(),
};

async fn grow_and_shrink(mut strike: Strike) -> Struck {
    let cluster = Arc::clone(&strike.cluster);
    let watch = Watch::start(&strike.shared().await);
    let index = cluster.start_another().await?;
    let id = cluster.id(index).await;
    strike.begins(&[index], false, format!("member {id} is added and removed again"));
    cluster.join(index).await.map_err(Miss::Broke)?;
    let leads = strike.draw.percent(50);
    if leads {
        cluster.make_leader(index).await.map_err(Miss::Broke)?;
    }
    sleep(strike.draw.milliseconds(500, 3000)).await;
    let served = cluster.view(index).await;
    if leave(&mut strike, index).await.is_err() {
        // A fault beside this one may have made it lead in between.
        leave(&mut strike, index).await.map_err(Miss::Broke)?;
    }
    let serves_nobody = || async {
        let answer = cluster.administer(index, Method::GET, "/api/v1/jobs", None).await;
        answer.is_ok_and(|(status, _)| status == 503)
    };
    cluster.until("the removed member serves nobody", serves_nobody).await.map_err(Miss::Broke)?;
    cluster.retire(index).await;
    strike.heals();
    let gaps = watch.end().await;
    let applied = served.and_then(|view| view.applied).unwrap_or(0);
    let role = if leads { "led" } else { "followed" };
    Ok(format!("member {id} {role} up to entry {applied}, and refuses to serve since it was removed; {gaps}"))
}

/// Removes the member. Who leads is not removed, so it hands over before.
async fn leave(strike: &mut Strike, index: usize) -> Result<(), String> {
    let cluster = Arc::clone(&strike.cluster);
    if cluster.leader().await == Some(index) {
        cluster.make_leader(strike.draw.index(cluster.size())).await?;
    }
    cluster.remove(index).await
}
