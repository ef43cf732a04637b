//! S3: nothing is there that nobody submitted.

use std::collections::HashMap;

use super::evidence::{Evidence, attempted, time};
use super::{Judge, Promise, Verdict};

pub(super) const PROMISE: Promise = Promise {
    id: "S3",
    name: "no phantom",
    text: "every job and execution belongs to a submission that was attempted",
    judge: Judge::Alone(judge),
};

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let Some(stores) = &evidence.stores else { return Verdict::not_dumped() };
    let (mut cases, mut violations) = (0, Vec::new());
    let mut seen: HashMap<u64, uuid::Uuid> = HashMap::new();
    for job in &stores.last.jobs {
        cases += 1;
        let Some(number) = job.number.and_then(|number| u64::try_from(number).ok()) else {
            violations.push(format!(
                "job {} of {} carries no number: nobody submitted it",
                job.id, job.submitted_at
            ));
            continue;
        };
        match evidence.submissions.get(&number) {
            None => {
                violations.push(format!("job {} carries number {number}, which nobody submitted", job.id))
            }
            Some(calls) if !calls.iter().any(|call| attempted(call)) => {
                let calls: Vec<_> = calls.iter().map(|call| call.call).collect();
                violations.push(format!(
                    "job {} (number {number}) is there, and was refused: calls {calls:?}",
                    job.id
                ));
            }
            // More than one job under a key is S2's.
            Some(calls) if calls.len() == 1 => {
                if let Some(other) = seen.insert(number, job.id) {
                    violations.push(format!(
                        "call {}, sent once, made two jobs: {other} and {}",
                        calls[0].call, job.id
                    ));
                }
            }
            Some(_) => {}
        }
    }
    for (id, trail) in &stores.trails {
        if trail.job.is_none() && !trail.executions.is_empty() {
            let leases: Vec<_> = trail.executions.iter().map(|execution| execution.id).collect();
            violations.push(format!("executions {leases:?} belong to job {id}, which is not there"));
        }
    }
    for (lease, runs) in &evidence.runs {
        let row = stores.leases.get(lease).and_then(|lease| lease.execution);
        for run in runs {
            match row {
                None => violations.push(format!(
                    "{} ran job {} under lease {lease} at {}, and there is no such execution",
                    run.worker,
                    run.job,
                    time(run.began)
                )),
                Some(row) if row.job_id != run.job => violations.push(format!(
                    "{} was given job {} under lease {lease}, which is of job {}",
                    run.worker, run.job, row.job_id
                )),
                Some(_) if !evidence.submissions.contains_key(&run.number) => violations.push(format!(
                    "{} ran number {}, which nobody submitted, under lease {lease}",
                    run.worker, run.number
                )),
                Some(_) => {}
            }
        }
    }
    for lease in &stores.last.leases {
        if stores.leases.get(&lease.id).is_none_or(|known| known.execution.is_none()) {
            violations.push(format!("lease {} of job {} has no execution", lease.id, lease.job_id));
        }
    }
    Verdict::of(cases, violations)
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, id, kept, lease, refuted};
    use super::*;

    #[test]
    fn jobs_of_answered_and_of_lost_submissions_are_no_phantoms() {
        let mut story = Story::new();
        story.submit(1, Story::ok(&[id(1)]));
        story.submit(2, Story::lost());
        story.row(1, 1, "completed");
        story.row(2, 2, "completed");
        story.execution(1, 1, "completed");
        story.start("w", 1, 1, 1);
        kept(&story.judge(&PROMISE), 2);
    }

    #[test]
    fn a_job_that_was_refused_is_one() {
        let mut story = Story::new();
        story.submit(1, Story::refused(422));
        story.row(1, 1, "completed");
        refuted(&story.judge(&PROMISE), "was refused");
    }

    #[test]
    fn jobs_executions_and_runs_from_nowhere_are_ones() {
        let mut story = Story::new();
        story.row(1, 1, "completed");
        refuted(&story.judge(&PROMISE), "which nobody submitted");

        let mut story = Story::new();
        story.execution(1, 5, "completed");
        refuted(&story.judge(&PROMISE), "which is not there");

        let mut story = Story::new();
        story.start("w", 1, 5, 1);
        refuted(&story.judge(&PROMISE), "no such execution");

        let mut story = Story::new();
        story.last().leases.push(crate::history::Lease { job_id: id(1), id: lease(1) });
        refuted(&story.judge(&PROMISE), "has no execution");
    }

    #[test]
    fn two_jobs_of_one_request_are_one() {
        let mut story = Story::new();
        story.submit(1, Story::lost());
        story.row(1, 1, "completed");
        story.row(2, 1, "completed");
        refuted(&story.judge(&PROMISE), "made two jobs");
    }
}
