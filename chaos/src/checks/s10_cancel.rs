//! S10: what is cancelled stays so, and no end is left without anybody asking for it.
//!
//! A cancellation and the retry after it may be one change, which shows neither: a job that somebody has tried to
//! revive is judged by what its trail says, not by what it leaves out.

use super::evidence::{Clock, Evidence, Trail, attempted, is_end, time};
use super::{Judge, Promise, Verdict};
use crate::history::{Audit, Call, Job, Outcome};

pub(super) const PROMISE: Promise = Promise {
    id: "S10",
    name: "cancel",
    text: "after a cancel is answered ok there is no later grant, and no terminal state changes without an explicit \
           retry; in a race the answer names the winner",
    judge: Judge::Alone(judge),
};

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let Some(stores) = &evidence.stores else { return Verdict::not_dumped() };
    if stores.last.jobs.is_empty() {
        return Verdict::NotTried;
    }
    let Some(clock) = evidence.clock else { return Verdict::no_clock() };
    let (mut cases, mut violations) = (0, Vec::new());
    for (job, trail) in stores.in_order() {
        ends_are_left_on_demand(job, trail, clock, &mut violations);
        for call in &trail.cancels {
            let fits = match &call.outcome {
                Outcome::Ok { .. } => {
                    was(trail, call, clock, |status| status == "cancelled") || trail.may_be_retried()
                }
                Outcome::Refused { status: 409, .. } => {
                    was(trail, call, clock, is_end) || trail.may_be_retried()
                }
                _ => continue,
            };
            cases += 1;
            if !fits {
                violations.push(told(job, trail, call, clock));
            }
        }
    }
    Verdict::of(cases, violations)
}

/// Each time that an end is left there is a call of its own that may have asked for it.
fn ends_are_left_on_demand(job: &Job, trail: &Trail<'_>, clock: Clock, violations: &mut Vec<String>) {
    let mut calls: Vec<&&Call> = trail.retries.iter().filter(|call| attempted(call)).collect();
    for change in &trail.changes {
        let (Some(old), Some(new)) = (&change.old_status, &change.new_status) else { continue };
        if !is_end(old) {
            continue;
        }
        // A retry and the cancellation after it may be one change.
        let revived = new == "pending"
            || new == "cancelled"
                && trail.cancels.iter().any(|call| {
                    attempted(call) && clock.may_be_within(change.at, call.start, open_end(call))
                });
        let asked = calls.iter().position(|call| clock.may_be_within(change.at, call.start, open_end(call)));
        match asked {
            Some(place) if revived && old != "completed" => {
                calls.remove(place);
            }
            _ => violations.push(format!(
                "job {} was {old} and became {new} at {} ({}) by epoch {:?}, and nobody asked for it",
                job.id,
                change.at,
                clock.tell(change.at),
                change.epoch
            )),
        }
    }
}

/// When a call can have had its effect at the latest; one whose outcome is unknown may still have it later.
pub(super) fn open_end(call: &Call) -> Option<u64> {
    call.end.filter(|_| matches!(call.outcome, Outcome::Ok { .. }))
}

/// Whether the job may have been in such a state at some moment of the call.
fn was(trail: &Trail<'_>, call: &Call, clock: Clock, state: impl Fn(&str) -> bool) -> bool {
    first_during(trail, call, clock, |change| change.new_status.as_deref().is_some_and(&state)).is_some()
}

/// The first change of this kind whose effect may have lasted into the call.
pub(super) fn first_during(
    trail: &Trail<'_>,
    call: &Call,
    clock: Clock,
    kind: impl Fn(&Audit) -> bool,
) -> Option<usize> {
    let begun = |change: &Audit| !call.end.is_some_and(|end| clock.is_after(change.at, end));
    let lasted = |next: Option<&&Audit>| next.is_none_or(|next| !clock.is_before(next.at, call.start));
    trail
        .changes
        .iter()
        .enumerate()
        .position(|(place, change)| kind(change) && begun(change) && lasted(trail.changes.get(place + 1)))
}

fn told(job: &Job, trail: &Trail<'_>, call: &Call, clock: Clock) -> String {
    let changes = trail.changes.iter().map(|change| {
        format!("{} at {}", change.new_status.as_deref().unwrap_or("nothing"), clock.tell(change.at))
    });
    format!(
        "job {}: {} (call {}) at replica {} from {} to {} was answered {:?}, and the job became {}",
        job.id,
        call.client,
        call.call,
        call.replica + 1,
        time(call.start),
        call.end.map_or("never".to_owned(), time),
        call.outcome,
        changes.collect::<Vec<_>>().join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, kept, refuted};
    use super::*;

    /// Cancelled at 100 ms.
    fn cancelled() -> Story {
        let mut story = Story::submitted(1);
        story.row(1, 1, "cancelled");
        story.change(1, 0, "", "queued", None);
        story.change(1, 100, "queued", "cancelled", None);
        story
    }

    #[test]
    fn what_was_cancelled_stays_so() {
        let mut story = cancelled();
        story.cancel(1, 90, Story::ok(&[]));
        story.cancel(1, 900, Story::refused(409));
        story.cancel(1, 950, Story::lost());
        kept(&story.judge(&PROMISE), 2);
    }

    #[test]
    fn a_grant_after_it_is_a_violation() {
        let mut story = cancelled();
        story.cancel(1, 90, Story::ok(&[]));
        story.change(1, 500, "cancelled", "assigned", Some(1));
        refuted(&story.judge(&PROMISE), "became assigned");
    }

    #[test]
    fn an_end_that_is_left_without_a_retry_is_a_violation() {
        let mut story = cancelled();
        story.change(1, 500, "cancelled", "pending", None);
        refuted(&story.judge(&PROMISE), "nobody asked");
        story.retry_at(1, 600, Story::ok(&[]));
        refuted(&story.judge(&PROMISE), "nobody asked");
        story.retry_at(1, 450, Story::refused(503));
        refuted(&story.judge(&PROMISE), "nobody asked");
        story.retry_at(1, 450, Story::lost());
        assert_eq!(story.judge(&PROMISE), Verdict::NotTried);
        story.change(1, 800, "failed", "pending", None);
        refuted(&story.judge(&PROMISE), "was failed");
    }

    #[test]
    fn a_retry_and_the_cancellation_after_it_may_be_one_change() {
        let mut story = cancelled();
        story.change(1, 500, "cancelled", "cancelled", None);
        story.retry_at(1, 450, Story::ok(&[]));
        refuted(&story.judge(&PROMISE), "nobody asked");
        story.cancel(1, 490, Story::ok(&[]));
        kept(&story.judge(&PROMISE), 1);
    }

    #[test]
    fn a_completed_job_is_never_revived() {
        let mut story = Story::submitted(1);
        story.row(1, 1, "pending");
        story.change(1, 100, "running", "completed", None);
        story.change(1, 500, "completed", "pending", None);
        story.retry_at(1, 450, Story::ok(&[]));
        refuted(&story.judge(&PROMISE), "was completed");
    }

    #[test]
    fn an_answer_that_names_the_wrong_winner_is_a_violation() {
        let mut story = cancelled();
        story.cancel(1, 10, Story::refused(409));
        refuted(&story.judge(&PROMISE), "409");
        let mut story = Story::submitted(1);
        story.row(1, 1, "completed");
        story.change(1, 0, "", "running", None);
        story.change(1, 100, "running", "completed", None);
        story.cancel(1, 90, Story::refused(409));
        kept(&story.judge(&PROMISE), 1);
        story.cancel(1, 90, Story::ok(&[]));
        refuted(&story.judge(&PROMISE), "became running");
    }
}
