//! S14: who is more urgent goes first.
//!
//! Workers of a run take every model, so each waiting job is one that the worker of any grant could have taken. The
//! moments of decisions are not in the history, those of the changes are: jobs that were claimed together may be
//! granted by transactions side by side. So one that is granted shortly afterwards counts as having gone along.
//!
//! The queue cannot be asked while Redis, PostgreSQL or the leader is struck: there the second begins when that is over. A
//! job that is placed with its submission, or when it is due, has not been in the queue, so for it there is no such excuse.

use std::collections::{BTreeSet, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::evidence::{Evidence, Stores, in_fault};
use super::{Judge, Promise, TOLD, Verdict};
use crate::history::Audit;

pub(super) const PROMISE: Promise = Promise {
    id: "S14",
    name: "order",
    text: "at a grant, no eligible job of higher priority that this worker could take has been waiting for more than 1 s",
    judge: Judge::Alone(judge),
};

/// What the promise allows.
const WAITED: TimeDelta = TimeDelta::seconds(1);
/// What two transactions of the scheduler side by side may differ.
const SIDE_BY_SIDE: TimeDelta = TimeDelta::milliseconds(500);

/// How long after a fault its traces may last, in microseconds: what the promise allows, and the scheduler.
const AFTERMATH: u64 = 1_500_000;
/// Faults that strike neither a store nor whoever leads. A follower that is cut off may leave no majority while another one
/// is down, so that fault is none of them.
const HARMLESS: [&str; 10] = [
    "connection-flood",
    "duplicate-completion",
    "kill-follower",
    "malformed-flood",
    "poison-job",
    "raft-flipped-bit",
    "raft-torn-tail",
    "slow-loris",
    "worker-crash",
    "zombie-worker",
];

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let Some(stores) = &evidence.stores else { return Verdict::not_dumped() };
    let priorities: HashMap<Uuid, usize> = stores
        .last
        .jobs
        .iter()
        .map(|job| (job.id, usize::try_from(job.priority).unwrap_or(0).min(10)))
        .collect();
    let left = left_the_queue(stores);
    let mut changes: Vec<&Audit> = stores.last.audit.iter().collect();
    changes.sort_by_key(|change| (change.at, change.id));
    let mut waiting: [BTreeSet<(DateTime<Utc>, Uuid)>; 11] = Default::default();
    let mut since: HashMap<Uuid, DateTime<Utc>> = HashMap::new();
    let (mut cases, mut violations) = (0, Vec::new());
    for change in changes {
        let Some(priority) = priorities.get(&change.job_id).copied() else { continue };
        if change.new_lease.is_some() && change.new_lease != change.old_lease {
            let before = waiting[priority + 1..].iter().rev();
            let excused =
                change.old_status.as_deref() == Some("queued") && queue_is_struck(evidence, change.at);
            cases += u64::from(!excused && before.clone().any(|jobs| !jobs.is_empty()));
            let passed_over = before
                .flat_map(|jobs| jobs.iter().take_while(|(at, _)| *at + WAITED < change.at))
                .find(|(at, job)| left.get(&(*job, *at)).is_none_or(|left| *left > change.at + SIDE_BY_SIDE));
            if let Some((at, job)) = passed_over.filter(|_| !excused) {
                let (urgent, left) = (priorities.get(job).copied().unwrap_or(0), left.get(&(*job, *at)));
                // Thousands of grants may pass over one job: only the first are told.
                let tells = violations.len() < TOLD;
                let told = || told(evidence, change, priority, (*job, urgent, *at), left);
                violations.push(if tells { told() } else { String::new() });
            }
        }
        if let Some(at) = since.remove(&change.job_id) {
            waiting[priority].remove(&(at, change.job_id));
        }
        if change.new_status.as_deref() == Some("queued") {
            since.insert(change.job_id, change.at);
            waiting[priority].insert((change.at, change.job_id));
        }
    }
    Verdict::of(cases, violations)
}

/// Whether a fault keeps jobs from being taken out of the queue in order, or has until a moment ago.
fn queue_is_struck(evidence: &Evidence<'_>, at: DateTime<Utc>) -> bool {
    let Some(clock) = evidence.clock else { return false };
    let at = u64::try_from(clock.latest(at)).unwrap_or(0);
    let mut struck = evidence.history.faults.iter().filter(|fault| !HARMLESS.contains(&fault.name.as_str()));
    struck.any(|fault| in_fault(fault, at, AFTERMATH))
}

/// When each wait ended.
fn left_the_queue(stores: &Stores<'_>) -> HashMap<(Uuid, DateTime<Utc>), DateTime<Utc>> {
    let mut left = HashMap::new();
    for (job, trail) in &stores.trails {
        for pair in trail.changes.windows(2) {
            if pair[0].new_status.as_deref() == Some("queued") {
                left.insert((*job, pair[0].at), pair[1].at);
            }
        }
    }
    left
}

fn told(
    evidence: &Evidence<'_>,
    grant: &Audit,
    priority: usize,
    (job, urgent, since): (Uuid, usize, DateTime<Utc>),
    left: Option<&DateTime<Utc>>,
) -> String {
    let (mut when, mut faults) = (String::new(), Vec::new());
    if let Some(clock) = evidence.clock {
        when = format!(" ({})", clock.tell(grant.at));
        let at = u64::try_from(clock.latest(grant.at)).unwrap_or(0);
        let near = evidence.history.faults.iter().filter(|fault| in_fault(fault, at, 1_000_000));
        faults = near.map(|fault| fault.name.as_str()).collect();
    }
    format!(
        "lease {:?} of job {} (priority {priority}, {}) was granted at {}{when} by epoch {:?}, while job {job} (priority \
         {urgent}) waited for {} ms and went on for {}; faults: {faults:?}",
        grant.new_lease,
        grant.job_id,
        match grant.old_status.as_deref() {
            None => "placed with its submission",
            Some("queued") => "from the queue",
            Some(_) => "placed when it was due",
        },
        grant.at,
        grant.epoch,
        (grant.at - since).num_milliseconds(),
        left.map_or("ever".to_owned(), |left| format!("{} ms", (*left - grant.at).num_milliseconds())),
    )
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, kept, refuted};
    use super::*;

    /// Job 1, priority 9, waits from 0 on; job 2, priority 3, from 100 ms on and is granted at `granted`.
    fn two(granted: i64, urgent_granted: Option<i64>) -> Story {
        let mut story = Story::submitted(1);
        story.row(1, 1, "queued").priority = 9;
        story.row(2, 2, "assigned").priority = 3;
        story.change(1, 0, "", "queued", None);
        story.change(2, 100, "", "queued", None);
        story.change(2, granted, "queued", "assigned", Some(2));
        if let Some(at) = urgent_granted {
            story.change(1, at, "queued", "assigned", Some(1));
        }
        story
    }

    #[test]
    fn within_a_second_and_side_by_side_order_is_not_promised() {
        kept(&two(900, None).judge(&PROMISE), 1);
        kept(&two(3000, Some(3400)).judge(&PROMISE), 1);
    }

    #[test]
    fn while_the_queue_is_struck_only_what_does_not_come_from_it_counts() {
        let struck = |mut story: Story, fault| {
            story.fault(500, 2000, fault, false);
            story.judge(&PROMISE)
        };
        assert_eq!(struck(two(3000, None), "redis-kill"), Verdict::NotTried);
        refuted(&struck(two(3000, None), "worker-crash"), "waited for 3000 ms");
        refuted(&struck(two(4000, None), "redis-kill"), "waited for 4000 ms");
        for (before, told) in [("", "placed with its submission"), ("pending", "placed when it was due")] {
            let mut placed = Story::submitted(1);
            placed.row(1, 1, "queued").priority = 9;
            placed.row(2, 2, "assigned").priority = 3;
            placed.change(1, 0, "", "queued", None);
            placed.change(2, 1900, before, "assigned", Some(2));
            refuted(&struck(placed, "redis-kill"), told);
        }
    }

    #[test]
    fn passing_over_a_more_urgent_job_is_a_violation() {
        refuted(&two(1500, None).judge(&PROMISE), "waited for 1500 ms and went on for ever");
        refuted(&two(1500, Some(2500)).judge(&PROMISE), "went on for 1000 ms");
    }

    #[test]
    fn a_less_urgent_job_or_one_that_is_not_due_waits_without_harm() {
        let mut story = two(1500, None);
        story.last().jobs[0].priority = 2;
        assert_eq!(story.judge(&PROMISE), Verdict::NotTried);
        let mut story = two(1500, None);
        story.last().audit[0].new_status = Some("pending".to_owned());
        assert_eq!(story.judge(&PROMISE), Verdict::NotTried);
    }

    #[test]
    fn a_job_granted_with_its_submission_may_not_pass_over_others_either() {
        let mut story = two(1500, None);
        story.row(3, 3, "assigned").priority = 5;
        story.change(3, 2000, "", "assigned", Some(3));
        let Verdict::Fail { count: 2, .. } = story.judge(&PROMISE) else {
            panic!("two grants passed over job 1")
        };
    }
}
