//! Redis has too little memory, and throws keys away by chance.

use std::time::Duration;

use futures::FutureExt;
use redis::aio::MultiplexedConnection;
use tokio::time::{Instant, sleep};

use super::redis_asked::{ask, connect, info};
use super::{Fault, Needs, Strike, Struck, Subject};
use crate::monitor::Mark;

/// Time between two looks at what was thrown away.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Longest wait for Redis to throw something away.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) const FAULT: Fault = Fault {
    name: "redis-evict",
    about: "Redis has too little memory for 0.2 to 2 s, and throws keys away by chance",
    subject: Subject::Redis,
    needs: Needs::Nothing,
    strike: |strike| strike_redis(strike).boxed(),
};

async fn strike_redis(mut strike: Strike) -> Struck {
    let cluster = std::sync::Arc::clone(&strike.cluster);
    let time = strike.draw.milliseconds(200, 2000);
    let mut connection = connect(&cluster).await?;
    let before = evicted(&mut connection).await?;
    ask::<()>(&mut connection, &Mark::EvictionBegins.command()).await?;
    strike.begins(&[], false, format!("maxmemory below what is in use, for {} ms", time.as_millis()));
    let squeezed = squeeze(&mut connection, before, time).await;
    let mut eased = ask::<()>(&mut connection, "CONFIG SET maxmemory 0 maxmemory-policy noeviction").await;
    if eased.is_ok() {
        eased = ask::<()>(&mut connection, &Mark::EvictionEnds.command()).await;
    }
    strike.heals();
    eased?;
    squeezed?;
    match evicted(&mut connection).await?.saturating_sub(before) {
        0 => Err("nothing was thrown away".into()),
        keys => Ok(format!("{keys} keys thrown away")),
    }
}

/// Leaves less memory than is in use until something was thrown away, and for that long at the least.
async fn squeeze(connection: &mut MultiplexedConnection, before: u64, time: Duration) -> Result<(), String> {
    let begun = Instant::now();
    while begun.elapsed() < time || (evicted(connection).await? == before && begun.elapsed() < PATIENCE) {
        let used: u64 = info(connection, "used_memory").await?.parse().unwrap_or(0);
        let maximum = used.saturating_sub(1).max(1);
        let command = format!("CONFIG SET maxmemory-policy allkeys-random maxmemory {maximum}");
        ask::<()>(connection, &command).await?;
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

async fn evicted(connection: &mut MultiplexedConnection) -> Result<u64, String> {
    let count = info(connection, "evicted_keys").await?;
    count.parse().map_err(|_| format!("{count:?} is no number of keys"))
}
