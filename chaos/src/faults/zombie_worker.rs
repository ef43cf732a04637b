//! A worker falls silent with jobs in hand, and reports them when its leases are long lost.

use std::sync::Arc;
use std::time::Duration;

use chrono::{DateTime, Utc};
use futures::FutureExt;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::{Fault, Needs, Strike, Struck, Subject, extra_jobs};
use crate::cluster::{Cluster, PATIENCE};

/// Longest wait for a worker that has jobs in hand.
const BUSY_WITHIN: Duration = Duration::from_secs(5);
/// Jobs that are submitted so that it has some: more than the others can take.
const EXTRA_JOBS: usize = 60;
/// How long they take.
const EXTRA_WORK_MS: u64 = 1500;
/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// How long the worker may take to say what it has to say.
const SAID_WITHIN: Duration = Duration::from_secs(10);

pub(super) const FAULT: Fault = Fault {
    name: "zombie-worker",
    about: "a worker falls silent until its leases are lost, and reports what it did: as soon as another one has such a \
            job, or up to 3 s later",
    subject: Subject::Workers,
    needs: Needs::Nothing,
    strike: |strike| fall_silent(strike).boxed(),
};

async fn fall_silent(mut strike: Strike) -> Struck {
    let workload = Arc::clone(&strike.workload);
    let count = workload.lock().await.pollers.len();
    if count == 0 {
        return Err("no worker polls".into());
    }
    let index = strike.draw.index(count);
    extra_jobs::submit(&mut strike, EXTRA_JOBS, EXTRA_WORK_MS).await;
    let deadline = Instant::now() + BUSY_WITHIN;
    while workload.lock().await.pollers[index].hands() == 0 {
        if Instant::now() > deadline {
            return Err("it had no job".into());
        }
        sleep(LOOK_EVERY).await;
    }
    let (name, id, before) = {
        let workload = workload.lock().await;
        let poller = &workload.pollers[index];
        poller.play_dead(true);
        (poller.name().to_owned(), poller.id().await, poller.stale_reports())
    };
    // While another has the job, a report could be taken for that one's.
    let meanwhile = strike.draw.percent(50);
    let longer = strike.draw.milliseconds(0, 3000);
    strike.begins(&[], false, format!("{name} falls silent"));
    let lost = if meanwhile {
        another_has_one(&strike.cluster, &id).await
    } else {
        let lost = has_lost_all(&strike.cluster, &id).await;
        sleep(longer).await;
        lost
    };
    let had = workload.lock().await.pollers[index].hands();
    workload.lock().await.pollers[index].play_dead(false);
    strike.heals();
    lost?;
    let reports = async || {
        let (refused, taken) = workload.lock().await.pollers[index].stale_reports();
        (refused - before.0, taken - before.1)
    };
    let deadline = Instant::now() + SAID_WITHIN;
    while {
        let (refused, taken) = reports().await;
        refused + taken < had
    } && Instant::now() < deadline
    {
        sleep(LOOK_EVERY).await;
    }
    let (refused, taken) = reports().await;
    if refused + taken == 0 {
        return Err(format!("it had {had} jobs in hand and said nothing").into());
    }
    Ok(format!("of {had} reports under lost leases {refused} were refused and {taken} taken"))
}

/// Waits until a job that a worker has lost since this call is in the hands of another one.
async fn another_has_one(cluster: &Cluster, worker: &str) -> Result<(), String> {
    let worker = Uuid::parse_str(worker).map_err(|error| error.to_string())?;
    let since = sqlx::query_scalar::<_, DateTime<Utc>>("SELECT now()").fetch_one(&cluster.pool).await;
    let since = since.map_err(|error| error.to_string())?;
    let elsewhere = "SELECT EXISTS (SELECT FROM executions lost \
         JOIN leases l ON l.job_id = lost.job_id JOIN executions live ON live.id = l.id \
         WHERE lost.worker_id = $1 AND lost.completed_at >= $2 AND live.worker_id <> $1)";
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        let found = sqlx::query_scalar(elsewhere).bind(worker).bind(since).fetch_one(&cluster.pool).await;
        if found.unwrap_or(false) {
            return Ok(());
        }
        sleep(LOOK_EVERY).await;
    }
    Err("no job of its came to another worker".to_owned())
}

/// Waits until a worker has no lease any more.
pub(super) async fn has_lost_all(cluster: &Cluster, worker: &str) -> Result<(), String> {
    let worker = Uuid::parse_str(worker).map_err(|error| error.to_string())?;
    let held = "SELECT count(*) FROM leases l JOIN executions e ON e.id = l.id WHERE e.worker_id = $1";
    // Twice in a row: a grant may have been under way when the worker fell silent.
    let (deadline, mut free) = (Instant::now() + PATIENCE, 0);
    while free < 2 {
        if Instant::now() > deadline {
            return Err("it kept its leases".to_owned());
        }
        sleep(Duration::from_secs(1)).await;
        let held = sqlx::query_scalar::<_, i64>(held).bind(worker).fetch_one(&cluster.pool).await;
        free = if held.is_ok_and(|held| held == 0) { free + 1 } else { 0 };
    }
    Ok(())
}
