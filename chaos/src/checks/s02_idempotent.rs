//! S2: a key stands for the same jobs, however often it is sent and whatever became of the answers.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::evidence::{Evidence, attempted};
use super::{Judge, Promise, Verdict};
use crate::history::{Call, Outcome, Request};

pub(super) const PROMISE: Promise = Promise {
    id: "S2",
    name: "idempotent",
    text: "at most one job per idempotency key, also when the first answer was lost; every repeat names the same id",
    judge: Judge::Alone(judge),
};

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let Some(stores) = &evidence.stores else { return Verdict::not_dumped() };
    let mut keys: BTreeMap<&str, Vec<&Call>> = BTreeMap::new();
    for call in &evidence.history.calls {
        if let Request::Submit { key: Some(key), .. } = &call.request {
            keys.entry(key).or_default().push(call);
        }
    }
    let mut rows: BTreeMap<u64, Vec<Uuid>> = BTreeMap::new();
    for job in &stores.last.jobs {
        if let Some(number) = job.number {
            rows.entry(number.cast_unsigned()).or_default().push(job.id);
        }
    }
    let mut stored: BTreeMap<&str, Vec<&[Uuid]>> = BTreeMap::new();
    for key in &stores.last.keys {
        stored.entry(&key.key).or_default().push(&key.job_ids);
    }
    let (mut cases, mut violations) = (0, Vec::new());
    for (key, calls) in keys {
        cases += u64::from(calls.len() > 1);
        let first = same_answers(key, &calls, &mut violations);
        one_row_each(key, &calls, &rows, &mut violations);
        let stored = stored.get(key).map_or(&[][..], Vec::as_slice);
        if stored.len() > 1 {
            violations.push(format!("key {key} is stored {} times: {stored:?}", stored.len()));
        }
        if let (Some((call, ids)), [kept]) = (&first, stored)
            && ids != kept
        {
            violations
                .push(format!("key {key}: call {call} was answered {ids:?}, the key is stored for {kept:?}"));
        }
    }
    Verdict::of(cases, violations)
}

/// All answers name the same jobs in the same order. Answers which those are.
fn same_answers(key: &str, calls: &[&Call], violations: &mut Vec<String>) -> Option<(u64, Vec<Uuid>)> {
    let mut first: Option<(u64, Vec<Uuid>)> = None;
    for call in calls {
        let Outcome::Ok { jobs, .. } = &call.outcome else { continue };
        let ids: Vec<_> = jobs.iter().map(|job| job.id).collect();
        match &first {
            None => first = Some((call.call, ids)),
            Some((before, known)) if *known != ids => violations.push(format!(
                "key {key}: call {before} was answered {known:?}, call {} at replica {} was answered {ids:?}",
                call.call,
                call.replica + 1
            )),
            Some(_) => {}
        }
    }
    first
}

/// What was submitted under a key has one row at the most, answered or not.
fn one_row_each(key: &str, calls: &[&Call], rows: &BTreeMap<u64, Vec<Uuid>>, violations: &mut Vec<String>) {
    let mut numbers: Vec<u64> = Vec::new();
    for call in calls.iter().filter(|call| attempted(call)) {
        if let Request::Submit { numbers: of, .. } = &call.request {
            numbers.extend(of);
        }
    }
    numbers.sort_unstable();
    numbers.dedup();
    for number in numbers {
        if let Some(ids) = rows.get(&number).filter(|ids| ids.len() > 1) {
            let calls: Vec<_> = calls.iter().map(|call| call.call).collect();
            violations.push(format!("key {key}, calls {calls:?}: job {number} is there as {ids:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, id, kept, refuted};
    use super::*;

    fn told(second: Outcome, rows: &[u64]) -> Verdict {
        let mut story = Story::new();
        story.submit_keyed("k", 7, Story::lost());
        story.submit_keyed("k", 7, Story::ok(&[id(7)]));
        story.submit_keyed("k", 7, second);
        for row in rows {
            story.row(*row, 7, "completed");
        }
        story.key("k", &[id(7)]);
        story.judge(&PROMISE)
    }

    #[test]
    fn a_repeat_names_the_same_job_also_after_a_lost_answer() {
        kept(&told(Story::ok(&[id(7)]), &[7]), 1);
        kept(&told(Story::lost(), &[7]), 1);
        kept(&told(Story::refused(503), &[7]), 1);
    }

    #[test]
    fn another_id_is_a_violation() {
        refuted(&told(Story::ok(&[id(8)]), &[7]), "call 3");
    }

    #[test]
    fn two_rows_of_one_key_are_a_violation_though_the_first_answer_was_lost() {
        refuted(&told(Story::ok(&[id(7)]), &[7, 8]), "job 7 is there as");
    }

    #[test]
    fn a_key_that_is_stored_for_other_jobs_is_a_violation() {
        let mut story = Story::new();
        story.submit_keyed("k", 7, Story::ok(&[id(7)]));
        story.submit_keyed("k", 7, Story::ok(&[id(7)]));
        story.row(7, 7, "completed");
        story.key("k", &[id(9)]);
        refuted(&story.judge(&PROMISE), "stored for");
        story.key("k", &[id(7)]);
        refuted(&story.judge(&PROMISE), "stored 2 times");
    }
}
