//! Whether a worker that fails is given more to do.
//!
//! One that fails too often in a row rests. Then it is tried with one job: when that ends well the worker is
//! trusted again, when it ends badly the worker rests once more.

use std::time::{Duration, Instant};

use crate::domain::ids::LeaseId;

/// How much failing is borne.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Patience {
    /// `scheduler.unhealthy_after`: failures in a row after which a worker rests; 0 is any number.
    pub failures: u32,
    /// `scheduler.unhealthy_pause`: how long it rests.
    pub pause: Duration,
}

/// What a worker's failures have led to.
#[derive(Debug, Default)]
pub(super) struct Trust {
    /// In a row, as PostgreSQL counts them.
    failures: u32,
    standing: Standing,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Standing {
    #[default]
    Trusted,
    /// It gets nothing until then.
    Resting(Instant),
    /// It may run one job; this one, if it has it.
    OnTrial(Option<LeaseId>),
}

impl Trust {
    /// A worker with so many failures in a row, as a leader finds it.
    pub(super) fn after(failures: u32, patience: Patience, now: Instant) -> Self {
        let mut trust = Self { failures, standing: Standing::Trusted };
        trust.rest_if_due(patience, now);
        trust
    }

    /// An attempt has failed.
    pub(super) fn note_failure(&mut self, patience: Patience, now: Instant) {
        self.failures = self.failures.saturating_add(1);
        self.rest_if_due(patience, now);
    }

    /// An attempt has ended well.
    pub(super) fn note_success(&mut self) {
        *self = Self::default();
    }

    /// Puts a worker on trial that has rested; answers whether it was.
    pub(super) fn end_rest(&mut self, now: Instant) -> bool {
        let rested = matches!(self.standing, Standing::Resting(until) if until <= now);
        if rested {
            self.standing = Standing::OnTrial(None);
        }
        rested
    }

    /// The lease that is granted now may be the trial.
    pub(super) fn granted(&mut self, lease: LeaseId) {
        if self.standing == Standing::OnTrial(None) {
            self.standing = Standing::OnTrial(Some(lease));
        }
    }

    /// A lease has ended. If it was the trial and says nothing about the worker there will be another one.
    pub(super) fn released(&mut self, lease: LeaseId) {
        if self.standing == Standing::OnTrial(Some(lease)) {
            self.standing = Standing::OnTrial(None);
        }
    }

    /// How many of its free slots may be used, when so many are about to be.
    pub(super) fn allows(&self, free: u32, reserved: u32) -> u32 {
        match self.standing {
            Standing::Trusted => free,
            Standing::OnTrial(None) if reserved == 0 => free.min(1),
            Standing::OnTrial(_) | Standing::Resting(_) => 0,
        }
    }

    /// Its last attempt ended well, or it has had none.
    pub(super) fn is_spotless(&self) -> bool {
        self.failures == 0
    }

    pub(super) fn is_whole(&self) -> bool {
        self.standing == Standing::Trusted
    }

    fn rest_if_due(&mut self, patience: Patience, now: Instant) {
        if patience.failures > 0 && self.failures >= patience.failures {
            self.standing = Standing::Resting(now + patience.pause);
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::services::fleet::tests::start;

    const PATIENCE: Patience = Patience { failures: 3, pause: Duration::from_secs(10) };
    const TRIAL: LeaseId = LeaseId(Uuid::from_u128(1));
    const OTHER: LeaseId = LeaseId(Uuid::from_u128(2));

    fn resting(now: Instant) -> Trust {
        let mut trust = Trust::default();
        for _ in 0..3 {
            assert!(trust.is_whole());
            trust.note_failure(PATIENCE, now);
        }
        trust
    }

    #[test]
    fn the_last_of_too_many_failures_in_a_row_makes_a_worker_rest() {
        let trust = resting(start());
        assert!(!trust.is_whole());
        assert_eq!(trust.allows(5, 0), 0);
    }

    #[test]
    fn a_success_in_between_starts_the_count_anew() {
        let (now, mut trust) = (start(), Trust::default());
        for _ in 0..3 {
            trust.note_failure(PATIENCE, now);
            trust.note_failure(PATIENCE, now);
            trust.note_success();
        }
        assert_eq!(trust.allows(5, 2), 5);
    }

    #[test]
    fn after_its_rest_one_job_at_a_time_is_tried_until_one_says_how_the_worker_is() {
        let now = start();
        let mut trust = resting(now);
        assert!(!trust.end_rest(now + Duration::from_secs(9)));
        assert!(trust.end_rest(now + Duration::from_secs(10)));
        assert_eq!((trust.allows(5, 0), trust.allows(0, 0), trust.allows(5, 1)), (1, 0, 0));
        trust.granted(TRIAL);
        trust.released(OTHER);
        assert_eq!(trust.allows(4, 0), 0);
        trust.released(TRIAL);
        assert_eq!(trust.allows(5, 0), 1, "it was cancelled, so it has shown nothing");
        trust.granted(OTHER);
        trust.note_success();
        assert!(trust.is_whole());
        assert_eq!(trust.allows(4, 0), 4);
    }

    #[test]
    fn a_trial_that_fails_is_followed_by_another_rest() {
        let now = start();
        let mut trust = resting(now);
        let later = now + Duration::from_secs(10);
        assert!(trust.end_rest(later));
        trust.granted(TRIAL);
        trust.note_failure(PATIENCE, later);
        trust.released(TRIAL);
        assert_eq!(trust.allows(5, 0), 0);
        assert!(!trust.end_rest(later + Duration::from_secs(9)));
        assert!(trust.end_rest(later + Duration::from_secs(10)));
    }

    #[test]
    fn a_new_leader_finds_a_worker_as_the_former_one_left_it() {
        let now = start();
        assert!(Trust::after(2, PATIENCE, now).is_whole());
        assert!(!Trust::after(3, PATIENCE, now).is_whole());
        assert!(Trust::after(1_000, Patience::default(), now).is_whole(), "any number is borne");
    }
}
