//! Hundreds of connections that send a byte a second and never come to the end of a request.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, sleep};

use super::sockets::{answer_time, is_closed, open};
use super::{Fault, Needs, Strike, Struck, Subject};

/// A request that could go on for ever.
const REQUEST: &[u8] =
    b"POST /api/v1/jobs HTTP/1.1\r\nHost: cortex\r\nContent-Type: application/json\r\nX-Filler: ";
/// What every HTTP/2 connection begins with, and a frame that promises more than will come.
const PREFACE: &[u8] =
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x40\x00\x01\x00\x00\x00\x01";

pub(super) const FAULT: Fault = Fault {
    name: "slow-loris",
    about: "200 to 600 connections to the HTTP and gRPC ports of one replica that send a byte a second for 5 to 15 s",
    subject: Subject::Clients,
    needs: Needs::Nothing,
    strike: |strike| crawl(strike).boxed(),
};

async fn crawl(mut strike: Strike) -> Struck {
    let cluster = Arc::clone(&strike.cluster);
    let shared = strike.shared().await;
    let index = strike.draw.index(cluster.size());
    let each = usize::try_from(strike.draw.between(100, 300)).unwrap_or(100);
    let time = strike.draw.milliseconds(5000, 15_000);
    let before = shared.accepted();
    let ports = {
        let replicas = cluster.replicas.read().await;
        [(replicas.http(index), REQUEST), (replicas.grpc(index), PREFACE)]
    };
    strike.begins(&[], false, format!("{} slow connections to replica {} for {time:?}", 2 * each, index + 1));
    let mut streams = Vec::new();
    for (address, says) in ports {
        streams.extend(open(&[address], each).await.into_iter().map(|stream| (stream, says)));
    }
    let (opened, end, mut turn, mut slowest) = (streams.len(), Instant::now() + time, 0, Duration::ZERO);
    let mut refused = 0;
    while Instant::now() < end {
        for (stream, says) in &streams {
            let byte = says.get(turn).copied().unwrap_or(b'x');
            let _ = stream.try_write(&[byte]);
        }
        turn += 1;
        match answer_time(&cluster, index).await {
            Some(time) => slowest = slowest.max(time),
            None => refused += 1,
        }
        sleep(Duration::from_secs(1)).await;
    }
    let closed = streams.iter().filter(|(stream, _)| is_closed(stream)).count();
    drop(streams);
    strike.heals();
    if opened == 0 {
        return Err("no connection was taken".into());
    }
    let served = shared.accepted() - before;
    Ok(format!(
        "{opened} connections held, {closed} closed by the replica; others waited {} ms at the most, {refused} in vain; \
         {served} submissions accepted meanwhile",
        slowest.as_millis()
    ))
}
