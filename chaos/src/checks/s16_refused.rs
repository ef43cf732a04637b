//! S16: who may not do it cannot, at whichever replica.
//!
//! What an intruder submits would be there with a number that nobody has submitted, which S3 finds.

use tonic::Code;

use super::evidence::{Clock, Evidence, Trail, attempted, time};
use super::s10_cancel::open_end;
use super::{Judge, Promise, Verdict};
use crate::history::{Job, Outcome, Request};

pub(super) const PROMISE: Promise = Promise {
    id: "S16",
    name: "refused is refused",
    text: "a request without the right token or role changes nothing, on leader and follower alike",
    judge: Judge::Alone(judge),
};

/// What gRPC says instead of 429.
const BUSY: u16 = Code::ResourceExhausted as u16;
/// What gRPC says instead of 503.
const AWAY: u16 = Code::Unavailable as u16;

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let (mut cases, mut violations) = (0, Vec::new());
    for call in &evidence.history.calls {
        let Request::Intrusion { what, expected, job } = &call.request else { continue };
        if !judged(&call.outcome) {
            continue;
        }
        cases += 1;
        if !matches!(&call.outcome, Outcome::Refused { status, .. } if status == expected) {
            violations.push(format!(
                "{} {what} (call {}, job {job:?}) at replica {} at {} and was answered {:?} instead of {expected}",
                call.client,
                call.call,
                call.replica + 1,
                time(call.start),
                call.outcome
            ));
        }
    }
    if cases == 0 {
        return Verdict::NotTried;
    }
    let Some(stores) = &evidence.stores else { return Verdict::not_dumped() };
    let Some(clock) = evidence.clock else { return Verdict::no_clock() };
    for (job, trail) in stores.in_order() {
        cancelled_by_somebody(job, trail, clock, &mut violations);
    }
    Verdict::of(cases, violations)
}

/// Whether anybody has asked who it was. Busy, or without a leader, a replica need not.
fn judged(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::Ok { .. } => true,
        Outcome::Refused { status, .. } => !matches!(*status, 0 | 429 | 503 | BUSY | AWAY),
        Outcome::Unknown { .. } => false,
    }
}

/// Whatever is cancelled, somebody has cancelled who may.
fn cancelled_by_somebody(job: &Job, trail: &Trail<'_>, clock: Clock, violations: &mut Vec<String>) {
    let cancelled = |status: &Option<String>| status.as_deref() == Some("cancelled");
    for change in
        trail.changes.iter().filter(|change| cancelled(&change.new_status) && !cancelled(&change.old_status))
    {
        let asked = trail.cancels.iter().filter(|call| attempted(call));
        if !asked.into_iter().any(|call| clock.may_be_within(change.at, call.start, open_end(call))) {
            violations.push(format!(
                "job {} was cancelled at {} ({}), and nobody who may has asked for it",
                job.id,
                change.at,
                clock.tell(change.at)
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, kept, refuted};
    use super::*;

    fn tried(outcome: Outcome) -> Story {
        let mut story = Story::submitted(1);
        story.row(1, 1, "cancelled");
        story.change(1, 0, "", "queued", None);
        story.intrude(50, 403, outcome);
        story
    }

    #[test]
    fn refused_for_what_one_is_is_as_promised() {
        let mut story = tried(Story::refused(403));
        kept(&story.judge(&PROMISE), 1);
        story.intrude(60, 7, Story::refused(7));
        kept(&story.judge(&PROMISE), 2);
    }

    #[test]
    fn whom_nobody_asked_who_it_was_has_tried_nothing() {
        for outcome in [0, 429, 503, 8, 14].map(Story::refused).into_iter().chain([Story::lost()]) {
            let mut story = tried(outcome.clone());
            assert_eq!(story.judge(&PROMISE), Verdict::NotTried, "{outcome:?}");
            story.intrude(60, 403, Story::refused(403));
            kept(&story.judge(&PROMISE), 1);
        }
    }

    #[test]
    fn done_or_refused_in_another_way_is_a_violation() {
        refuted(&tried(Story::ok(&[])).judge(&PROMISE), "instead of 403");
        for status in [401, 404, 500, 5] {
            refuted(&tried(Story::refused(status)).judge(&PROMISE), "instead of 403");
        }
        for code in [3, 16, 403] {
            let mut story = tried(Story::refused(403));
            story.intrude(60, 7, Story::refused(code));
            refuted(&story.judge(&PROMISE), "instead of 7");
        }
    }

    #[test]
    fn a_job_that_nobody_has_cancelled_who_may_is_a_violation() {
        let mut story = tried(Story::refused(403));
        story.change(1, 55, "queued", "cancelled", None);
        refuted(&story.judge(&PROMISE), "nobody who may");
        story.cancel(1, 40, Story::refused(503));
        refuted(&story.judge(&PROMISE), "nobody who may");
        story.cancel(1, 40, Story::lost());
        kept(&story.judge(&PROMISE), 1);
    }
}
