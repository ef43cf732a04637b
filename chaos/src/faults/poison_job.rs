//! A job kills whoever takes it. After three different workers that ran it, or ten deaths before it ran, it must fail for
//! good, and others go on.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use sqlx::PgPool;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::zombie_worker::has_lost_all;
use super::{Fault, Miss, Needs, Strike, Struck, Subject};
use crate::history::{Outcome, Request};
use crate::workload::{Plan, Workload, outcome_of};

/// Longest wait for its end: ten silent workers may have to be given up, one after the other.
const ENDS_WITHIN: Duration = Duration::from_secs(180);
/// Longest wait for the answer to its submission.
const ANSWER_WITHIN: Duration = Duration::from_secs(6);
/// How long dead workers stay away.
const AWAY: Duration = Duration::from_millis(500);
/// As many different workers must be lost before it is given up.
const WORKERS: i64 = 3;
/// Or as many before they had said that it runs.
const EARLY: i64 = 10;

pub(super) const FAULT: Fault = Fault {
    name: "poison-job",
    about: "a job kills every worker that takes it, at once or after 0.3 to 1 s; workers come back half a second later",
    subject: Subject::Workers,
    needs: Needs::Nothing,
    strike: |strike| poison(strike).boxed(),
};

async fn poison(mut strike: Strike) -> Struck {
    let cluster = Arc::clone(&strike.cluster);
    let shared = strike.shared().await;
    let number = shared.next_number();
    // A worker says that a job runs when it has run for a while: before that its death says less.
    let at_once = strike.draw.percent(50);
    let work_ms = if at_once { 0 } else { strike.draw.between(300, 1000) };
    let plan = Plan { number, work_ms, fails: 0, run_at: None, overruns: false, poison: true };
    let mut body = plan.body(&mut strike.draw);
    // What its policy allows must not matter.
    body["max_retries"] = 10.into();
    body["priority"] = 10.into();
    strike.begins(&[], false, format!("job {number} kills whoever takes it"));
    let replica = strike.draw.index(cluster.size());
    let url = format!("http://{}/api/v1/jobs", cluster.rest(replica));
    let send = cluster.http.post(url).bearer_auth(&cluster.tokens().submitter).json(&body);
    let request = Request::Submit { key: None, numbers: vec![number], batch: false };
    let outcome =
        strike.recorder.call("poisoner", replica, request, outcome_of(send.timeout(ANSWER_WITHIN))).await;
    let job = match &outcome {
        Outcome::Ok { jobs, .. } => jobs.first().map(|job| job.id).ok_or("it was answered without a job")?,
        other => return Err(Miss::Idle(format!("it was not accepted: {other:?}"))),
    };
    let ended = keep_workers(&strike, job).await;
    if ended.is_err() {
        // It must not go on killing workers when this is over.
        let url = format!("http://{}/api/v1/jobs/{job}", cluster.rest(replica));
        let send = cluster.http.delete(url).bearer_auth(&cluster.tokens().submitter).timeout(ANSWER_WITHIN);
        let cancel = Request::Cancel { job };
        strike.recorder.call("poisoner", replica, cancel, outcome_of(send)).await;
    }
    let decided = is_decided(&cluster.pool, job).await;
    revive_all(&strike).await;
    strike.heals();
    let (deaths, status) = match ended {
        Ok(ended) => ended,
        // The same workers took it again and again.
        Err(error) if decided == Ok(false) => return Err(Miss::Idle(error)),
        Err(error) => return Err(Miss::Broke(error)),
    };
    let (workers, code): (i64, Option<String>) = sqlx::query_as(
        "SELECT count(DISTINCT worker_id),
            (SELECT error_code FROM executions WHERE job_id = $1 ORDER BY created_at DESC LIMIT 1)
         FROM executions WHERE job_id = $1",
    )
    .bind(job)
    .fetch_one(&cluster.pool)
    .await
    .map_err(|error| error.to_string())?;
    let said =
        format!("job {job} is {status}, code {code:?}, after {deaths} deaths of {workers} different workers");
    let given_up = status == "failed" && code.as_deref() == Some("poison");
    if given_up && (at_once || workers == WORKERS) {
        return Ok(said);
    }
    // The same workers took it again and again, until its retries were spent.
    let spent = status == "failed" && code.as_deref() == Some("worker_lost") && decided == Ok(false);
    // A start whose report was lost beside another fault lets a further worker die.
    Err(if given_up || spent { Miss::Idle(said) } else { Miss::Broke(said) })
}

/// Whether it has cost as much as it may, by its executions: what the product has counted is not asked.
async fn is_decided(pool: &PgPool, job: Uuid) -> Result<bool, String> {
    let cost = "SELECT count(DISTINCT worker_id) FILTER (WHERE status = 'failed'),
            count(*) FILTER (WHERE status = 'cancelled')
        FROM executions WHERE job_id = $1 AND error_code = 'worker_lost'";
    let cost = sqlx::query_as::<_, (i64, i64)>(cost).bind(job).fetch_one(pool).await;
    cost.map(|(workers, early)| workers >= WORKERS || early >= EARLY).map_err(|error| error.to_string())
}

/// Replaces the workers that it kills until it is at its end; answers how many died, and its last state.
async fn keep_workers(strike: &Strike, job: Uuid) -> Result<(usize, String), String> {
    let (mut deaths, deadline) = (0, Instant::now() + ENDS_WITHIN);
    loop {
        sleep(AWAY).await;
        deaths += revive(strike).await;
        let look = "SELECT status FROM jobs WHERE id = $1 AND completed_at IS NOT NULL";
        let ended =
            sqlx::query_scalar::<_, String>(look).bind(job).fetch_optional(&strike.cluster.pool).await;
        if let Ok(Some(status)) = ended {
            return Ok((deaths, status));
        }
        if Instant::now() > deadline {
            return Err(format!("job {job} is not at its end after {deaths} deaths"));
        }
    }
}

/// Brings back those that have died. A worker that polls lives on in this process: it must have lost its leases first.
async fn revive(strike: &Strike) -> usize {
    let silent = |workload: &Workload| workload.pollers.iter().position(crate::workload::Poller::plays_dead);
    let (mut revived, silent, id) = {
        let workload = strike.workload.lock().await;
        let silent = silent(&workload);
        let id = match silent {
            Some(index) => workload.pollers[index].id().await,
            None => String::new(),
        };
        (workload.sessions.revive(), silent, id)
    };
    if let Some(index) = silent
        && has_lost_all(&strike.cluster, &id).await.is_ok()
    {
        strike.workload.lock().await.pollers[index].play_dead(false);
        revived += 1;
    }
    revived
}

async fn revive_all(strike: &Strike) {
    sleep(AWAY).await;
    while revive(strike).await > 0 {}
}
