//! Redis takes commands and carries none of them out for a while.

use futures::FutureExt;
use tokio::time::Instant;

use super::redis_asked::{ask, connect};
use super::{Fault, Needs, Strike, Struck, Subject};

pub(super) const FAULT: Fault = Fault {
    name: "redis-pause",
    about: "CLIENT PAUSE of all commands for 0.5 to 5 s",
    subject: Subject::Redis,
    needs: Needs::Nothing,
    strike: |strike| strike_redis(strike).boxed(),
};

async fn strike_redis(mut strike: Strike) -> Struck {
    let cluster = std::sync::Arc::clone(&strike.cluster);
    let time = strike.draw.milliseconds(500, 5000);
    let mut connection = connect(&cluster).await?;
    strike.begins(&[], false, format!("CLIENT PAUSE for {} ms", time.as_millis()));
    ask::<()>(&mut connection, &format!("CLIENT PAUSE {} ALL", time.as_millis())).await?;
    let paused = Instant::now();
    // It ends by itself; this answer is held back as all others are.
    let answered = ask::<()>(&mut connection, "PING").await;
    strike.heals();
    answered?;
    let waited = paused.elapsed();
    if waited < time / 2 {
        return Err(format!("it answered after {} ms", waited.as_millis()).into());
    }
    Ok(format!("an answer took {} ms", waited.as_millis()))
}
