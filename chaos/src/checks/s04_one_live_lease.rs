//! S4: nobody else has a job while a lease on it is good.
//!
//! The job's row carries its lease, so the order of its changes says when each was granted and ended. Beside it stand
//! the executions: one that the row never knew of, or that is still live when the next one is granted, overlaps.

use super::evidence::{Evidence, Lease, Stores, Trail};
use super::{Judge, Promise, Verdict};
use crate::history::{Execution, Job};

pub(super) const PROMISE: Promise = Promise {
    id: "S4",
    name: "one live lease",
    text: "for a job the intervals [granted, min(ended, expired)) never overlap",
    judge: Judge::Alone(judge),
};

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let Some(stores) = &evidence.stores else { return Verdict::not_dumped() };
    let (mut cases, mut violations) = (0, Vec::new());
    for (job, trail) in stores.in_order() {
        cases += trail.executions.len() as u64;
        rows_in_turn(job, trail, stores, &mut violations);
        executions_in_turn(job, trail, stores, &mut violations);
    }
    let mut leases: Vec<_> = evidence.runs.iter().filter(|(_, runs)| runs.len() > 1).collect();
    leases.sort_by_key(|(lease, _)| **lease);
    for (lease, runs) in leases {
        let runs: Vec<_> = runs.iter().map(|run| (run.worker, super::evidence::time(run.began))).collect();
        violations.push(format!("lease {lease} was run more than once: {runs:?}"));
    }
    Verdict::of(cases, violations)
}

/// No lease takes the place of another one in the job's row while that one is good.
fn rows_in_turn(job: &Job, trail: &Trail<'_>, stores: &Stores<'_>, violations: &mut Vec<String>) {
    let mut before = None;
    for change in &trail.changes {
        if before.is_some_and(|before| before != change.old_lease) {
            violations.push(format!(
                "job {}: lease {:?} of its row became {:?} before change {}, and no statement did it",
                job.id,
                before.flatten(),
                change.old_lease,
                change.id
            ));
        }
        if let (Some(held), Some(granted)) = (change.old_lease, change.new_lease)
            && held != granted
        {
            let expires = stores.leases.get(&held).and_then(|lease| lease.expires);
            if expires.is_none_or(|expires| expires > change.at) {
                violations.push(format!(
                    "job {}: lease {granted} was granted at {} while lease {held} was good until {expires:?}",
                    job.id, change.at
                ));
            }
        }
        before = Some(change.new_lease);
    }
    if let Some(lease) = before.flatten()
        && super::evidence::is_end(&job.status)
    {
        violations.push(format!("job {} is {} and still under lease {lease}", job.id, job.status));
    }
}

/// No execution is live while a later one is, and each has been the row's lease, once.
fn executions_in_turn(job: &Job, trail: &Trail<'_>, stores: &Stores<'_>, violations: &mut Vec<String>) {
    let mut executions: Vec<(&Execution, &Lease<'_>)> = trail
        .executions
        .iter()
        .filter_map(|execution| Some((*execution, stores.leases.get(&execution.id)?)))
        .collect();
    for (execution, lease) in &executions {
        if lease.granted.len() != 1 && !trail.changes.is_empty() {
            violations.push(format!(
                "lease {} of job {} was granted {} times by the changes of the job's row",
                execution.id,
                job.id,
                lease.granted.len()
            ));
        }
    }
    executions.sort_by_key(|(execution, lease)| {
        lease.granted.first().map_or(execution.created_at, |grant| grant.at)
    });
    for pair in executions.windows(2) {
        let ((former, of_former), (later, of_later)) = (pair[0], pair[1]);
        let granted = of_later.granted.first().map_or(later.created_at, |grant| grant.at);
        // The end of the row, if there is one: it is later than the time that was written down with it.
        let ended = [former.completed_at, of_former.expires].into_iter().flatten().min();
        if ended.is_none_or(|ended| ended > granted) {
            violations.push(format!(
                "job {}: lease {} was granted at {granted}, lease {} ended at {:?} and was good until {:?}",
                job.id, later.id, former.id, former.completed_at, of_former.expires
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, id, kept, lease, refuted};
    use super::*;

    fn two_in_turn() -> Story {
        let mut story = Story::new();
        story.row(1, 1, "completed");
        story.change(1, 0, "", "queued", None);
        story.change(1, 10, "queued", "assigned", Some(1));
        story.change(1, 500, "assigned", "queued", None);
        story.change(1, 600, "queued", "assigned", Some(2));
        story.change(1, 700, "assigned", "completed", None);
        story.execution(1, 1, "cancelled").lasts(10, 499);
        story.execution(2, 1, "completed").lasts(600, 700);
        story
    }

    #[test]
    fn one_after_the_other_is_as_promised() {
        kept(&two_in_turn().judge(&PROMISE), 2);
    }

    #[test]
    fn an_expired_lease_may_be_followed_though_it_has_not_ended() {
        let mut story = two_in_turn();
        story.last().executions[0].completed_at = None;
        story.last().executions[0].lease_expires_at = Some(Story::at(550));
        kept(&story.judge(&PROMISE), 2);
    }

    #[test]
    fn a_lease_beside_a_good_one_is_a_violation() {
        let mut story = two_in_turn();
        story.last().executions[0].completed_at = Some(Story::at(650));
        refuted(&story.judge(&PROMISE), "was granted at");
        story.last().executions[0].completed_at = None;
        refuted(&story.judge(&PROMISE), "ended at None");
    }

    #[test]
    fn a_lease_in_the_place_of_a_good_one_is_a_violation() {
        let mut story = Story::new();
        story.row(1, 1, "assigned");
        story.change(1, 0, "", "assigned", Some(1));
        story.change(1, 100, "assigned", "assigned", Some(2));
        story.execution(1, 1, "started").lasts(0, 100);
        story.execution(2, 1, "started");
        refuted(&story.judge(&PROMISE), "while lease");
    }

    #[test]
    fn a_lease_that_the_row_never_had_is_a_violation() {
        let mut story = two_in_turn();
        story.execution(3, 1, "failed").lasts(701, 702);
        refuted(&story.judge(&PROMISE), "granted 0 times");
    }

    #[test]
    fn a_row_that_changed_unseen_and_one_that_keeps_its_lease_are_violations() {
        let mut story = two_in_turn();
        story.last().audit[2].new_lease = Some(lease(9));
        refuted(&story.judge(&PROMISE), "no statement did it");
        let mut story = two_in_turn();
        story.last().audit[4].new_lease = Some(lease(2));
        refuted(&story.judge(&PROMISE), "still under lease");
    }

    #[test]
    fn a_lease_that_two_workers_run_is_a_violation() {
        let mut story = two_in_turn();
        story.start("a", 1, 2, 1);
        story.start("b", 1, 2, 1);
        refuted(&story.judge(&PROMISE), "more than once");
        assert_eq!(story.last().jobs[0].id, id(1));
    }
}
