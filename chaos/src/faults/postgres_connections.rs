//! PostgreSQL ends all connections of the replicas, in the middle of whatever they do.

use futures::FutureExt;

use super::{Fault, Needs, Strike, Struck, Subject};

/// Those of replicas, which give their name.
const END: &str =
    "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)), count(*) FILTER (WHERE state <> 'idle')
    FROM pg_stat_activity WHERE application_name = 'cortex' AND backend_type = 'client backend'";

pub(super) const FAULT: Fault = Fault {
    name: "postgres-connections",
    about: "PostgreSQL ends all connections of replicas, one to four times within 2 s",
    subject: Subject::Postgres,
    needs: Needs::Nothing,
    strike: |strike| strike_postgres(strike).boxed(),
};

async fn strike_postgres(mut strike: Strike) -> Struck {
    let cluster = std::sync::Arc::clone(&strike.cluster);
    let times = strike.draw.between(1, 5);
    strike.begins(&[], false, format!("pg_terminate_backend of all connections, {times} times"));
    let (mut ended, mut busy, mut failed) = (0, 0, None);
    for _ in 0..times {
        match sqlx::query_as::<_, (i64, i64)>(END).fetch_one(&cluster.pool).await {
            Ok(counts) => (ended, busy) = (ended + counts.0, busy + counts.1),
            Err(error) => failed = Some(error.to_string()),
        }
        tokio::time::sleep(strike.draw.milliseconds(50, 500)).await;
    }
    strike.heals();
    match (ended, failed) {
        (0, Some(error)) => Err(error.into()),
        (0, None) => Err("there was none".into()),
        _ => Ok(format!("{ended} connections ended, {busy} of them in the middle of something")),
    }
}
