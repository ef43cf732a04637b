//! One replica after the other is asked to end and started again, as in an update.

use std::sync::Arc;

use futures::FutureExt;
use tokio::time::sleep;

use super::gaps::Watch;
use super::{Fault, Miss, Needs, Strike, Struck, Subject};

pub(super) const FAULT: Fault = Fault {
    name: "rolling-restart",
    about: "SIGTERM and a new start of each replica in turn, 0 to 1 s apart",
    subject: Subject::Replicas,
    needs: Needs::Nothing,
    strike: |strike| restart_each(strike).boxed(),
};

async fn restart_each(mut strike: Strike) -> Struck {
    let cluster = Arc::clone(&strike.cluster);
    let first = strike.draw.index(cluster.size());
    let all: Vec<usize> = (0..cluster.size()).map(|turn| (first + turn) % cluster.size()).collect();
    let watch = Watch::start(&strike.shared().await);
    strike.begins(&all, false, format!("each is restarted in turn, beginning with replica {}", first + 1));
    let (mut clean, mut handed_over) = (0, 0);
    for index in &all {
        let led = cluster.leader_other_than(None).await.map_err(Miss::Broke)? == *index;
        let ended = cluster.end(*index).await.map_err(Miss::Broke)?;
        clean += usize::from(ended.is_some_and(|status| status.success()));
        handed_over += usize::from(led);
        cluster.revive(*index).await.map_err(Miss::Broke)?;
        sleep(strike.draw.milliseconds(0, 1000)).await;
    }
    strike.heals();
    let gaps = watch.end().await;
    Ok(format!("{clean} of {} ended in order, {handed_over} handed over; {gaps}", all.len()))
}
