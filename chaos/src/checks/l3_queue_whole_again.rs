//! L3: a ready queue that was emptied is filled again.
//!
//! Runs in which nobody notes how much Redis holds, or with few jobs waiting, do not try this: it is measured by `flush`,
//! a scenario of its own with its own judge.

use super::evidence::{Evidence, time};
use super::{Judge, Promise, Verdict};

pub(super) const PROMISE: Promise = Promise {
    id: "L3",
    name: "queue whole again",
    text: "after FLUSHALL with 100,000 jobs waiting, the queue is whole again within 10 s",
    judge: Judge::Alone(judge),
};

/// How long it may take, in microseconds.
const WITHIN: u64 = 10_000_000;
/// Fewer jobs than that are no trial.
const ENOUGH: i64 = 1_000;
/// Jobs that are on their way may be missing: one in so many.
const ON_THE_WAY: i64 = 100;

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let history = evidence.history;
    let (mut cases, mut violations, mut doubts) = (0, Vec::new(), Vec::new());
    for fault in
        history.faults.iter().filter(|fault| fault.name.starts_with("redis-flush") && fault.proof.is_some())
    {
        let after = || history.queues.iter().filter(|(at, ..)| *at >= fault.begun);
        let before = history.queues.iter().rfind(|(at, ..)| *at < fault.begun);
        if before.is_none_or(|(_, queued, _)| *queued < ENOUGH) {
            continue;
        }
        cases += 1;
        // From the first look that shows the loss.
        let Some(lost) =
            after().find(|(_, queued, held)| held + queued / ON_THE_WAY < *queued).map(|(at, ..)| *at)
        else {
            doubts.push(format!("nobody saw that the queue was emptied at {}", time(fault.begun)));
            continue;
        };
        let whole = after().find(|(at, queued, held)| *at > lost && held + queued / ON_THE_WAY >= *queued);
        match whole {
            Some((at, ..)) if at - fault.begun <= WITHIN => {}
            Some((at, queued, held)) => violations.push(format!(
                "emptied at {}, the queue held {held} of {queued} jobs only {} later",
                time(fault.begun),
                time(at - fault.begun)
            )),
            None if after().next_back().is_some_and(|(at, ..)| at - fault.begun > WITHIN) => {
                violations.push(format!("emptied at {}, the queue was never whole again", time(fault.begun)));
            }
            None => doubts.push(format!("nobody looked for long enough after {}", time(fault.begun))),
        }
    }
    Verdict::with_doubts(cases, violations, &doubts)
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, kept, refuted, undecided};
    use super::*;

    fn flushed(looks: &[(u64, i64, i64)]) -> Verdict {
        let mut story = Story::new();
        story.queues.push((500_000, 100_000, 100_000));
        story.fault(1000, 1100, "redis-flush", false);
        story.queues.extend(looks.iter().map(|(ms, queued, held)| (ms * 1000, *queued, *held)));
        story.judge(&PROMISE)
    }

    #[test]
    fn whole_within_ten_seconds_is_as_promised() {
        kept(&flushed(&[(1200, 100_000, 0), (9000, 99_000, 99_000)]), 1);
    }

    #[test]
    fn later_or_never_is_a_violation() {
        refuted(&flushed(&[(1200, 100_000, 0), (12_000, 99_000, 99_000)]), "11.000 s later");
        refuted(&flushed(&[(1200, 100_000, 0), (12_000, 99_000, 9_000)]), "never whole");
    }

    #[test]
    fn what_nobody_saw_is_unknown_and_few_jobs_are_no_trial() {
        undecided(&flushed(&[(1200, 100_000, 0), (5_000, 99_000, 9_000)]));
        undecided(&flushed(&[]));
        let mut story = Story::new();
        story.fault(1000, 1100, "redis-flush", false);
        assert_eq!(story.judge(&PROMISE), Verdict::NotTried);
    }
}
