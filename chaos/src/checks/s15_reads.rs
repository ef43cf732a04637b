//! S15: nobody sees a job go backwards, and what was answered is there to be read.
//!
//! The states of a job in their order are its trail. The looks of one client at it must fit to states each of which is
//! the same as the one before or later: each look is taken for the first state that fits, which leaves most room for
//! the next. A look that begins after a submission, cancellation or retry was answered ok must show its effect, or what
//! came later.

use std::collections::HashMap;

use uuid::Uuid;

use super::evidence::{Clock, Evidence, Stores, time};
use super::s10_cancel::first_during;
use super::{Judge, Promise, Verdict};
use crate::history::{Audit, Call, Outcome, Request, Seen};

pub(super) const PROMISE: Promise = Promise {
    id: "S15",
    name: "reads",
    text: "a job's state never goes backwards for one client; a client that was answered ok sees its write on every \
           replica",
    judge: Judge::Alone(judge),
};

/// An answered write: when it was answered, and the place in the trail of its effect.
type Written = (u64, usize);

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let looks = evidence.history.calls.iter().filter(|call| matches!(call.request, Request::Get { .. }));
    let looks: Vec<_> = looks.collect();
    if looks.is_empty() {
        return Verdict::NotTried;
    }
    let Some(stores) = &evidence.stores else { return Verdict::not_dumped() };
    let Some(clock) = evidence.clock else { return Verdict::no_clock() };
    let written = written(evidence, stores, clock);
    let mut places: HashMap<(&str, Uuid), usize> = HashMap::new();
    let (mut cases, mut violations) = (0, Vec::new());
    for call in looks {
        let Request::Get { job } = call.request else { continue };
        let answered = || written.get(&job).into_iter().flatten().filter(|(at, _)| *at < call.start);
        let seen = match &call.outcome {
            Outcome::Ok { jobs, .. } => jobs.iter().find(|seen| seen.id == job),
            Outcome::Refused { status: 404, .. } => {
                if let Some((at, _)) = answered().next() {
                    violations.push(format!(
                        "{} and was answered at {}",
                        told(call, job, "nothing"),
                        time(*at)
                    ));
                }
                continue;
            }
            _ => continue,
        };
        let Some(seen) = seen else {
            violations.push(told(call, job, "another job"));
            continue;
        };
        cases += 1;
        let states = stores.trails.get(&job).map_or(&[][..], |trail| trail.changes.as_slice());
        let place = places.entry((&call.client, job)).or_default();
        let least = answered().map(|(_, place)| *place).max().unwrap_or(0);
        let from = (*place).max(least);
        match states.iter().skip(from).position(|state| shows(state, seen)) {
            Some(more) => *place = from + more,
            None => violations.push(format!(
                "{}; from the {} on it was {:?}",
                told(call, job, &format!("{} after {} retries", seen.status, seen.retries)),
                if least > *place { "last answered write" } else { "last look" },
                states.iter().skip(from).map(|state| (&state.new_status, state.retries)).collect::<Vec<_>>()
            )),
        }
    }
    Verdict::of(cases, violations)
}

/// The writes that were answered ok, by job.
fn written(evidence: &Evidence<'_>, stores: &Stores<'_>, clock: Clock) -> HashMap<Uuid, Vec<Written>> {
    let mut written: HashMap<Uuid, Vec<Written>> = HashMap::new();
    for call in &evidence.history.calls {
        let (Outcome::Ok { jobs, .. }, Some(end)) = (&call.outcome, call.end) else { continue };
        let (job, status) = match &call.request {
            Request::Submit { .. } => {
                jobs.iter().for_each(|seen| written.entry(seen.id).or_default().push((end, 0)));
                continue;
            }
            Request::Cancel { job } => (job, "cancelled"),
            Request::Retry { job } => (job, "pending"),
            _ => continue,
        };
        let Some(trail) = stores.trails.get(job) else { continue };
        let place = first_during(trail, call, clock, |change| change.new_status.as_deref() == Some(status));
        if let Some(place) = place {
            written.entry(*job).or_default().push((end, place));
        }
    }
    written
}

fn shows(state: &Audit, seen: &Seen) -> bool {
    state.new_status.as_deref() == Some(&seen.status)
        && state.retries.is_none_or(|retries| retries == seen.retries)
}

fn told(call: &Call, job: Uuid, what: &str) -> String {
    format!(
        "{} (call {}) saw {what} of job {job} at replica {} from {} to {}",
        call.client,
        call.call,
        call.replica + 1,
        time(call.start),
        call.end.map_or("never".to_owned(), time)
    )
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, id, kept, refuted};
    use super::*;

    fn story() -> Story {
        let mut story = Story::submitted(1);
        story.row(1, 1, "completed").retry_count = 1;
        story.change(1, 0, "", "queued", None);
        story.change(1, 100, "queued", "assigned", Some(1));
        story.change(1, 200, "assigned", "pending", None).retries = Some(1);
        story.change(1, 300, "pending", "queued", None).retries = Some(1);
        story.change(1, 400, "queued", "assigned", Some(2)).retries = Some(1);
        story.change(1, 500, "assigned", "completed", None).retries = Some(1);
        story
    }

    #[test]
    fn forward_is_as_promised_also_with_looks_that_failed() {
        let mut story = story();
        story.look("r", 1, 50, Story::shown(1, "queued", 0));
        story.look("r", 1, 150, Story::lost());
        story.look("r", 1, 350, Story::shown(1, "queued", 1));
        story.look("r", 1, 360, Story::refused(503));
        story.look("r", 1, 600, Story::shown(1, "completed", 1));
        kept(&story.judge(&PROMISE), 3);
    }

    #[test]
    fn backwards_is_a_violation_for_one_client_and_not_for_two() {
        let mut story = story();
        story.look("a", 1, 350, Story::shown(1, "queued", 1));
        story.look("b", 1, 360, Story::shown(1, "queued", 0));
        kept(&story.judge(&PROMISE), 2);
        story.look("a", 1, 370, Story::shown(1, "queued", 0));
        refuted(&story.judge(&PROMISE), "from the last look on");
    }

    #[test]
    fn a_state_that_never_was_is_a_violation() {
        let mut story = story();
        story.look("r", 1, 350, Story::shown(1, "failed", 1));
        refuted(&story.judge(&PROMISE), "saw failed");
    }

    #[test]
    fn a_job_that_was_answered_is_there_to_be_read() {
        let mut story = story();
        story.look("r", 1, 350, Story::refused(404));
        refuted(&story.judge(&PROMISE), "saw nothing");
        story.calls.retain(|call| matches!(call.request, Request::Get { .. }));
        assert_eq!(story.judge(&PROMISE), Verdict::no_clock());
    }

    #[test]
    fn a_cancellation_that_was_answered_is_there_to_be_read() {
        let mut story = Story::submitted(1);
        story.row(1, 1, "cancelled");
        story.change(1, 0, "", "queued", None);
        story.change(1, 100, "queued", "cancelled", None);
        story.cancel(1, 95, Story::ok(&[]));
        story.look("r", 1, 96, Story::shown(1, "queued", 0));
        kept(&story.judge(&PROMISE), 1);
        story.look("s", 1, 500, Story::shown(1, "queued", 0));
        refuted(&story.judge(&PROMISE), "last answered write");
        assert_eq!(story.last().jobs[0].id, id(1));
    }
}
