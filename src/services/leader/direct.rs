//! Jobs that need not wait: one whose time comes while a worker has a slot to spare is given to it by the statement
//! that makes it ready. The ready queue never hears of it.

use std::cmp::Reverse;
use std::collections::HashMap;

use super::Core;
use super::backlog::Rivals;
use super::dispatch::Placed;
use crate::domain::ids::{JobId, WorkerId};
use crate::domain::job::NewJob;
use crate::domain::matching::Shape;
use crate::domain::placement::GroupId;
use crate::storage::Due;

/// A job that is ready and has not waited.
pub(super) struct Newcomer<'a> {
    id: JobId,
    shape: &'a Shape,
    priority: u8,
    /// Workers that were lost while they ran it: others that have a slot to spare come first.
    lost_workers: &'a [WorkerId],
}

impl<'a> Newcomer<'a> {
    pub(super) fn of(job: &'a NewJob) -> Self {
        Self { id: job.id, shape: &job.shape, priority: job.priority, lost_workers: &[] }
    }

    pub(super) fn due(job: &'a Due) -> Self {
        let Due { id, priority, shape, lost_workers, .. } = job;
        Self { id: *id, shape, priority: *priority, lost_workers }
    }
}

impl Core {
    /// Reserves a slot for each job that a worker can take at once without taking one from a job that waits for
    /// the same slots, and without overtaking a more urgent one: that may be kept waiting by Redis.
    pub(super) fn place_directly(&self, jobs: &[Option<Newcomer<'_>>]) -> Vec<Option<Placed>> {
        let mut placed: Vec<Option<Placed>> = jobs.iter().map(|_| None).collect();
        let paused = self.parts.control.paused();
        let backlog = self.backlog();
        if !self.parts.scheduling || paused.all || !self.knows_who_waits() {
            return placed;
        }
        let mut fleet = self.fleet();
        // The order of the jobs among each other: who comes later may be more urgent.
        let mut order: Vec<(&Newcomer<'_>, &mut Option<Placed>)> =
            jobs.iter().zip(&mut placed).filter_map(|(job, place)| Some((job.as_ref()?, place))).collect();
        order.sort_by_key(|(job, _)| Reverse(job.priority));
        let mut rivals: HashMap<GroupId, Rivals> = HashMap::new();
        for (job, place) in order {
            if paused.holds(&job.shape.model_name) {
                continue;
            }
            let pool = fleet.pool();
            let able = pool.able(job.shape);
            // A slot more than those need that wait for this group.
            let mut to_spare = |group: &GroupId| {
                let rivals = rivals.entry(*group);
                let rivals = rivals.or_insert_with(|| {
                    let goes_on = |shape: &Shape| !paused.holds(&shape.model_name);
                    backlog.rivals(|shape| goes_on(shape) && pool.runs(*group, shape))
                });
                u64::from(pool.free_in(*group)) > rivals.jobs && job.priority >= rivals.urgency
            };
            let mut best_but = |but: &[WorkerId]| {
                let mut spare = able.iter().filter(|group| to_spare(group));
                spare.find_map(|group| pool.best_but(*group, &job.shape.model_name, but))
            };
            let mut best = best_but(job.lost_workers);
            if best.is_none() && !job.lost_workers.is_empty() {
                best = best_but(&[]);
            }
            let Some(worker) = best else { continue };
            if let Some(poller) = fleet.reserve(worker) {
                *place = Some(self.placed(job.id, worker, poller));
            }
        }
        placed
    }
}
