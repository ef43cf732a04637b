//! Redis is killed: what it has not synced is lost, and it is started again a while later.

use futures::FutureExt;
use tokio::time::sleep;

use super::redis_asked::{connect, info};
use super::{Fault, Needs, Strike, Struck, Subject};

/// Attempts to start it again before the run is given up.
const ATTEMPTS: usize = 5;

pub(super) const FAULT: Fault = Fault {
    name: "redis-kill",
    about: "kill -9 of Redis, started again after 0 to 4 s",
    subject: Subject::Redis,
    needs: Needs::Nothing,
    strike: |strike| strike_redis(strike).boxed(),
};

async fn strike_redis(mut strike: Strike) -> Struck {
    let cluster = std::sync::Arc::clone(&strike.cluster);
    let down = strike.draw.milliseconds(0, 4000);
    let before = info(&mut connect(&cluster).await?, "run_id").await?;
    let mut redis = cluster.redis.lock().await;
    strike.begins(&[], false, format!("kill -9 of Redis, down for {} ms", down.as_millis()));
    let there = redis.signal(cortex::dev::Signal::SIGKILL);
    sleep(down).await;
    let mut restarted = Ok(());
    for _ in 0..ATTEMPTS {
        restarted = redis.restart().await;
        if restarted.is_ok() {
            break;
        }
    }
    restarted.map_err(|error| error.to_string())?;
    drop(redis);
    strike.heals();
    if !there {
        return Err("it was gone already".into());
    }
    let after = info(&mut connect(&cluster).await?, "run_id").await?;
    if after == before {
        return Err("it is still the same run of Redis".into());
    }
    Ok(format!("its run id was {} and is {}", &before[..8.min(before.len())], &after[..8.min(after.len())]))
}
