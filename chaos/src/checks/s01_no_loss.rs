//! S1: what was answered ok is there, once, and has come to one end.

use std::collections::BTreeMap;

use super::evidence::{Evidence, is_end};
use super::{Judge, Promise, Verdict};
use crate::history::{Outcome, Request};

pub(super) const PROMISE: Promise = Promise {
    id: "S1",
    name: "no loss",
    text: "every submission answered ok has exactly one job, and after quiet exactly one end",
    judge: Judge::Alone(judge),
};

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let history = evidence.history;
    let Some(last) = &history.last else { return Verdict::not_dumped() };
    let mut rows: BTreeMap<i64, Vec<_>> = BTreeMap::new();
    for job in &last.jobs {
        if let Some(number) = job.number {
            rows.entry(number).or_default().push(job);
        }
    }
    let (mut cases, mut violations) = (0, Vec::new());
    for call in &history.calls {
        let (Request::Submit { numbers, .. }, Outcome::Ok { jobs, .. }) = (&call.request, &call.outcome)
        else {
            continue;
        };
        if numbers.len() != jobs.len() {
            violations.push(format!(
                "call {}: {} jobs submitted, {} answered",
                call.call,
                numbers.len(),
                jobs.len()
            ));
        }
        for (number, seen) in numbers.iter().zip(jobs) {
            cases += 1;
            let found = rows.get(&number.cast_signed()).map_or(&[][..], Vec::as_slice);
            match found {
                [job] if job.id != seen.id => {
                    violations.push(format!("job {number} was answered as {} and is {}", seen.id, job.id));
                }
                [job] if !is_end(&job.status) => {
                    violations.push(format!("job {} is {} after quiet", job.id, job.status));
                }
                [_] => {}
                _ => violations.push(format!("job {number} ({}) has {} rows", seen.id, found.len())),
            }
        }
    }
    // An end that is left again without anybody asking for it is caught by the trail: see S10.
    Verdict::of(cases, violations)
}
