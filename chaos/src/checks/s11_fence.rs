//! S11: nobody writes who does not lead.
//!
//! Every statement that changes scheduling state is noted, in its transaction, with the epoch that it has shown to the
//! fence. The transaction holds the fence's lock shared until it ends, and taking over holds it alone: so all notes of
//! an epoch have smaller numbers than those of the next one, and the epoch beside them cannot change meanwhile.
//!
//! Redis has a fence of its own, which [`super::s11_fence_redis`] judges.

use std::collections::HashMap;

use super::evidence::Evidence;
use super::{Judge, Promise, Verdict};

pub(super) const PROMISE: Promise = Promise {
    id: "S11",
    name: "fence",
    text: "no scheduling write of epoch E commits in PostgreSQL after the first write of an epoch > E",
    judge: Judge::Alone(judge),
};

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let Some(stores) = &evidence.stores else { return Verdict::not_dumped() };
    let (mut newest, mut cases, mut violations) = (None, 0, Vec::new());
    for write in &stores.last.writes {
        // The first writer is whoever it is; those that come after another one could have been fenced off.
        cases += u64::from(newest.is_some_and(|(first, now)| first != now));
        if write.writer.is_none() || write.writer != write.current {
            violations.push(format!(
                "write {} of {} showed epoch {:?} while {:?} was the current one",
                write.id, write.relation, write.writer, write.current
            ));
        }
        if let (Some(writer), Some((_, highest))) = (write.writer, newest)
            && writer < highest
        {
            violations.push(format!(
                "write {} of {} by epoch {writer} came after one by epoch {highest}",
                write.id, write.relation
            ));
        }
        newest = match (newest, write.writer) {
            (Some((first, highest)), Some(writer)) => Some((first, writer.max(highest))),
            (None, Some(writer)) => Some((writer, writer)),
            (newest, None) => newest,
        };
    }
    let mut by_job: HashMap<_, i64> = HashMap::new();
    for change in &stores.last.audit {
        let Some(epoch) = change.epoch else {
            violations.push(format!(
                "job {} became {:?} at {} without the fence",
                change.job_id, change.new_status, change.at
            ));
            continue;
        };
        let highest = by_job.entry(change.job_id).or_insert(epoch);
        if epoch < *highest {
            violations.push(format!(
                "job {} became {:?} at {} by epoch {epoch}, after a change by epoch {highest}",
                change.job_id, change.new_status, change.at
            ));
        }
        *highest = epoch.max(*highest);
    }
    Verdict::of(cases, violations)
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, kept, refuted};
    use super::*;

    fn writes(of: &[(i64, i64)]) -> Story {
        let mut story = Story::new();
        for (writer, current) in of {
            story.write(Some(*writer), Some(*current));
        }
        story
    }

    #[test]
    fn epochs_in_turn_are_as_promised() {
        kept(&writes(&[(3, 3), (3, 3), (9, 9), (9, 9), (12, 12)]).judge(&PROMISE), 2);
        assert_eq!(writes(&[(3, 3), (3, 3)]).judge(&PROMISE), Verdict::NotTried);
    }

    #[test]
    fn a_write_by_a_former_epoch_is_a_violation() {
        refuted(&writes(&[(3, 3), (9, 9), (3, 9)]).judge(&PROMISE), "showed epoch Some(3)");
        refuted(&writes(&[(3, 3), (9, 9), (3, 3)]).judge(&PROMISE), "came after one by epoch 9");
    }

    #[test]
    fn a_write_past_the_fence_is_a_violation() {
        let mut story = writes(&[(3, 3)]);
        story.write(None, Some(3));
        refuted(&story.judge(&PROMISE), "showed epoch None");
        let mut story = writes(&[(3, 3)]);
        story.change(1, 0, "", "queued", None).epoch = None;
        refuted(&story.judge(&PROMISE), "without the fence");
    }

    #[test]
    fn a_job_that_a_former_epoch_changes_is_a_violation() {
        let mut story = writes(&[(3, 3)]);
        story.change(1, 0, "", "queued", None).epoch = Some(9);
        story.change(1, 1, "queued", "assigned", Some(1)).epoch = Some(3);
        refuted(&story.judge(&PROMISE), "after a change by epoch 9");
    }
}
