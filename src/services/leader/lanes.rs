//! Writers that run side by side, each with a counter slot of its own.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A few lanes; whoever enters one has its counter slot for itself (see `storage::counters`).
pub(super) struct Lanes {
    slots: Arc<Mutex<Vec<i16>>>,
    free: Arc<Semaphore>,
    count: usize,
}

/// A lane in use. Dropping it frees the lane.
pub(super) struct Lane {
    slot: i16,
    alone: bool,
    slots: Arc<Mutex<Vec<i16>>>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Lanes {
    /// One lane for each slot.
    pub(super) fn new(slots: &[i16]) -> Self {
        Self {
            slots: Arc::new(Mutex::new(slots.to_vec())),
            free: Arc::new(Semaphore::new(slots.len())),
            count: slots.len(),
        }
    }

    /// Waits for a free lane.
    pub(super) async fn enter(&self) -> Lane {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.free).acquire_owned().await.ok();
        let alone = self.free.available_permits() + 1 == self.count;
        let slot = self.slots.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        Lane { slot, alone, slots: Arc::clone(&self.slots), permit }
    }
}

impl Lane {
    /// The counter slot.
    pub(super) fn slot(&self) -> i16 {
        self.slot
    }

    /// Whether no other lane was in use on entering.
    pub(super) fn is_alone(&self) -> bool {
        self.alone
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).push(self.slot);
        drop(self.permit.take());
    }
}
