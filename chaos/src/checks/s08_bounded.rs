//! S8: no job runs more often than it may, whatever happens to its workers.

use std::collections::BTreeSet;

use super::evidence::{Evidence, Trail, attempted, is_end};
use super::{Judge, Promise, Verdict};
use crate::history::{Execution, Job};

pub(super) const PROMISE: Promise = Promise {
    id: "S8",
    name: "bounded",
    text: "executions ≤ 1 + retries granted + leases handed back or lost before they ran; a job that kills its workers \
           ends as failed",
    judge: Judge::Alone(judge),
};

/// Different workers that may be lost with one job.
const MOST_LOST: usize = 3;
/// What is said of an attempt whose worker was taken away by somebody.
const REMOVED: &str = "The worker was removed.";

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let Some(stores) = &evidence.stores else { return Verdict::not_dumped() };
    let (mut cases, mut violations) = (0, Vec::new());
    for (job, trail) in stores.in_order() {
        cases += u64::from(trail.executions.len() > 1);
        executions(job, trail, &mut violations);
        automatic_retries(job, trail, &mut violations);
        lost_workers(job, trail, &mut violations);
    }
    Verdict::of(cases, violations)
}

fn executions(job: &Job, trail: &Trail<'_>, violations: &mut Vec<String>) {
    // What a client cancels has no code, and spends a retry when it is tried again.
    let free = |row: &&&Execution| row.status == "cancelled" && row.error_code.is_some();
    let free = trail.executions.iter().filter(free).count();
    let most = 1 + usize::try_from(job.retry_count).unwrap_or(0) + free;
    if trail.executions.len() > most {
        let leases: Vec<_> = trail.executions.iter().map(|row| (row.id, row.status.as_str())).collect();
        violations.push(format!(
            "job {}: {} executions with {} retries and {free} handed back: {leases:?}",
            job.id,
            leases.len(),
            job.retry_count
        ));
    }
}

/// Retries that nobody asked for are as many as the job's policy allows at the most.
fn automatic_retries(job: &Job, trail: &Trail<'_>, violations: &mut Vec<String>) {
    let asked = trail.retries.iter().filter(|call| attempted(call)).count();
    let asked = i32::try_from(asked).unwrap_or(i32::MAX);
    if job.retry_count > job.max_retries.saturating_add(asked) {
        violations.push(format!(
            "job {}: {} retries, {} are allowed and {asked} were asked for",
            job.id, job.retry_count, job.max_retries
        ));
    }
}

/// Different workers that were lost with the job since somebody last asked for it to be tried again.
fn lost_workers(job: &Job, trail: &Trail<'_>, violations: &mut Vec<String>) {
    let revived = trail
        .changes
        .iter()
        .filter(|change| {
            change.old_status.as_deref().is_some_and(is_end)
                && change.new_status.as_deref() == Some("pending")
        })
        .map(|change| change.at);
    let revived: Vec<_> = revived.collect();
    let mut lost: BTreeSet<_> = BTreeSet::new();
    let mut round = 0;
    for row in &trail.executions {
        let now = revived.partition_point(|at| *at <= row.created_at);
        if now != round {
            (round, lost) = (now, BTreeSet::new());
        }
        let was_lost = row.status != "cancelled"
            && row.error_code.as_deref() == Some("worker_lost")
            && row.error_message.as_deref() != Some(REMOVED);
        if was_lost && lost.insert(row.worker_id) && lost.len() >= MOST_LOST {
            violations.push(format!(
                "job {}: {} different workers were lost with it, the last one under lease {}, and it went on",
                job.id,
                lost.len(),
                row.id
            ));
        }
    }
    let poisoned = trail.executions.last().is_some_and(|row| row.error_code.as_deref() == Some("poison"));
    if poisoned && job.status != "failed" && !trail.may_be_retried() {
        violations.push(format!("job {} has killed its workers and is {}", job.id, job.status));
    }
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, kept, refuted};
    use super::*;

    #[test]
    fn retries_and_leases_handed_back_allow_for_more_executions() {
        let mut story = Story::submitted(1);
        story.row(1, 1, "completed").retry_count = 1;
        story.execution(1, 1, "cancelled").coded("rejected");
        story.execution(2, 1, "failed").coded("planned");
        story.execution(3, 1, "completed");
        kept(&story.judge(&PROMISE), 1);
        story.execution(4, 1, "completed");
        refuted(&story.judge(&PROMISE), "4 executions");
    }

    #[test]
    fn a_cancelled_execution_is_not_free() {
        let mut story = Story::submitted(1);
        story.row(1, 1, "completed");
        story.execution(1, 1, "cancelled");
        story.execution(2, 1, "completed");
        refuted(&story.judge(&PROMISE), "2 executions");
    }

    #[test]
    fn more_retries_than_allowed_and_asked_for_are_a_violation() {
        let mut story = Story::submitted(1);
        story.row(1, 1, "failed").retry_count = 4;
        refuted(&story.judge(&PROMISE), "3 are allowed");
        story.retry(1, Story::refused(409));
        refuted(&story.judge(&PROMISE), "3 are allowed");
        story.retry(1, Story::lost());
        assert_eq!(story.judge(&PROMISE), Verdict::NotTried);
    }

    #[test]
    fn a_job_ends_with_the_third_worker_that_it_kills() {
        let mut story = Story::submitted(1);
        story.row(1, 1, "failed").retry_count = 2;
        for lease in 1..=3 {
            story.execution(lease, 1, "failed").coded("worker_lost").by(lease);
        }
        refuted(&story.judge(&PROMISE), "and it went on");
        story.last().executions[2].error_code = Some("poison".to_owned());
        kept(&story.judge(&PROMISE), 1);
        story.last().jobs[0].status = "completed".to_owned();
        refuted(&story.judge(&PROMISE), "has killed its workers");
    }

    #[test]
    fn the_same_worker_lost_again_or_one_that_was_removed_counts_no_more() {
        let mut story = Story::submitted(1);
        story.row(1, 1, "failed").retry_count = 2;
        for lease in 1..=3 {
            story.execution(lease, 1, "failed").coded("worker_lost").by(lease.min(2));
        }
        kept(&story.judge(&PROMISE), 1);
        story.last().executions[2].worker_id = super::super::story::id(99);
        story.last().executions[2].error_message = Some(REMOVED.to_owned());
        kept(&story.judge(&PROMISE), 1);
    }
}
