//! PostgreSQL ends at once, without a word to anybody, and recovers from its log when it is started again.

use futures::FutureExt;
use tokio::time::sleep;

use super::{Fault, Needs, Strike, Struck, Subject};

/// Attempts to start it again before the run is given up.
const ATTEMPTS: usize = 5;

pub(super) const FAULT: Fault = Fault {
    name: "postgres-restart",
    about: "immediate shutdown of PostgreSQL, started again after 0 to 3 s",
    subject: Subject::Postgres,
    needs: Needs::Nothing,
    strike: |strike| strike_postgres(strike).boxed(),
};

async fn strike_postgres(mut strike: Strike) -> Struck {
    let cluster = std::sync::Arc::clone(&strike.cluster);
    let down = strike.draw.milliseconds(0, 3000);
    let mut postgres = cluster.postgres.lock().await;
    let former = postgres.pid();
    strike.begins(&[], false, format!("SIGQUIT of PostgreSQL, down for {} ms", down.as_millis()));
    let there = postgres.signal(cortex::dev::Signal::SIGQUIT);
    sleep(down).await;
    let mut restarted = Ok(());
    for _ in 0..ATTEMPTS {
        restarted = postgres.restart().await;
        if restarted.is_ok() {
            break;
        }
    }
    restarted.map_err(|error| error.to_string())?;
    let pid = postgres.pid();
    drop(postgres);
    strike.heals();
    if !there {
        return Err("it was gone already".into());
    }
    let ready = || async {
        let query = sqlx::query_scalar::<_, bool>("SELECT pg_is_in_recovery()");
        query.fetch_one(&cluster.pool).await.is_ok_and(|recovers| !recovers)
    };
    cluster.until("PostgreSQL takes writes", ready).await?;
    Ok(format!("its process was {former} and is {pid}"))
}
