//! What the leader is asked, or asks, is carried out, and the answer is lost together with the connection.

use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, sleep};

use super::edges::{heal, others, set_all, united};
use super::{Fault, Needs, Strike, Struck, Subject};
use crate::cluster::{Cluster, Condition, End, Link};

/// How long answers are lost at a time. A connection that is made meanwhile comes to nothing, so there must be time to
/// make new ones in between, or nothing would be carried out any more.
const LOST_FOR: (u64, u64) = (20, 200);
/// Time in between.
const WHOLE_FOR: (u64, u64) = (150, 600);

pub(super) const FAULT_POSTGRES: Fault = Fault {
    name: "lose-replies-postgres",
    about: "PostgreSQL carries out what the leader says, COMMIT too, and its answers are lost, now and again for 1 to 5 s",
    subject: Subject::Network,
    needs: Needs::Nothing,
    strike: |strike| {
        let links = |leader, _: &Cluster| vec![Link { from: leader, to: End::Postgres }];
        strike_leader(strike, "PostgreSQL to the leader", links).boxed()
    },
};

pub(super) const FAULT_PEER: Fault = Fault {
    name: "lose-replies-peer",
    about: "the leader carries out what followers say, and its answers are lost, now and again for 1 to 5 s",
    subject: Subject::Network,
    needs: Needs::Nothing,
    strike: |strike| {
        let links = |leader, cluster: &Cluster| {
            others(cluster, leader).map(|from| Link { from, to: End::Replica(leader) }).collect()
        };
        strike_leader(strike, "the leader to its followers", links).boxed()
    },
};

async fn strike_leader(
    mut strike: Strike,
    whose: &str,
    links: impl FnOnce(usize, &Cluster) -> Vec<Link> + Send,
) -> Struck {
    let cluster = std::sync::Arc::clone(&strike.cluster);
    let time = strike.draw.milliseconds(1000, 5000);
    let leader = strike.leader().await?;
    let links = links(leader, &cluster);
    let before = cluster.affected(&links).await?;
    let detail = format!("answers of {whose} lost for {} ms, replica {}", time.as_millis(), leader + 1);
    strike.begins(&[leader], false, detail);
    let lost = lose(&mut strike, &links, time).await;
    heal(&cluster, &links).await?;
    strike.heals();
    let times = lost?;
    let answers = cluster.affected(&links).await?.saturating_sub(before);
    let now = united(&cluster).await?;
    if answers == 0 {
        return Err("no answer was on its way".into());
    }
    Ok(format!("{answers} answers lost, {times} times; replica {} leads", now + 1))
}

/// Loses answers now and again; answers how often.
async fn lose(strike: &mut Strike, links: &[Link], time: Duration) -> Result<usize, String> {
    let (mut times, end) = (0, Instant::now() + time);
    while Instant::now() < end {
        set_all(&strike.cluster, links.iter().map(|link| (*link, Condition::LoseReplies))).await?;
        sleep(strike.draw.milliseconds(LOST_FOR.0, LOST_FOR.1)).await;
        heal(&strike.cluster, links).await?;
        sleep(strike.draw.milliseconds(WHOLE_FOR.0, WHOLE_FOR.1)).await;
        times += 1;
    }
    Ok(times)
}
