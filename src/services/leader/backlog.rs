//! Which shapes have jobs in the ready queue.
//!
//! A shape is in the backlog from the commit of its first waiting job until a claim has found its set empty
//! while nothing was on its way into it. So the scheduler asks Redis only about shapes that may have jobs,
//! and a job may go straight to a worker when no shape of the backlog wants that worker.

use std::collections::HashMap;

use crate::domain::matching::Shape;

/// The shapes that may have jobs in the ready queue.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    shapes: HashMap<Shape, Waiting>,
    arrivals: u64,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Jobs that are committed as queued and on their way into the ready queue.
    coming: usize,
    /// Counts up with everything that comes into any set: tells whether a claim may have missed something.
    arrived: u64,
}

/// What the backlog knew of a shape before a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Glimpse(u64);

impl Backlog {
    /// A job was committed as queued and will be told to the ready queue.
    pub(super) fn expect(&mut self, shape: &Shape) {
        if let Some(waiting) = self.shapes.get_mut(shape) {
            waiting.coming += 1;
        } else {
            self.shapes.insert(shape.clone(), Waiting { coming: 1, arrived: 0 });
        }
    }

    /// Jobs that were expected are in the ready queue, or will not come.
    pub(super) fn arrive(&mut self, shape: &Shape, jobs: usize) {
        self.note([shape.clone()]);
        if let Some(waiting) = self.shapes.get_mut(shape) {
            waiting.coming = waiting.coming.saturating_sub(jobs);
        }
    }

    /// These shapes have jobs in the ready queue, wherever they come from.
    pub(super) fn note(&mut self, shapes: impl IntoIterator<Item = Shape>) {
        for shape in shapes {
            self.arrivals += 1;
            self.shapes.entry(shape).or_default().arrived = self.arrivals;
        }
    }

    /// All shapes, with what is known of each before a claim.
    pub(super) fn shapes(&self) -> impl Iterator<Item = (&Shape, Option<Glimpse>)> {
        self.shapes.iter().map(|(shape, waiting)| {
            let settled = waiting.coming == 0;
            (shape, settled.then_some(Glimpse(waiting.arrived)))
        })
    }

    /// A claim that began with this glimpse has found no more jobs of the shape.
    pub(super) fn exhausted(&mut self, shape: &Shape, glimpse: Glimpse) {
        if self.shapes.get(shape).is_some_and(|now| now.coming == 0 && now.arrived == glimpse.0) {
            self.shapes.remove(shape);
        }
    }

    /// Whether no shape has jobs.
    pub(super) fn is_empty(&self) -> bool {
        self.shapes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(model: &str) -> Shape {
        Shape { model_name: model.to_owned(), requires_gpu: false, required_memory_mib: 0 }
    }

    fn glimpse(backlog: &Backlog, of: &Shape) -> Option<Glimpse> {
        backlog.shapes().find(|(shape, _)| *shape == of).and_then(|(_, glimpse)| glimpse)
    }

    #[test]
    fn a_shape_is_forgotten_once_a_claim_found_it_empty() {
        let (mut backlog, a) = (Backlog::default(), shape("a"));
        backlog.expect(&a);
        backlog.arrive(&a, 1);
        let seen = glimpse(&backlog, &a).unwrap();
        backlog.exhausted(&a, seen);
        assert!(backlog.is_empty());
    }

    #[test]
    fn a_job_that_is_on_its_way_keeps_its_shape() {
        let (mut backlog, a) = (Backlog::default(), shape("a"));
        backlog.expect(&a);
        assert_eq!(glimpse(&backlog, &a), None, "a claim now could miss it");
        backlog.arrive(&a, 1);
        let seen = glimpse(&backlog, &a).unwrap();
        backlog.expect(&a);
        backlog.exhausted(&a, seen);
        assert!(!backlog.is_empty(), "it was committed during the claim");
        backlog.arrive(&a, 1);
        backlog.exhausted(&a, seen);
        assert!(!backlog.is_empty(), "it arrived after the claim");
    }

    #[test]
    fn jobs_that_come_unexpectedly_count_as_well() {
        let (mut backlog, a) = (Backlog::default(), shape("a"));
        backlog.note([a.clone()]);
        let seen = glimpse(&backlog, &a).unwrap();
        backlog.note([shape("b"), a.clone()]);
        backlog.exhausted(&a, seen);
        assert_eq!(backlog.shapes().count(), 2);
    }
}
