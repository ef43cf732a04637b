//! S9: what has to wait waits.
//!
//! All times here are of PostgreSQL's clock. A change is dated at its own moment, which is after the leader looked at
//! the clock: so one that is dated before the time is early for certain.

use chrono::TimeDelta;

use super::evidence::{Evidence, Stores, Trail};
use super::{Judge, Promise, Verdict};
use crate::history::{Audit, Job};

pub(super) const PROMISE: Promise = Promise {
    id: "S9",
    name: "not early",
    text: "no grant before next_retry_at or run_at",
    judge: Judge::Alone(judge),
};

/// The shortest wait after a failure: the least initial delay, less its jitter.
const LEAST: TimeDelta = TimeDelta::milliseconds(900);

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let Some(stores) = &evidence.stores else { return Verdict::not_dumped() };
    let (mut cases, mut violations) = (0, Vec::new());
    for (job, trail) in stores.in_order() {
        cases += after_its_time(job, trail, &mut violations);
        cases += run_at(job, trail, &mut violations);
        waits_at_all(job, trail, stores, &mut violations);
    }
    Verdict::of(cases, violations)
}

/// What waits leaves `pending` at its time; cancelling it is always allowed.
fn after_its_time(job: &Job, trail: &Trail<'_>, violations: &mut Vec<String>) -> u64 {
    let mut cases = 0;
    for change in &trail.changes {
        let (Some("pending"), Some(due)) = (change.old_status.as_deref(), change.old_due) else { continue };
        if !matches!(change.new_status.as_deref(), Some("queued" | "assigned" | "running")) {
            continue;
        }
        cases += 1;
        if change.at < due {
            violations.push(format!(
                "job {} was due at {due} and became {} at {}, {} µs too early, by epoch {:?}",
                job.id,
                change.new_status.as_deref().unwrap_or("nothing"),
                change.at,
                early(change, due),
                change.epoch
            ));
        }
    }
    cases
}

fn early(change: &Audit, due: chrono::DateTime<chrono::Utc>) -> i64 {
    (due - change.at).num_microseconds().unwrap_or(i64::MAX)
}

/// Nothing is granted before the time that was asked for, unless somebody asked for it to be tried at once.
fn run_at(job: &Job, trail: &Trail<'_>, violations: &mut Vec<String>) -> u64 {
    let Some(run_at) = job.run_at.filter(|_| !trail.may_be_retried()) else { return 0 };
    let mut grants = trail
        .changes
        .iter()
        .filter(|change| change.new_lease.is_some() && change.new_lease != change.old_lease);
    let Some(first) = grants.next() else { return 0 };
    if first.at < run_at {
        violations.push(format!(
            "job {} was to run at {run_at} and lease {:?} was granted at {}, {} µs too early",
            job.id,
            first.new_lease,
            first.at,
            early(first, run_at)
        ));
    }
    1
}

/// After a failure the wait is as long as the least delay that can be asked for, unless somebody asked for none.
fn waits_at_all(job: &Job, trail: &Trail<'_>, stores: &Stores<'_>, violations: &mut Vec<String>) {
    if trail.may_be_retried() {
        return;
    }
    for change in trail.changes.iter().filter(|change| change.new_status.as_deref() == Some("pending")) {
        let lease = change.old_lease.filter(|_| change.new_lease.is_none());
        let Some(row) = lease.and_then(|lease| stores.leases.get(&lease)?.execution) else { continue };
        let (Some(ended), Some(due)) = (row.completed_at, change.new_due) else { continue };
        if due < ended + LEAST {
            violations.push(format!(
                "job {}: lease {} ended at {ended} as {}, and the next attempt is due at {due} already",
                job.id, row.id, row.status
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, kept, refuted};
    use super::*;

    fn failed_once(due: i64, queued: i64) -> Story {
        let mut story = Story::submitted(1);
        story.row(1, 1, "completed").retry_count = 1;
        story.change(1, 0, "", "assigned", Some(1));
        story.change(1, 101, "assigned", "pending", None).new_due = Some(Story::at(due));
        story.change(1, queued, "pending", "queued", None).old_due = Some(Story::at(due));
        story.change(1, queued + 5, "queued", "assigned", Some(2));
        story.execution(1, 1, "failed").coded("planned").lasts(0, 100);
        story.execution(2, 1, "completed").lasts(queued + 5, queued + 50);
        story
    }

    #[test]
    fn at_its_time_or_later_is_not_early() {
        kept(&failed_once(1100, 1100).judge(&PROMISE), 1);
        kept(&failed_once(1000, 5000).judge(&PROMISE), 1);
    }

    #[test]
    fn a_millisecond_too_early_is_a_violation() {
        refuted(&failed_once(1100, 1099).judge(&PROMISE), "1000 µs too early");
    }

    #[test]
    fn a_wait_that_is_none_is_a_violation_unless_it_was_asked_for() {
        let mut story = failed_once(102, 103);
        refuted(&story.judge(&PROMISE), "is due at");
        story.retry(1, Story::lost());
        kept(&story.judge(&PROMISE), 1);
    }

    #[test]
    fn what_waits_may_be_cancelled_at_any_time() {
        let mut story = failed_once(1100, 1100);
        story.last().audit[2].new_status = Some("cancelled".to_owned());
        story.last().audit[2].at = Story::at(200);
        assert_eq!(story.judge(&PROMISE), Verdict::NotTried);
    }

    #[test]
    fn a_grant_before_run_at_is_a_violation_unless_a_retry_was_asked_for() {
        let mut story = Story::submitted(1);
        story.row(1, 1, "completed").run_at = Some(Story::at(1000));
        story.change(1, 0, "", "queued", None);
        story.change(1, 999, "queued", "assigned", Some(1));
        refuted(&story.judge(&PROMISE), "was to run at");
        story.retry(1, Story::ok(&[]));
        assert_eq!(story.judge(&PROMISE), Verdict::NotTried);
        let mut story = Story::submitted(1);
        story.row(1, 1, "completed").run_at = Some(Story::at(1000));
        story.change(1, 1000, "queued", "assigned", Some(1));
        kept(&story.judge(&PROMISE), 1);
    }
}
