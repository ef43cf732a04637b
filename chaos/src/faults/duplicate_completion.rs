//! Workers report the same completion to all replicas at once.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, sleep};

use super::{Fault, Needs, Strike, Struck, Subject};

/// How long it may take to have reported them all.
const WITHIN: Duration = Duration::from_secs(15);
/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(super) const FAULT: Fault = Fault {
    name: "duplicate-completion",
    about: "5 to 40 completions are sent to all replicas at once",
    subject: Subject::Workers,
    needs: Needs::Nothing,
    strike: |strike| report_everywhere(strike).boxed(),
};

async fn report_everywhere(mut strike: Strike) -> Struck {
    let workload = Arc::clone(&strike.workload);
    let tally = async || {
        let workload = workload.lock().await;
        let each = workload.pollers.iter().map(crate::workload::Poller::reported_everywhere);
        each.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
    };
    let before = tally().await;
    let each = usize::try_from(strike.draw.between(5, 20)).unwrap_or(5);
    let wanted = each * workload.lock().await.pollers.len();
    strike.begins(&[], false, format!("{wanted} completions go to all replicas at once"));
    workload.lock().await.pollers.iter().for_each(|poller| poller.report_everywhere(each));
    let deadline = Instant::now() + WITHIN;
    let mut seen = (0, 0);
    while seen.0 + seen.1 < wanted && Instant::now() < deadline {
        sleep(LOOK_EVERY).await;
        let now = tally().await;
        seen = (now.0 - before.0, now.1 - before.1);
    }
    workload.lock().await.pollers.iter().for_each(|poller| poller.report_everywhere(0));
    strike.heals();
    let (same, different) = seen;
    if same + different == 0 {
        return Err("no completion was answered by more than one replica".into());
    }
    Ok(format!("{same} completions had the same answer everywhere, {different} had not"))
}
