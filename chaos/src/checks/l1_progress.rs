//! L1: once nothing is broken any more, everything comes to its end.
//!
//! A job is eligible while it waits. One whose worker lost the answer by which it fetched it waits for nobody until its lease is
//! given back, 30 s after the last change of leader, or has run out; for it the time begins then.

use std::collections::BTreeSet;

use super::evidence::{Evidence, Stores, is_end, time};
use super::{Judge, Promise, Verdict};
use crate::history::Stage;

pub(super) const PROMISE: Promise = Promise {
    id: "L1",
    name: "progress",
    text: "after the last fault has healed every eligible job is terminal within (work ÷ capacity) + 30 s",
    judge: Judge::Alone(judge),
};

/// What is allowed beyond the work itself, in microseconds.
const BEYOND: u64 = 30_000_000;
/// How long a worker may seem to have a job that never reached it, with the time until that is noticed, in microseconds.
const FETCHED_WITHIN: u64 = 32_000_000;

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let history = evidence.history;
    let Some(stores) = &evidence.stores else { return Verdict::not_dumped() };
    let (Some(quiet), Some(over)) = (history.stage(Stage::Quiet), history.stage(Stage::Over)) else {
        return Verdict::Unknown { why: "the run ended before quiet".to_owned() };
    };
    let mut violations: Vec<String> = stores
        .last
        .jobs
        .iter()
        .filter(|job| !is_end(&job.status))
        .map(|job| format!("job {} of {} is {} at the end", job.id, job.submitted_at, job.status))
        .collect();
    let slots = u64::try_from(history.info.slots.max(1)).unwrap_or(1);
    let work = work_after(evidence, quiet, over) / slots;
    if over - last_eligible(evidence, stores, quiet) > work + BEYOND {
        violations.push(format!(
            "from {} it took {} until every job was at its end or nothing went on; the work took {} of all slots; {} \
             leaderships began meanwhile",
            time(quiet),
            time(over - quiet),
            time(work),
            leaderships(evidence, quiet, over)
        ));
    }
    Verdict::of(stores.last.jobs.len() as u64, violations)
}

/// When the last job became eligible that a worker seemed to have when quiet began, or the beginning of quiet.
fn last_eligible(evidence: &Evidence<'_>, stores: &Stores<'_>, quiet: u64) -> u64 {
    let Some(clock) = evidence.clock else { return quiet };
    let not_fetched = stores.leases.iter().filter(|(id, lease)| {
        let code = lease.execution.and_then(|execution| execution.error_code.as_deref());
        matches!(code, Some("rejected" | "timeout")) && !evidence.runs.contains_key(*id)
    });
    let given_back = not_fetched.filter_map(|(_, lease)| {
        let before = lease.granted.first().is_some_and(|granted| clock.is_before(granted.at, quiet));
        u64::try_from(clock.latest(lease.ended.filter(|_| before)?.at)).ok()
    });
    given_back.max().unwrap_or(quiet).clamp(quiet, quiet + FETCHED_WITHIN)
}

/// How long all workers together have worked from then on, in microseconds.
fn work_after(evidence: &Evidence<'_>, quiet: u64, over: u64) -> u64 {
    let runs = evidence.runs.values().flatten();
    let work = runs.map(|run| {
        let ended = run.ended.map_or(over, |(at, _)| at).min(over);
        ended.saturating_sub(run.began.max(quiet))
    });
    work.sum()
}

/// Epochs that replicas saw for the first time meanwhile: many of them without a fault speak of a machine that is too
/// busy for its replicas to hear each other in time.
fn leaderships(evidence: &Evidence<'_>, quiet: u64, over: u64) -> usize {
    let epochs = |during: std::ops::Range<u64>| -> BTreeSet<u64> {
        let views = evidence.history.views.iter().filter(|(at, ..)| during.contains(at));
        views.filter_map(|(.., view)| view.epoch).collect()
    };
    epochs(quiet..over).difference(&epochs(0..quiet)).count()
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, kept, refuted, undecided};
    use super::*;

    fn ended(after_ms: i64) -> Story {
        let mut story = Story::submitted(1);
        story.row(1, 1, "completed");
        story.stage(1000, Stage::Quiet);
        story.stage(1000 + after_ms, Stage::Over);
        story
    }

    #[test]
    fn within_the_work_and_thirty_seconds_is_as_promised() {
        kept(&ended(29_000).judge(&PROMISE), 1);
        refuted(&ended(31_000).judge(&PROMISE), "31.000 s");
        let mut story = ended(31_000);
        // The one slot was busy for five seconds of it.
        story.act(2000, "w", Story::began(1, 1, 1));
        story.act(7000, "w", Story::ended(1, 1, crate::history::Ending::Success));
        kept(&story.judge(&PROMISE), 1);
    }

    #[test]
    fn a_job_that_its_worker_never_got_is_eligible_once_its_lease_is_given_back() {
        for (status, code, next) in [("cancelled", "rejected", "queued"), ("timeout", "timeout", "pending")] {
            let mut story = ended(33_000);
            story.execution(1, 1, status).coded(code);
            story.change(1, 500, "queued", "assigned", Some(1));
            story.change(1, 30_500, "assigned", next, None);
            kept(&story.judge(&PROMISE), 1);
            story.act(2000, "w", Story::began(1, 1, 1));
            story.act(2100, "w", Story::ended(1, 1, crate::history::Ending::Success));
            refuted(&story.judge(&PROMISE), "33.000 s");
        }
    }

    #[test]
    fn a_job_that_is_not_at_its_end_is_a_violation() {
        let mut story = ended(1000);
        story.row(2, 2, "queued");
        refuted(&story.judge(&PROMISE), "is queued at the end");
    }

    #[test]
    fn without_quiet_it_is_unknown() {
        undecided(&Story::submitted(1).judge(&PROMISE));
    }
}
