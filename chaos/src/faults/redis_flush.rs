//! Redis is emptied.

use futures::FutureExt;
use tokio::time::Instant;

use super::redis_asked::{ask, connect, generation, whole_again};
use super::{Fault, Miss, Needs, Strike, Struck, Subject};

pub(super) const FAULT: Fault = Fault {
    name: "redis-flush",
    about: "FLUSHALL; over when the ready queue has been rebuilt",
    subject: Subject::Redis,
    needs: Needs::Nothing,
    strike: |strike| strike_redis(strike).boxed(),
};

async fn strike_redis(strike: Strike) -> Struck {
    let cluster = &strike.cluster;
    let mut connection = connect(cluster).await?;
    let before = generation(cluster).await?;
    let keys: u64 = ask(&mut connection, "DBSIZE").await?;
    strike.begins(&[], false, format!("FLUSHALL of {keys} keys"));
    ask::<()>(&mut connection, "FLUSHALL").await?;
    let flushed = Instant::now();
    let rebuilt = whole_again(cluster, before.as_deref()).await;
    strike.heals();
    rebuilt.map_err(Miss::Broke)?;
    if keys == 0 {
        return Err("there was nothing in it".into());
    }
    Ok(format!("{keys} keys gone; the queue was whole again after {} ms", flushed.elapsed().as_millis()))
}
