//! S5: attempts are counted one by one.
//!
//! The number of an attempt is the job's number of retries and one. A lease that was handed back before it ran spends
//! none, a failure that is tried again spends one, and so does an explicit retry of a job that has ended.

use super::evidence::{Evidence, Stores, Trail, is_end};
use super::{Judge, Promise, Verdict};
use crate::history::{Audit, Job};

pub(super) const PROMISE: Promise = Promise {
    id: "S5",
    name: "attempts",
    text: "attempts are 1, 2, 3 … without gaps, each with its own token",
    judge: Judge::Alone(judge),
};

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let Some(stores) = &evidence.stores else { return Verdict::not_dumped() };
    let (mut cases, mut violations, mut doubts) = (0, Vec::new(), Vec::new());
    for (job, trail) in stores.in_order() {
        cases += trail.executions.len() as u64;
        if trail.changes.iter().any(|change| change.retries.is_none() && change.new_status.is_some()) {
            doubts.push(format!("the trail of job {} does not say how often it was retried", job.id));
            continue;
        }
        count(job, trail, stores, &mut violations);
    }
    for (lease, runs) in &evidence.runs {
        let Some(row) = stores.leases.get(lease).and_then(|lease| lease.execution) else { continue };
        for run in runs.iter().filter(|run| run.attempt != row.attempt_number) {
            violations.push(format!(
                "{} was told attempt {} under lease {lease} of job {}, which is attempt {}",
                run.worker, run.attempt, row.job_id, row.attempt_number
            ));
        }
    }
    let mut tokens: Vec<_> = stores.last.executions.iter().map(|execution| execution.id).collect();
    tokens.sort_unstable();
    for pair in tokens.windows(2).filter(|pair| pair[0] == pair[1]) {
        violations.push(format!("lease {} is there twice", pair[0]));
    }
    Verdict::with_doubts(cases, violations, &doubts)
}

/// Follows the number of retries through the trail.
fn count(job: &Job, trail: &Trail<'_>, stores: &Stores<'_>, violations: &mut Vec<String>) {
    let mut retries = 0;
    for change in &trail.changes {
        let Some(now) = change.retries else { continue };
        let spent = spends(change, stores);
        let more = now - retries;
        // Changes that come together are written as one: a cancellation or a last failure and the retry after it, or a
        // failed attempt and the cancellation after it.
        let folded = i32::from(cancelled_after_a_failure(change, stores));
        if more < spent || more > spent + folded && !trail.may_be_retried() {
            violations.push(format!(
                "job {}: {} to {} at {} took its retries from {retries} to {now}, which is not {spent} more",
                job.id,
                change.old_status.as_deref().unwrap_or("nothing"),
                change.new_status.as_deref().unwrap_or("nothing"),
                change.at
            ));
        }
        retries = now;
        if let Some(lease) = change.new_lease.filter(|_| change.old_lease != change.new_lease)
            && let Some(execution) = stores.leases.get(&lease).and_then(|lease| lease.execution)
            && execution.attempt_number != retries + 1
        {
            violations.push(format!(
                "job {}: lease {lease}, granted at {}, is attempt {}, and should be {}",
                job.id,
                change.at,
                execution.attempt_number,
                retries + 1
            ));
        }
    }
    if !trail.changes.is_empty() && retries != job.retry_count {
        violations
            .push(format!("job {} has {} retries, and {retries} by its trail", job.id, job.retry_count));
    }
}

/// Whether the attempt had failed when the job was cancelled: then its retry may have been granted already.
fn cancelled_after_a_failure(change: &Audit, stores: &Stores<'_>) -> bool {
    let ended = change.old_lease.and_then(|lease| stores.leases.get(&lease)?.execution);
    change.new_status.as_deref() == Some("cancelled")
        && ended.is_some_and(|execution| matches!(execution.status.as_str(), "failed" | "timeout"))
}

/// How many retries a change spends.
fn spends(change: &Audit, stores: &Stores<'_>) -> i32 {
    let (Some(old), Some("pending")) = (&change.old_status, change.new_status.as_deref()) else { return 0 };
    let ended = change.old_lease.and_then(|lease| stores.leases.get(&lease)?.execution);
    let failed = ended.is_some_and(|execution| match execution.status.as_str() {
        "failed" | "timeout" => true,
        // Cancelled by a client, and tried again at once; handed back it has a code.
        "cancelled" => execution.error_code.is_none(),
        _ => false,
    });
    i32::from(failed || is_end(old))
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, id, kept, refuted, undecided};
    use super::*;

    /// Handed back, failed, completed.
    fn three() -> Story {
        let mut story = Story::new();
        story.row(1, 1, "completed").retry_count = 1;
        story.change(1, 0, "", "assigned", Some(1));
        story.change(1, 10, "assigned", "queued", None);
        story.change(1, 20, "queued", "assigned", Some(2));
        story.change(1, 30, "assigned", "pending", None).retries = Some(1);
        story.change(1, 2000, "pending", "queued", None).retries = Some(1);
        story.change(1, 2010, "queued", "assigned", Some(3)).retries = Some(1);
        story.change(1, 2020, "assigned", "completed", None).retries = Some(1);
        story.execution(1, 1, "cancelled").coded("worker_lost");
        story.execution(2, 1, "failed").coded("planned");
        story.execution(3, 1, "completed").attempt(2);
        story
    }

    #[test]
    fn a_lease_that_was_handed_back_spends_nothing() {
        let mut story = three();
        story.start("w", 1, 2, 1);
        kept(&story.judge(&PROMISE), 3);
    }

    #[test]
    fn gaps_and_repetitions_are_violations() {
        for attempt in [1, 3] {
            let mut story = three();
            story.last().executions[2].attempt_number = attempt;
            refuted(&story.judge(&PROMISE), "should be 2");
        }
    }

    #[test]
    fn a_retry_that_nothing_spent_or_that_was_not_spent_is_a_violation() {
        let mut story = three();
        for change in &mut story.last().audit[1..] {
            change.retries = change.retries.map(|retries| retries + 1);
        }
        refuted(&story.judge(&PROMISE), "which is not 0 more");
        let mut story = three();
        story.last().audit[3].retries = Some(0);
        refuted(&story.judge(&PROMISE), "which is not 1 more");
        let mut story = three();
        story.last().jobs[0].retry_count = 2;
        refuted(&story.judge(&PROMISE), "by its trail");
    }

    #[test]
    fn a_cancellation_may_come_with_the_failure_before_it() {
        for (status, told) in [("failed", false), ("cancelled", true)] {
            let mut story = Story::submitted(1);
            story.row(1, 1, "cancelled").retry_count = 1;
            story.change(1, 0, "", "assigned", Some(1));
            story.change(1, 100, "assigned", "cancelled", None).retries = Some(1);
            story.execution(1, 1, status).lasts(0, 100);
            if told {
                refuted(&story.judge(&PROMISE), "which is not 0 more");
            } else {
                kept(&story.judge(&PROMISE), 1);
            }
        }
    }

    #[test]
    fn a_cancelled_job_may_be_tried_again_in_one_change() {
        let mut story = Story::new();
        story.row(1, 1, "pending").retry_count = 1;
        story.change(1, 0, "", "queued", None);
        story.change(1, 10, "queued", "pending", None).retries = Some(1);
        refuted(&story.judge(&PROMISE), "which is not 0 more");
        story.retry(1, Story::lost());
        assert_eq!(story.judge(&PROMISE), Verdict::NotTried);
    }

    #[test]
    fn a_worker_that_is_told_another_number_or_a_token_used_twice_is_a_violation() {
        let mut story = three();
        story.start("w", 1, 3, 1);
        refuted(&story.judge(&PROMISE), "was told attempt 1");
        let mut story = three();
        story.execution(3, 1, "completed").attempt(2);
        refuted(&story.judge(&PROMISE), "is there twice");
    }

    #[test]
    fn a_trail_without_retries_leaves_it_open() {
        let mut story = three();
        story.last().audit[3].retries = None;
        undecided(&story.judge(&PROMISE));
        assert_eq!(story.last().jobs[0].id, id(1));
    }
}
