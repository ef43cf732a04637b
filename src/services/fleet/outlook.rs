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
        match (self.health, &self.way) {
            (Health::Draining, _) => Some(Obstacle::Draining),
            (Health::Unhealthy, _) => Some(Obstacle::Unhealthy),
            (Health::Well, _) if self.free() == 0 => Some(Obstacle::Full),
            (Health::Well, _) if self.assignable() > 0 => None,
            (Health::Well, Way::Polls(_)) => Some(Obstacle::NotPolling),
            (Health::Well, Way::Session(_)) => Some(Obstacle::NoCredits),
            (Health::Well, Way::Nowhere) => Some(Obstacle::Disconnected),
        }
    }
}
