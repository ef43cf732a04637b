//! Workers die in the middle of their jobs, and others take their places a while later.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, sleep};

use super::{Fault, Needs, Strike, Struck, Subject};

/// Longest wait for a worker that has something to lose.
const BUSY_WITHIN: Duration = Duration::from_secs(3);
/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(5);

pub(super) const FAULT: Fault = Fault {
    name: "worker-crash",
    about: "one or more workers die in the middle of their jobs, replaced after 0.2 to 6 s",
    subject: Subject::Workers,
    needs: Needs::Nothing,
    strike: |strike| crash(strike).boxed(),
};

async fn crash(mut strike: Strike) -> Struck {
    let workload = Arc::clone(&strike.workload);
    let mut victims = workload.lock().await.sessions.numbers();
    if victims.is_empty() {
        return Err("there is no worker".into());
    }
    let count = 1 + strike.draw.index(victims.len());
    while victims.len() > count {
        victims.swap_remove(strike.draw.index(victims.len()));
    }
    let deadline = Instant::now() + BUSY_WITHIN;
    while workload.lock().await.sessions.hands_of(victims[0]) == 0 && Instant::now() < deadline {
        sleep(LOOK_EVERY).await;
    }
    strike.begins(&[], false, format!("workers {victims:?} die"));
    let mut lost = 0;
    for number in &victims {
        lost += workload.lock().await.sessions.crash(*number).await;
    }
    sleep(strike.draw.milliseconds(200, 6000)).await;
    for number in &victims {
        workload.lock().await.sessions.start_one(*number);
    }
    strike.heals();
    if lost == 0 {
        return Err(format!("{} workers died, none of which had a job", victims.len()).into());
    }
    Ok(format!("{} workers died with {lost} jobs in hand", victims.len()))
}
