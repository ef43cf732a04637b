//! Connections that are opened and held, and a look at whether others are served meanwhile.

use std::net::SocketAddr;
use std::time::Duration;

use futures::{StreamExt, stream};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::cluster::Cluster;

/// Connections that are opened at a time.
const AT_ONCE: usize = 64;
/// Longest wait for one.
const OPEN_WITHIN: Duration = Duration::from_secs(3);

/// Opens so many connections to each address; those that were refused are left out.
pub(super) async fn open(addresses: &[SocketAddr], each: usize) -> Vec<TcpStream> {
    let all: Vec<SocketAddr> = addresses.repeat(each);
    stream::iter(all)
        .map(|address| async move { timeout(OPEN_WITHIN, TcpStream::connect(address)).await.ok()?.ok() })
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await
}

/// Whether the other side has closed it.
pub(super) fn is_closed(stream: &TcpStream) -> bool {
    let mut byte = [0; 256];
    match stream.try_read(&mut byte) {
        Ok(length) => length == 0,
        Err(error) => error.kind() != std::io::ErrorKind::WouldBlock,
    }
}

/// How long a replica takes to answer an ordinary question; `None` if it does not.
pub(super) async fn answer_time(cluster: &Cluster, index: usize) -> Option<Duration> {
    let began = Instant::now();
    let url = format!("http://{}/api/v1/cluster", cluster.rest(index));
    // A client of its own: it must come through the door as anybody else does.
    let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(5)).build().ok()?;
    let answer = client.get(url).bearer_auth(&cluster.tokens().viewer).send().await.ok()?;
    answer.status().is_success().then(|| began.elapsed())
}
