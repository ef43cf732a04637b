//! How long clients and workers had to wait: what a planned hand-over is measured by.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::workload::Shared;

/// Time between two looks at the counters.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// The longest stretches in which no submission was answered ok, and in which no worker began a job.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Gaps {
    pub(super) accepted: Duration,
    pub(super) started: Duration,
    /// Submissions that were answered ok.
    pub(super) submissions: u64,
}

/// A look at the counters that goes on until it is asked for its result.
pub(super) struct Watch {
    stop: CancellationToken,
    task: JoinHandle<Gaps>,
}

impl Watch {
    pub(super) fn start(shared: &Arc<Shared>) -> Self {
        let stop = CancellationToken::new();
        let (shared, stopped) = (Arc::clone(shared), stop.clone());
        let task = tokio::spawn(async move {
            let begun = shared.accepted();
            let mut gaps = Gaps::default();
            let mut last = [(begun, Instant::now()), (shared.started(), Instant::now())];
            while !stopped.is_cancelled() {
                sleep(LOOK_EVERY).await;
                let now = Instant::now();
                let longest = [&mut gaps.accepted, &mut gaps.started];
                for ((count, longest), (before, since)) in
                    [shared.accepted(), shared.started()].into_iter().zip(longest).zip(&mut last)
                {
                    *longest = (*longest).max(now - *since);
                    if count != *before {
                        (*before, *since) = (count, now);
                    }
                }
            }
            gaps.submissions = shared.accepted() - begun;
            gaps
        });
        Self { stop, task }
    }

    pub(super) async fn end(self) -> Gaps {
        self.stop.cancel();
        self.task.await.unwrap_or_default()
    }
}

impl std::fmt::Display for Gaps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (accepted, started) = (self.accepted.as_millis(), self.started.as_millis());
        write!(f, "longest wait for a submission {accepted} ms, for a dispatch {started} ms")
    }
}
