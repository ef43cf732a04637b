//! How many jobs wait in the ready queue, by shape.
//!
//! A shape is in the backlog from the commit of its first waiting job until its last one was claimed. So the
//! scheduler asks Redis only about shapes that may have jobs, and a submission knows whether there is a slot
//! for its job beside those that wait. The numbers are upper bounds: Redis is the one that has the jobs, and a
//! claim that comes back with less than it asked for corrects them.

use std::collections::HashMap;

use crate::domain::matching::Shape;

/// The shapes that may have jobs in the ready queue.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    shapes: HashMap<Shape, Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Jobs that are committed as queued and on their way into the ready queue.
    coming: u64,
    /// All jobs that have arrived there since the shape was noted first.
    arrived: u64,
    /// Jobs that wait, those on their way included; unknown where the ready queue holds jobs that were not
    /// expected.
    waiting: Option<u64>,
    /// Claimed, and whether they were jobs that waited will be known soon.
    claimed: u64,
    /// No job that was expected and waits is more urgent.
    urgency: u8,
}

/// The jobs that wait for the same slots as another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rivals {
    /// How many, at most.
    pub(super) jobs: u64,
    /// The highest of their priorities, at most.
    pub(super) urgency: u8,
}

/// How many jobs of a shape had arrived before a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Glimpse(u64);

impl Backlog {
    /// A job was committed as queued and will be told to the ready queue.
    pub(super) fn expect(&mut self, shape: &Shape, priority: u8) {
        if let Some(now) = self.shapes.get_mut(shape) {
            now.coming += 1;
            now.waiting = now.waiting.map(|waiting| waiting + 1);
            now.urgency = now.urgency.max(priority);
        } else {
            let first = Waiting { coming: 1, waiting: Some(1), urgency: priority, ..Waiting::default() };
            self.shapes.insert(shape.clone(), first);
        }
    }

    /// Jobs that were expected are in the ready queue, or will not come.
    pub(super) fn arrive(&mut self, shape: &Shape, jobs: u64) {
        if let Some(now) = self.shapes.get_mut(shape) {
            now.coming = now.coming.saturating_sub(jobs);
            now.arrived += jobs;
        } else {
            self.note([shape.clone()]);
        }
    }

    /// These shapes have jobs in the ready queue, nobody knows how many.
    pub(super) fn note(&mut self, shapes: impl IntoIterator<Item = Shape>) {
        for shape in shapes {
            let now = self.shapes.entry(shape).or_default();
            now.arrived += 1;
            now.waiting = None;
        }
    }

    /// All shapes that may have jobs, with what is known of each before a claim.
    pub(super) fn shapes(&self) -> impl Iterator<Item = (&Shape, Glimpse)> {
        let may_have_jobs = self.shapes.iter().filter(|(_, now)| !now.is_over());
        may_have_jobs.map(|(shape, now)| (shape, Glimpse(now.arrived)))
    }

    /// The jobs of those shapes that wait.
    pub(super) fn rivals(&self, of: impl Fn(&Shape) -> bool) -> Rivals {
        let wanted = self.shapes.iter().filter(|(shape, _)| of(shape));
        wanted.fold(Rivals { jobs: 0, urgency: 0 }, |sum, (_, now)| Rivals {
            jobs: sum.jobs.saturating_add(now.waiting.unwrap_or(u64::MAX)),
            urgency: sum.urgency.max(now.urgency),
        })
    }

    /// A claim has taken so many jobs of the shape; `emptied` holds what was known before it, if it found no
    /// more. The shape stays until [`Self::settled`] tells what they were: less urgent jobs are not placed past it.
    pub(super) fn claimed(&mut self, shape: &Shape, jobs: u64, emptied: Option<Glimpse>) {
        let Some(now) = self.shapes.get_mut(shape) else { return };
        now.claimed += jobs;
        now.waiting = now.waiting.map(|waiting| waiting.saturating_sub(jobs));
        if let Some(Glimpse(arrived)) = emptied {
            let since = now.arrived - arrived.min(now.arrived);
            now.waiting = Some(now.coming + since);
        }
        self.forget(shape);
    }

    /// What became of so many claims: `all_waited` if each was for a job that waited. What was claimed in vain was not
    /// among those that were counted, so they are more than are left.
    pub(super) fn settled(&mut self, shape: &Shape, jobs: u64, all_waited: bool) {
        if let Some(now) = self.shapes.get_mut(shape) {
            now.claimed = now.claimed.saturating_sub(jobs);
        }
        if all_waited {
            self.forget(shape);
        } else {
            self.note([shape.clone()]);
        }
    }

    /// Forgets the shape if none of its jobs waits.
    fn forget(&mut self, shape: &Shape) {
        if self.shapes.get(shape).is_some_and(|now| now.is_over() && now.claimed == 0) {
            self.shapes.remove(shape);
        }
    }

    /// Whether no shape has jobs.
    pub(super) fn is_empty(&self) -> bool {
        self.shapes().next().is_none()
    }
}

impl Waiting {
    fn is_over(&self) -> bool {
        self.waiting == Some(0) && self.coming == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(model: &str) -> Shape {
        Shape { model_name: model.to_owned(), requires_gpu: false, required_memory_mib: 0 }
    }

    fn glimpse(backlog: &Backlog, of: &Shape) -> Option<Glimpse> {
        backlog.shapes().find(|(shape, _)| *shape == of).map(|(_, glimpse)| glimpse)
    }

    #[test]
    fn a_shape_is_forgotten_once_its_last_job_was_claimed() {
        let (mut backlog, a) = (Backlog::default(), shape("a"));
        for _ in 0..2 {
            backlog.expect(&a, 5);
        }
        backlog.arrive(&a, 2);
        backlog.claimed(&a, 1, None);
        assert_eq!(backlog.rivals(|_| true).jobs, 1);
        backlog.claimed(&a, 1, None);
        assert_eq!(backlog.rivals(|_| true), Rivals { jobs: 0, urgency: 5 }, "it may have been another");
        assert!(backlog.is_empty());
        backlog.settled(&a, 2, true);
        assert_eq!(backlog.rivals(|_| true), Rivals { jobs: 0, urgency: 0 });
    }

    #[test]
    fn what_was_claimed_in_vain_does_not_stand_for_a_job_that_waits() {
        let (mut backlog, a) = (Backlog::default(), shape("a"));
        backlog.expect(&a, 8);
        backlog.arrive(&a, 1);
        backlog.claimed(&a, 1, None);
        backlog.settled(&a, 1, false);
        assert_eq!(backlog.rivals(|_| true), Rivals { jobs: u64::MAX, urgency: 8 });
        // The job itself, and the end.
        let seen = glimpse(&backlog, &a);
        backlog.claimed(&a, 1, seen);
        backlog.settled(&a, 1, true);
        assert!(backlog.is_empty());
    }

    #[test]
    fn a_claim_that_found_no_more_corrects_the_number() {
        let (mut backlog, a) = (Backlog::default(), shape("a"));
        for _ in 0..5 {
            backlog.expect(&a, 5);
        }
        backlog.arrive(&a, 3);
        let seen = glimpse(&backlog, &a);
        // Three were there; one of them was gone in the meantime, one more arrives during the claim.
        backlog.arrive(&a, 1);
        backlog.claimed(&a, 2, seen);
        assert_eq!(backlog.rivals(|_| true).jobs, 2, "one is on its way, one may have come too late");
        let seen = glimpse(&backlog, &a);
        backlog.claimed(&a, 1, seen);
        assert_eq!(backlog.rivals(|_| true).jobs, 1);
        backlog.arrive(&a, 1);
        let seen = glimpse(&backlog, &a);
        backlog.claimed(&a, 1, seen);
        assert!(backlog.is_empty());
    }

    #[test]
    fn jobs_that_nobody_expected_are_endlessly_many_until_a_claim_has_seen_their_end() {
        let (mut backlog, a) = (Backlog::default(), shape("a"));
        backlog.note([a.clone()]);
        backlog.claimed(&a, 1, None);
        assert_eq!(backlog.rivals(|shape| *shape == a).jobs, u64::MAX);
        assert_eq!(backlog.rivals(|shape| *shape != a).jobs, 0);
        let seen = glimpse(&backlog, &a);
        backlog.claimed(&a, 1, seen);
        assert!(backlog.is_empty());
    }

    #[test]
    fn the_most_urgent_job_counts_until_none_of_its_shape_waits() {
        let (mut backlog, a, b) = (Backlog::default(), shape("a"), shape("b"));
        backlog.expect(&a, 3);
        backlog.expect(&a, 8);
        backlog.expect(&b, 5);
        assert_eq!(backlog.rivals(|_| true), Rivals { jobs: 3, urgency: 8 });
        assert_eq!(backlog.rivals(|shape| *shape == b).urgency, 5);
        backlog.arrive(&a, 2);
        backlog.claimed(&a, 2, None);
        assert_eq!(backlog.rivals(|_| true), Rivals { jobs: 1, urgency: 8 });
        backlog.settled(&a, 2, true);
        assert_eq!(backlog.rivals(|_| true), Rivals { jobs: 1, urgency: 5 });
    }
}
