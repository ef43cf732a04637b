//! Thousands of connections to all ports of a replica, opened and closed, and hundreds that stay and say nothing.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, sleep};

use super::sockets::{answer_time, is_closed, open};
use super::{Fault, Needs, Strike, Struck, Subject};

/// Connections that stay open, to each of the three ports.
const HELD: usize = 150;
/// Connections of a wave, to each of the three ports.
const WAVE: usize = 200;

pub(super) const FAULT: Fault = Fault {
    name: "connection-flood",
    about: "450 silent connections to all ports of one replica, and waves of 600 more, for 3 to 8 s",
    subject: Subject::Clients,
    needs: Needs::Nothing,
    strike: |strike| flood(strike).boxed(),
};

async fn flood(mut strike: Strike) -> Struck {
    let cluster = Arc::clone(&strike.cluster);
    let shared = strike.shared().await;
    let index = strike.draw.index(cluster.size());
    let time = strike.draw.milliseconds(3000, 8000);
    let before = shared.accepted();
    let ports = {
        let replicas = cluster.replicas.read().await;
        [replicas.http(index), replicas.grpc(index), replicas.peer(index)]
    };
    strike.begins(&[], false, format!("connections to all ports of replica {} for {time:?}", index + 1));
    let held = open(&ports, HELD).await;
    let (end, mut passing, mut slowest, mut refused) = (Instant::now() + time, 0, Duration::ZERO, 0);
    while Instant::now() < end {
        passing += open(&ports, WAVE).await.len();
        match answer_time(&cluster, index).await {
            Some(time) => slowest = slowest.max(time),
            None => refused += 1,
        }
        sleep(Duration::from_millis(100)).await;
    }
    let closed = held.iter().filter(|stream| is_closed(stream)).count();
    let held_count = held.len();
    drop(held);
    strike.heals();
    if held_count == 0 {
        return Err("no connection was taken".into());
    }
    let served = shared.accepted() - before;
    Ok(format!(
        "{held_count} connections held, {closed} closed by the replica, {passing} came and went; others waited {} ms at \
         the most, {refused} in vain; {served} submissions accepted meanwhile",
        slowest.as_millis()
    ))
}
