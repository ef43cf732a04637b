//! Pausing and resuming, and what the group of replicas changes about itself.

use std::sync::Arc;

use tokio::sync::{OwnedRwLockReadGuard, RwLock};

use super::Leader;
use crate::services::control::{Change, Changed};
use crate::services::error::ServiceError;

/// What is open while jobs are chosen by what is paused, until their leases are committed.
#[derive(Default)]
pub(super) struct Dispatching(Arc<RwLock<()>>);

/// Keeps those waiting who want to see the end of what was begun.
pub(super) type Open = OwnedRwLockReadGuard<()>;

impl Dispatching {
    /// Before a look at what is paused; to be kept until the leases are committed.
    pub(super) async fn begin(&self) -> Open {
        Arc::clone(&self.0).read_owned().await
    }

    /// Waits for the end of all that was begun before. What is begun later sees what is paused by then.
    async fn settle(&self) {
        drop(self.0.write().await);
    }
}

impl Leader {
    /// Has the group carry a change out. Once a pause is answered, no job that it holds back is assigned.
    pub(super) async fn control(&self, change: Change) -> Result<Changed, ServiceError> {
        let (pauses, resumes) = (matches!(change, Change::Pause(_)), matches!(change, Change::Resume(_)));
        let changed = self.core.parts.control.change(change).await;
        if pauses {
            self.core.dispatching.settle().await;
        }
        if resumes {
            self.core.nudges.schedule.notify_one();
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_pause_waits_for_what_began_before_it_and_nothing_waits_for_long() {
        let dispatching = Dispatching::default();
        let (round, batch) = (dispatching.begin().await, dispatching.begin().await);
        let mut settled = Box::pin(dispatching.settle());
        assert!(futures::poll!(&mut settled).is_pending());
        drop(round);
        assert!(futures::poll!(&mut settled).is_pending(), "one is still open");
        drop(batch);
        settled.await;
        drop(dispatching.begin().await);
    }
}
