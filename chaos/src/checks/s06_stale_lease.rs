//! S6: who has lost the lease has nothing to say any more.
//!
//! A report counts as stale if its lease was not the job's current and good one at any moment from when it was sent to
//! when it was answered. The same report of an end that was accepted before gets the same answer, which is no more than
//! S7 asks.

use super::evidence::{Clock, Evidence, Lease, Report, Stores, time};
use super::{Judge, Promise, Verdict};
use crate::history::{Execution, Says};

pub(super) const PROMISE: Promise = Promise {
    id: "S6",
    name: "stale lease",
    text: "a status, completion or failure with a token that is not current is refused and changes no row",
    judge: Judge::Alone(judge),
};

/// Error code of the failures that workers report.
pub(super) const PLANNED: &str = "planned";

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let Some(stores) = &evidence.stores else { return Verdict::not_dumped() };
    if evidence.reports.is_empty() && stores.last.executions.is_empty() {
        return Verdict::NotTried;
    }
    let Some(clock) = evidence.clock else { return Verdict::no_clock() };
    let (mut cases, mut violations) = (0, Vec::new());
    for report in &evidence.reports {
        let lease = stores.leases.get(&report.lease);
        if !is_stale(report, lease, clock) {
            continue;
        }
        let Some(acknowledged) = report.acknowledged else { continue };
        cases += 1;
        let said_before =
            lease.and_then(|lease| lease.execution).is_some_and(|row| ended_so(row, report.says));
        if acknowledged && !said_before {
            violations.push(told(report, lease, clock));
        }
    }
    for change in &stores.last.audit {
        let Some(lease) = change.old_lease.filter(|lease| change.new_lease != Some(*lease)) else { continue };
        let Some(row) = stores.leases.get(&lease).and_then(|lease| lease.execution) else { continue };
        by_another_lease(change.new_status.as_deref(), row, &mut violations);
    }
    violations.extend(too_late(stores));
    Verdict::of(cases, violations)
}

/// Whether the lease was no good from before the report was sent until after it was answered.
fn is_stale(report: &Report<'_>, lease: Option<&Lease<'_>>, clock: Clock) -> bool {
    let Some(lease) = lease else { return true };
    let ended = lease.ended.is_some_and(|change| clock.is_before(change.at, report.sent));
    let expired = lease.expires.is_some_and(|expires| clock.is_before(expires, report.sent));
    let not_yet = report
        .answered
        .is_some_and(|answered| lease.granted.iter().all(|change| clock.is_after(change.at, answered)));
    ended || expired || not_yet
}

/// Whether the execution ended as a report says.
pub(super) fn ended_so(row: &Execution, says: &Says) -> bool {
    match says {
        Says::Running => false,
        Says::Success(_) => row.status == "completed",
        Says::Failure => row.status == "failed" && row.error_code.as_deref() == Some(PLANNED),
    }
}

fn told(report: &Report<'_>, lease: Option<&Lease<'_>>, clock: Clock) -> String {
    let why = match lease {
        None => "which there never was".to_owned(),
        Some(lease) => format!(
            "which had ended {} and was good until {}",
            lease.ended.map_or("never".to_owned(), |change| format!("at {}", clock.tell(change.at))),
            lease.expires.map_or("any time".to_owned(), |expires| clock.tell(expires)),
        ),
    };
    format!(
        "{}: {:?} of job {} under lease {}, {why}, was acknowledged by {} (report {}, sent at {})",
        report.worker,
        report.says,
        report.job,
        report.lease,
        report.whom(),
        report.number,
        time(report.sent)
    )
}

/// A job that completes does so by the lease that its row carried, and no lease is completed in another way.
fn by_another_lease(became: Option<&str>, row: &Execution, violations: &mut Vec<String>) {
    if (became == Some("completed")) != (row.status == "completed") {
        violations.push(format!(
            "job {} became {} when lease {} ended, and that execution is {}",
            row.job_id,
            became.unwrap_or("nothing"),
            row.id,
            row.status
        ));
    }
}

/// Reports that were accepted after the lease had run out.
fn too_late(stores: &Stores<'_>) -> impl Iterator<Item = String> {
    let by_report = |row: &&Execution| ended_so(row, &Says::Success(0)) || ended_so(row, &Says::Failure);
    let late = |row: &&Execution| match (row.completed_at, row.lease_expires_at) {
        (Some(ended), Some(expires)) => ended >= expires,
        _ => false,
    };
    stores.last.executions.iter().filter(by_report).filter(late).map(|row| {
        format!(
            "lease {} of job {} is {} since {:?}, and was good until {:?}",
            row.id, row.job_id, row.status, row.completed_at, row.lease_expires_at
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, kept, refuted};
    use super::*;

    /// A lease that ended at 100 ms, for want of life in its worker, and the next one, which completed.
    fn lost() -> Story {
        let mut story = Story::submitted(1);
        story.row(1, 1, "completed");
        story.change(1, 0, "", "running", Some(1));
        story.change(1, 100, "running", "pending", None);
        story.change(1, 1200, "queued", "assigned", Some(2));
        story.change(1, 1300, "assigned", "completed", None);
        story.execution(1, 1, "failed").coded("worker_lost").lasts(0, 100);
        story.execution(2, 1, "completed").lasts(1200, 1300);
        story
    }

    #[test]
    fn what_a_lost_worker_says_is_refused() {
        let mut story = lost();
        for says in [Says::Running, Says::Success(1), Says::Failure] {
            story.report("zombie", 1, 1, says.clone(), 200, Some(false));
            story.report("zombie", 1, 1, says, 1400, None);
        }
        kept(&story.judge(&PROMISE), 3);
    }

    #[test]
    fn acknowledged_it_is_a_violation() {
        for says in [Says::Running, Says::Success(1), Says::Failure] {
            let mut story = lost();
            story.report("zombie", 1, 1, says, 200, Some(true));
            refuted(&story.judge(&PROMISE), "was acknowledged by replica 1");
        }
        let mut story = lost();
        story.report("forger", 1, 77, Says::Success(1), 200, Some(true));
        refuted(&story.judge(&PROMISE), "there never was");
    }

    #[test]
    fn a_session_is_heard_like_a_replica() {
        let mut story = lost();
        story.report("zombie", 1, 1, Says::Success(1), 200, Some(false)).on_sessions();
        kept(&story.judge(&PROMISE), 1);
        story.report("zombie", 1, 1, Says::Success(1), 300, Some(true)).on_sessions();
        refuted(&story.judge(&PROMISE), "was acknowledged by its session");
    }

    #[test]
    fn a_report_that_may_have_come_in_time_is_not_stale() {
        let mut story = lost();
        // Sent before the end, answered after it.
        story.report("w", 1, 1, Says::Running, 50, Some(true)).last_answer(250);
        assert_eq!(story.judge(&PROMISE), Verdict::NotTried);
    }

    #[test]
    fn the_same_report_again_may_be_acknowledged_and_not_another_one() {
        let mut story = lost();
        story.report("w", 1, 2, Says::Success(1), 1400, Some(true));
        kept(&story.judge(&PROMISE), 1);
        story.report("w", 1, 2, Says::Failure, 1500, Some(true));
        refuted(&story.judge(&PROMISE), "Failure");
    }

    #[test]
    fn a_report_after_the_lease_has_run_out_is_stale() {
        let mut story = Story::submitted(1);
        story.row(1, 1, "running");
        story.change(1, 0, "", "running", Some(1));
        story.execution(1, 1, "running").expires(500);
        story.report("w", 1, 1, Says::Running, 600, Some(false));
        kept(&story.judge(&PROMISE), 1);
        story.report("w", 1, 1, Says::Running, 700, Some(true));
        refuted(&story.judge(&PROMISE), "good until");
    }

    #[test]
    fn an_end_after_the_lease_has_run_out_or_by_another_lease_is_a_violation() {
        let mut story = lost();
        story.last().executions[1].lease_expires_at = Some(Story::at(1300));
        refuted(&story.judge(&PROMISE), "was good until");
        let mut story = lost();
        story.last().executions[0].status = "completed".to_owned();
        story.last().executions[1].status = "failed".to_owned();
        refuted(&story.judge(&PROMISE), "and that execution is");
    }
}
