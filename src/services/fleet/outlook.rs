//! Who could take a job, and what keeps the others from it.

use super::Fleet;
use super::worker::{FleetWorker, Health, Way};
use crate::domain::explain::{Obstacle, Verdict};
use crate::domain::ids::WorkerId;
use crate::domain::matching::Shape;

impl Fleet {
    /// Every worker that is not offline, in view of a job of this shape.
    pub fn verdicts(&self, shape: &Shape) -> Vec<Verdict> {
        let verdict = |(id, worker): (&WorkerId, &FleetWorker)| Verdict {
            worker_id: *id,
            obstacle: worker.obstacle(shape),
        };
        self.workers.iter().map(verdict).collect()
    }
}

impl FleetWorker {
    /// The first thing that keeps the worker from taking such a job, what lasts before what passes.
    fn obstacle(&self, shape: &Shape) -> Option<Obstacle> {
        if let Err(mismatch) = self.capabilities.check(shape) {
            return Some(mismatch.into());
        }
        match &self.way {
            _ if self.is_leaving() => Some(Obstacle::Draining),
            _ if self.health == Health::Unhealthy => Some(Obstacle::Unhealthy),
            _ if self.vacant() == 0 => Some(Obstacle::Full),
            // It failed too often in a row, and rests.
            _ if self.free() == 0 => Some(Obstacle::Unhealthy),
            _ if self.assignable() > 0 => None,
            Way::Polls(_) => Some(Obstacle::NotPolling),
            Way::Session(_) => Some(Obstacle::NoCredits),
            Way::Nowhere => Some(Obstacle::Disconnected),
        }
    }
}
