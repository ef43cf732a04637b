//! S7: a job completes once, and whoever says so again hears the same.
//!
//! That goes for reports at several replicas at once, too: one that was acknowledged was sent under a good lease, and
//! whichever was carried out after it is a repetition. What was answered before it was sent is [S6](super::s06_stale_lease)'s.
//! A replica that cannot carry out a report does not answer it: that is no refusal.
//!
//! Outside of the cluster it is the same: a worker does there what the job is for when its completion is acknowledged, and
//! whatever was done stands for the one completion of its job. It is known by its lease, so doing it again under the same
//! one is no second effect.

use std::collections::{BTreeMap, HashMap, HashSet};

use uuid::Uuid;

use super::evidence::{Evidence, Report, Stores, time};
use super::s06_stale_lease::ended_so;
use super::{Judge, Promise, Verdict};
use crate::history::{Act, Ending, Job, Says};

pub(super) const PROMISE: Promise = Promise {
    id: "S7",
    name: "effective once",
    text: "one accepted completion per job; the same report repeated gets the same answer; a different one is refused",
    judge: Judge::Alone(judge),
};

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let Some(stores) = &evidence.stores else { return Verdict::not_dumped() };
    let (mut cases, mut violations) = (0, Vec::new());
    for (job, trail) in stores.in_order() {
        let completed = trail.executions.iter().filter(|row| row.status == "completed");
        let completed: Vec<_> = completed.map(|row| row.id).collect();
        let changes = trail.changes.iter().filter(|change| change.new_status.as_deref() == Some("completed"));
        let times: Vec<_> = changes.map(|change| change.at).collect();
        if completed.is_empty() && times.is_empty() && job.status != "completed" {
            continue;
        }
        cases += 1;
        if completed.len() != 1 || times.len() > 1 || job.status != "completed" {
            violations.push(format!(
                "job {} is {}, has the completed leases {completed:?}, and became completed at {times:?}",
                job.id, job.status
            ));
        }
        if job.status == "completed" && job.result != job.number {
            violations.push(format!(
                "job {} is number {:?} and has the result {:?}, which none of its workers has reported",
                job.id, job.number, job.result
            ));
        }
    }
    answers(evidence, stores, &mut violations);
    words(evidence, stores, &mut violations);
    effects(evidence, stores, &mut violations);
    Verdict::of(cases, violations)
}

/// What was acknowledged is there, and the same was answered to the same.
fn answers(evidence: &Evidence<'_>, stores: &Stores<'_>, violations: &mut Vec<String>) {
    let mut leases: BTreeMap<Uuid, Vec<&Report<'_>>> = BTreeMap::new();
    for report in evidence.reports.iter().filter(|report| *report.says != Says::Running) {
        leases.entry(report.lease).or_default().push(report);
    }
    let jobs: HashMap<_, _> = stores.last.jobs.iter().map(|job| (job.id, job)).collect();
    for (lease, reports) in leases {
        let accepted = || reports.iter().filter(|report| report.acknowledged == Some(true));
        let Some(first) = accepted().min_by_key(|report| report.answered) else { continue };
        if let Some(other) = accepted().find(|report| report.says != first.says) {
            violations.push(format!(
                "lease {lease}: {} and {} were both acknowledged",
                told(first),
                told(other)
            ));
        }
        let refused = |report: &&&Report<'_>| {
            report.says == first.says
                && report.acknowledged == Some(false)
                && report.answered.is_some_and(|answered| answered > first.sent)
        };
        if let Some(again) = reports.iter().find(refused) {
            violations.push(format!(
                "lease {lease}: {} was acknowledged, and refused when it was {}: {}",
                told(first),
                if Some(again.sent) > first.answered { "repeated" } else { "said at the same time" },
                told(again)
            ));
        }
        let row = stores.leases.get(&lease).and_then(|lease| lease.execution);
        if row.is_none_or(|row| !ended_so(row, first.says)) {
            violations.push(format!(
                "lease {lease}: {} was acknowledged, and the execution is {}",
                told(first),
                row.map_or("not there", |row| row.status.as_str())
            ));
        }
        if let Says::Success(result) = first.says
            && let Some(job) = jobs.get(&first.job)
            && job.result != Some(result.cast_signed())
        {
            violations.push(format!(
                "job {}: {} was acknowledged, and the result is {:?}",
                job.id,
                told(first),
                job.result
            ));
        }
    }
}

/// What the executions say of their ends, their workers have said before.
fn words(evidence: &Evidence<'_>, stores: &Stores<'_>, violations: &mut Vec<String>) {
    let reported: HashSet<Uuid> = evidence
        .reports
        .iter()
        .filter(|report| matches!(report.says, Says::Success(_)))
        .map(|report| report.lease)
        .collect();
    for row in &stores.last.executions {
        let ends = evidence.runs.get(&row.id).map_or(&[][..], Vec::as_slice);
        let succeeded = ends.iter().any(|run| matches!(run.ended, Some((_, Ending::Success))));
        if row.status == "completed" && !succeeded && !reported.contains(&row.id) {
            violations.push(format!(
                "lease {} of job {} is completed, and no worker has said so: {:?}",
                row.id,
                row.job_id,
                ends.iter().map(|run| (run.worker, run.ended)).collect::<Vec<_>>()
            ));
        }
        if ended_so(row, &Says::Failure) && ends.len() == 1 && succeeded {
            violations
                .push(format!("lease {} of job {} has failed, and its worker succeeded", row.id, row.job_id));
        }
    }
}

/// What was done outside was done for the completion of its job, and for each completion that its worker heard of.
fn effects(evidence: &Evidence<'_>, stores: &Stores<'_>, violations: &mut Vec<String>) {
    let execution = |lease: &Uuid| stores.leases.get(lease).and_then(|lease| lease.execution);
    let completes = |lease: &Uuid, job: &Uuid| {
        execution(lease).is_some_and(|row| row.job_id == *job && row.status == "completed")
    };
    let (mut done, mut first) = (HashSet::new(), HashMap::new());
    for (at, worker, act) in &evidence.history.acts {
        let Act::Effect { job, lease, number } = act else { continue };
        done.insert(*lease);
        let told = format!("effect {number} of job {job} by {worker} under lease {lease} at {}", time(*at));
        let other = *first.entry(*job).or_insert(*lease);
        if other != *lease {
            violations.push(format!("{told}: it had one under lease {other} already"));
        }
        let row = stores.trails.get(job).and_then(|trail| trail.job);
        let as_said = |row: &Job| row.status == "completed" && row.number == Some(number.cast_signed());
        if !row.is_some_and(as_said) || !completes(lease, job) {
            violations.push(format!(
                "{told}: the job is {:?}, and that execution {:?}",
                row.map(|row| (row.number, row.status.as_str())),
                execution(lease).map(|row| (row.job_id, row.status.as_str()))
            ));
        }
    }
    if !evidence.history.info.effects {
        return;
    }
    for report in &evidence.reports {
        let heard = matches!(report.says, Says::Success(_)) && report.acknowledged.is_some();
        if heard && completes(&report.lease, &report.job) && done.insert(report.lease) {
            violations.push(format!(
                "job {} is completed by lease {} and had no effect outside; {} was {}",
                report.job,
                report.lease,
                told(report),
                if report.acknowledged == Some(true) { "acknowledged" } else { "refused" }
            ));
        }
    }
}

fn told(report: &Report<'_>) -> String {
    format!(
        "{:?} of {} to {} (report {}, {})",
        report.says,
        report.worker,
        report.whom(),
        report.number,
        time(report.sent)
    )
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, kept, lease, refuted};
    use super::*;

    fn done() -> Story {
        let mut story = Story::submitted(1);
        story.row(1, 1, "completed").result = Some(1);
        story.change(1, 0, "", "assigned", Some(1));
        story.change(1, 100, "assigned", "completed", None);
        story.execution(1, 1, "completed").lasts(0, 100);
        story.start("w", 1, 1, 1);
        story.end("w", 1, 1, Ending::Success);
        story.report("w", 1, 1, Says::Success(1), 90, Some(true));
        story.effect("w", 1, 1, 95);
        story
    }

    #[test]
    fn a_repetition_is_acknowledged_and_another_report_refused() {
        let mut story = done();
        story.report("w", 1, 1, Says::Success(1), 200, Some(true));
        story.report("w", 1, 1, Says::Success(1), 300, None);
        story.report("w", 1, 1, Says::Failure, 400, Some(false));
        story.report("w", 1, 1, Says::Failure, 500, None);
        kept(&story.judge(&PROMISE), 1);
    }

    #[test]
    fn a_repetition_refused_and_another_report_acknowledged_are_violations() {
        let mut story = done();
        story.report("w", 1, 1, Says::Success(1), 200, Some(false));
        refuted(&story.judge(&PROMISE), "refused when it was repeated");
        let mut story = done();
        story.report("w", 1, 1, Says::Failure, 200, Some(true));
        refuted(&story.judge(&PROMISE), "were both acknowledged");
    }

    #[test]
    fn reports_at_the_same_time_get_the_same_answer_if_they_get_one() {
        let mut story = done();
        story.report("w", 1, 1, Says::Success(1), 91, Some(true));
        story.report("w", 1, 1, Says::Success(1), 91, None);
        kept(&story.judge(&PROMISE), 1);
        story.report("w", 1, 1, Says::Success(1), 91, Some(false));
        refuted(&story.judge(&PROMISE), "refused when it was said at the same time");
        let mut story = done();
        story.report("w", 1, 1, Says::Success(1), 80, Some(false));
        kept(&story.judge(&PROMISE), 1);
    }

    #[test]
    fn an_acknowledged_end_that_is_not_there_is_a_violation() {
        let mut story = done();
        story.last().executions[0].status = "cancelled".to_owned();
        refuted(&story.judge(&PROMISE), "and the execution is cancelled");
        let mut story = done();
        story.last().executions.clear();
        refuted(&story.judge(&PROMISE), "not there");
    }

    #[test]
    fn two_completions_and_a_completed_job_that_is_not_are_violations() {
        let mut story = done();
        story.execution(2, 1, "completed").lasts(200, 300);
        refuted(&story.judge(&PROMISE), "completed leases");
        let mut story = done();
        story.change(1, 300, "completed", "completed", None);
        refuted(&story.judge(&PROMISE), "became completed at");
        let mut story = done();
        story.last().jobs[0].status = "failed".to_owned();
        refuted(&story.judge(&PROMISE), "is failed");
    }

    #[test]
    fn an_effect_without_the_completion_of_its_job_is_a_violation() {
        let mut story = done();
        story.effect("w", 1, 1, 200);
        kept(&story.judge(&PROMISE), 1);
        story.effect("zombie", 1, 2, 300);
        refuted(&story.judge(&PROMISE), "it had one under lease");
        let mut story = done();
        story.last().executions[0].id = lease(2);
        refuted(&story.judge(&PROMISE), "and that execution None");
        let mut story = done();
        story.last().jobs[0].number = Some(2);
        refuted(&story.judge(&PROMISE), r#"the job is Some((Some(2), "completed"))"#);
        let mut story = done();
        story.effect("w", 2, 3, 300);
        refuted(&story.judge(&PROMISE), "the job is None");
    }

    #[test]
    fn a_completion_that_its_worker_has_heard_of_without_an_effect_is_a_violation() {
        let mut story = done();
        story.acts.pop();
        refuted(&story.judge(&PROMISE), "had no effect outside");
        story.info.effects = false;
        kept(&story.judge(&PROMISE), 1);
        let answered = |answer| {
            let mut story = done();
            story.acts.truncate(2);
            story.report("w", 1, 1, Says::Success(1), 90, answer);
            story
        };
        refuted(&answered(Some(false)).judge(&PROMISE), " was refused");
        kept(&answered(None).judge(&PROMISE), 1);
    }

    #[test]
    fn another_result_is_a_violation() {
        let mut story = done();
        story.last().jobs[0].result = Some(2);
        refuted(&story.judge(&PROMISE), "has the result Some(2)");
    }

    #[test]
    fn a_completion_that_no_worker_has_reported_is_a_violation() {
        let mut story = Story::submitted(1);
        story.row(1, 1, "completed").result = Some(1);
        story.execution(1, 1, "completed");
        refuted(&story.judge(&PROMISE), "no worker has said so");
        story.start("w", 1, 1, 1);
        story.end("w", 1, 1, Ending::Success);
        kept(&story.judge(&PROMISE), 1);
        story.last().executions[0].status = "failed".to_owned();
        story.last().executions[0].error_code = Some("planned".to_owned());
        refuted(&story.judge(&PROMISE), "its worker succeeded");
    }
}
