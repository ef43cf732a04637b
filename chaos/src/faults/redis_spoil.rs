//! One of the ready queue's own keys is of the wrong kind, or its epoch is one that no leader ever had.

use futures::FutureExt;
use tokio::time::Instant;

use super::redis_asked::{ask, connect, key};
use super::{Fault, Miss, Needs, Strike, Struck, Subject};

/// Keys that are no texts.
const KEYS: [&str; 4] = ["shapes", "depth", "claims", "shape:0:0:m0"];
/// Far above any epoch.
const EPOCH: u64 = 1_000_000_000;

pub(super) const FAULT: Fault = Fault {
    name: "redis-spoil",
    about: "a key of the ready queue is of the wrong kind, or its epoch is forged; over when that is set right",
    subject: Subject::Redis,
    needs: Needs::Nothing,
    strike: |strike| strike_redis(strike).boxed(),
};

async fn strike_redis(mut strike: Strike) -> Struck {
    let cluster = std::sync::Arc::clone(&strike.cluster);
    let mut connection = connect(&cluster).await?;
    let name = if strike.draw.percent(40) { "epoch" } else { *strike.draw.choose(&KEYS) };
    let key = key(name);
    strike.begins(&[], false, format!("{name} is now the text {EPOCH}"));
    ask::<()>(&mut connection, &format!("SET {key} {EPOCH}")).await?;
    let spoilt = Instant::now();
    let right = || async {
        let mut connection = connect(&cluster).await.ok()?;
        let kind: String = ask(&mut connection, &format!("TYPE {key}")).await.ok()?;
        if kind != "string" {
            return Some(true);
        }
        let value: String = ask(&mut connection, &format!("GET {key}")).await.ok()?;
        Some(value != EPOCH.to_string())
    };
    let healed = cluster.until("the key is right again", || async { right().await == Some(true) }).await;
    if healed.is_err() {
        ask::<()>(&mut connection, &format!("DEL {key}")).await?;
    }
    strike.heals();
    healed.map_err(Miss::Broke)?;
    Ok(format!("{name} was right again after {} ms", spoilt.elapsed().as_millis()))
}
