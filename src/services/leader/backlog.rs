//! How many jobs wait in the ready queue, by shape.
//!
//! A shape is in the backlog from the commit of its first waiting job until its last one was claimed and assigned. So the
//! scheduler asks Redis only about shapes that may have jobs, and a submission knows whether there is a slot
//! for its job beside those that wait. The numbers are upper bounds: Redis is the one that has the jobs, and a
//! claim that comes back with less than it asked for corrects them. Where nothing explains the difference, Redis may have
//! lost jobs.

use std::collections::HashMap;

use crate::domain::matching::Shape;

/// The shapes that may have jobs in the ready queue.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    shapes: HashMap<Shape, Waiting>,
    rounds: u64,
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
    /// Jobs that were called off, and may be among those that are counted.
    called_off: u64,
    /// No job that was expected and waits is more urgent.
    urgency: u8,
    /// Rounds that have claimed jobs and have yet to find out whether those waited, and the urgency until then.
    claims: Vec<(Round, u8)>,
}

/// The jobs that wait for the same slots as another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rivals {
    /// How many, at most.
    pub(super) jobs: u64,
    /// The highest of their priorities, at most.
    pub(super) urgency: u8,
}

/// Which round of the scheduler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Round(u64);

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

    /// A job that was expected need not wait any more, and is taken out of the ready queue if it is there still.
    pub(super) fn call_off(&mut self, shape: &Shape) {
        if let Some(now) = self.shapes.get_mut(shape) {
            now.called_off += 1;
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

    /// The ready queue holds so many jobs of the shape. More than are counted were not expected.
    pub(super) fn held(&mut self, shape: Shape, jobs: u64) {
        let counted = self.shapes.get(&shape).map_or(Some(0), |now| now.waiting);
        if counted.is_some_and(|counted| counted < jobs) {
            self.note([shape]);
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
            urgency: now
                .claims
                .iter()
                .fold(sum.urgency.max(now.urgency), |most, (_, urgency)| most.max(*urgency)),
        })
    }

    /// A round begins.
    pub(super) fn begin(&mut self) -> Round {
        self.rounds += 1;
        Round(self.rounds)
    }

    /// A round has claimed so many jobs of the shape; `emptied` holds what was known before it, if it found no
    /// more. Until [`Self::settled`] tells what they were, less urgent jobs are not placed past them. Answers whether
    /// jobs that wait may have been missing: more were counted than were there, or nobody knew how many there should be.
    #[must_use]
    pub(super) fn claimed(
        &mut self,
        round: Round,
        shape: &Shape,
        jobs: u64,
        emptied: Option<Glimpse>,
    ) -> bool {
        let Some(now) = self.shapes.get_mut(shape) else { return false };
        if jobs > 0 {
            now.claims.push((round, now.urgency));
        }
        now.waiting = now.waiting.map(|waiting| waiting.saturating_sub(jobs));
        let lacks = emptied.is_some_and(|seen| now.saw_end(seen));
        self.forget(shape);
        lacks
    }

    /// What became of a round's claims: `all_waited` if each was for a job that waited. What was claimed in vain was not
    /// among those that were counted, so there are more than are left.
    pub(super) fn settled(&mut self, round: Round, shape: &Shape, all_waited: bool) {
        if !all_waited {
            self.note([shape.clone()]);
        }
        if let Some(now) = self.shapes.get_mut(shape) {
            let own = |(of, _): &mut (Round, u8)| *of == round;
            for (_, urgency) in now.claims.extract_if(.., own) {
                if !all_waited {
                    now.urgency = now.urgency.max(urgency);
                }
            }
        }
        self.forget(shape);
    }

    /// Forgets the urgency if no job waits, and the shape with the last claim.
    fn forget(&mut self, shape: &Shape) {
        let Some(now) = self.shapes.get_mut(shape).filter(|now| now.is_over()) else { return };
        now.urgency = 0;
        if now.claims.is_empty() {
            self.shapes.remove(shape);
        }
    }

    /// Whether no shape has jobs.
    pub(super) fn is_empty(&self) -> bool {
        self.shapes().next().is_none()
    }
}

impl Waiting {
    /// A claim found no more: what waits has come since, or is yet to come. Answers whether that is fewer than it
    /// may have been.
    fn saw_end(&mut self, Glimpse(arrived): Glimpse) -> bool {
        let most = self.coming + self.arrived.saturating_sub(arrived);
        let counted = self.waiting.unwrap_or(u64::MAX);
        let lacks = counted > most + self.called_off;
        self.waiting = Some(counted.min(most));
        self.called_off = self.called_off.min(most);
        lacks
    }

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

    /// A round that finds out at once that all it claimed had waited; whether it missed some.
    fn claim(backlog: &mut Backlog, of: &Shape, jobs: u64, emptied: Option<Glimpse>) -> bool {
        let round = backlog.begin();
        let lacks = backlog.claimed(round, of, jobs, emptied);
        backlog.settled(round, of, true);
        lacks
    }

    #[test]
    fn a_shape_is_forgotten_once_its_last_job_was_claimed_and_had_waited() {
        let (mut backlog, a) = (Backlog::default(), shape("a"));
        for _ in 0..2 {
            backlog.expect(&a, 5);
        }
        backlog.arrive(&a, 2);
        let rounds = [backlog.begin(), backlog.begin()];
        assert!(!backlog.claimed(rounds[0], &a, 1, None));
        assert_eq!(backlog.rivals(|_| true).jobs, 1);
        assert!(!backlog.claimed(rounds[1], &a, 1, None));
        assert_eq!(backlog.rivals(|_| true), Rivals { jobs: 0, urgency: 5 }, "it may have been another");
        assert!(backlog.is_empty());
        backlog.settled(rounds[0], &a, true);
        assert_eq!(backlog.rivals(|_| true), Rivals { jobs: 0, urgency: 5 });
        backlog.settled(rounds[1], &a, true);
        assert_eq!(backlog.rivals(|_| true), Rivals { jobs: 0, urgency: 0 });
    }

    #[test]
    fn an_urgent_job_is_forgotten_with_its_round_however_many_follow() {
        let (mut backlog, a) = (Backlog::default(), shape("a"));
        backlog.expect(&a, 8);
        backlog.arrive(&a, 1);
        let urgent = backlog.begin();
        assert!(!backlog.claimed(urgent, &a, 1, None));
        backlog.expect(&a, 5);
        backlog.arrive(&a, 1);
        let next = backlog.begin();
        assert!(!backlog.claimed(next, &a, 1, None));
        assert_eq!(backlog.rivals(|_| true).urgency, 8);
        backlog.settled(urgent, &a, true);
        assert_eq!(backlog.rivals(|_| true).urgency, 5);
    }

    #[test]
    fn what_was_claimed_in_vain_does_not_stand_for_a_job_that_waits() {
        let (mut backlog, a) = (Backlog::default(), shape("a"));
        backlog.expect(&a, 8);
        backlog.arrive(&a, 1);
        let round = backlog.begin();
        assert!(!backlog.claimed(round, &a, 1, None));
        backlog.settled(round, &a, false);
        assert_eq!(backlog.rivals(|_| true), Rivals { jobs: u64::MAX, urgency: 8 });
        // The job itself, and the end.
        let seen = glimpse(&backlog, &a);
        assert!(claim(&mut backlog, &a, 1, seen), "there may have been more");
        assert_eq!(backlog.rivals(|_| true), Rivals { jobs: 0, urgency: 0 });
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
        assert!(claim(&mut backlog, &a, 2, seen));
        assert_eq!(backlog.rivals(|_| true).jobs, 2, "one is on its way, one may have come too late");
        let seen = glimpse(&backlog, &a);
        assert!(!claim(&mut backlog, &a, 1, seen));
        assert_eq!(backlog.rivals(|_| true).jobs, 1);
        backlog.arrive(&a, 1);
        let seen = glimpse(&backlog, &a);
        assert!(!claim(&mut backlog, &a, 1, seen));
        assert!(backlog.is_empty());
    }

    #[test]
    fn a_claim_that_finds_less_than_was_told_misses_what_nothing_explains() {
        let (mut backlog, a) = (Backlog::default(), shape("a"));
        let told = |backlog: &mut Backlog, jobs| {
            (0..jobs).for_each(|_| backlog.expect(&a, 5));
            backlog.arrive(&a, jobs);
        };
        told(&mut backlog, 2);
        let seen = glimpse(&backlog, &a);
        assert!(claim(&mut backlog, &a, 1, seen), "one is lost");
        told(&mut backlog, 2);
        backlog.call_off(&a);
        let seen = glimpse(&backlog, &a);
        assert!(!claim(&mut backlog, &a, 1, seen), "one was called off");
        // One comes after the look, and is claimed before it has arrived here.
        told(&mut backlog, 1);
        let seen = glimpse(&backlog, &a);
        backlog.expect(&a, 5);
        assert!(!claim(&mut backlog, &a, 2, seen));
        backlog.arrive(&a, 1);
        assert!(backlog.is_empty());
        // One is called off before it has arrived.
        backlog.expect(&a, 5);
        backlog.call_off(&a);
        let seen = glimpse(&backlog, &a);
        assert!(!claim(&mut backlog, &a, 0, seen));
        backlog.arrive(&a, 1);
        let seen = glimpse(&backlog, &a);
        assert!(!claim(&mut backlog, &a, 0, seen));
        assert!(backlog.is_empty());
        // Whoever does not know how many there were cannot tell, until an end was seen.
        backlog.note([a.clone()]);
        told(&mut backlog, 1);
        let seen = glimpse(&backlog, &a);
        assert!(claim(&mut backlog, &a, 1, seen));
        told(&mut backlog, 1);
        let seen = glimpse(&backlog, &a);
        assert!(!claim(&mut backlog, &a, 1, seen));
    }

    #[test]
    fn what_was_counted_too_high_is_missed_only_until_a_claim_sees_an_end() {
        let (mut backlog, a) = (Backlog::default(), shape("a"));
        let comes = |backlog: &mut Backlog| {
            backlog.expect(&a, 5);
            backlog.arrive(&a, 1);
        };
        backlog.note([a.clone()]);
        // Each comes during a claim, which takes it.
        for missed in [true, false] {
            let seen = glimpse(&backlog, &a);
            comes(&mut backlog);
            assert_eq!(claim(&mut backlog, &a, 1, seen), missed);
            assert_eq!(backlog.rivals(|_| true).jobs, 1, "nobody knows that it was the late one");
        }
        let seen = glimpse(&backlog, &a);
        assert!(claim(&mut backlog, &a, 0, seen));
        assert!(backlog.is_empty());
    }

    #[test]
    fn a_queue_that_holds_no_more_than_is_counted_changes_nothing() {
        let (mut backlog, a, b) = (Backlog::default(), shape("a"), shape("b"));
        for _ in 0..2 {
            backlog.expect(&a, 5);
        }
        backlog.arrive(&a, 2);
        backlog.held(a.clone(), 2);
        assert_eq!(backlog.rivals(|_| true).jobs, 2);
        backlog.held(a.clone(), 3);
        assert_eq!(backlog.rivals(|shape| *shape == a).jobs, u64::MAX);
        backlog.held(b.clone(), 1);
        assert_eq!(backlog.rivals(|shape| *shape == b).jobs, u64::MAX);
    }

    #[test]
    fn jobs_that_nobody_expected_are_endlessly_many_until_a_claim_has_seen_their_end() {
        let (mut backlog, a) = (Backlog::default(), shape("a"));
        backlog.note([a.clone()]);
        assert!(!claim(&mut backlog, &a, 1, None));
        assert_eq!(backlog.rivals(|shape| *shape == a).jobs, u64::MAX);
        assert_eq!(backlog.rivals(|shape| *shape != a).jobs, 0);
        let seen = glimpse(&backlog, &a);
        assert!(claim(&mut backlog, &a, 1, seen));
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
        assert!(!claim(&mut backlog, &a, 2, None));
        assert_eq!(backlog.rivals(|_| true), Rivals { jobs: 1, urgency: 5 });
    }
}
