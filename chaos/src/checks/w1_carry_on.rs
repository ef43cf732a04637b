//! W1: a change of leaders costs no worker its job.
//!
//! Struck at the leader, a run that its worker had begun and whose end was not yet heard is cut where its lease is taken
//! away as lost or handed back. That may be where the worker itself was struck, or where it was attached to the replica
//! that was: by its last report or registration, if it has made any by calls of its own. A worker with a session does not
//! say where it is attached; it is at a surviving replica for certain only while no replica is struck.

use std::collections::{BTreeSet, HashMap};

use uuid::Uuid;

use super::evidence::{Clock, Evidence, Stores, time};
use super::{Judge, Promise, Verdict};
use crate::history::{Act, Ending, FaultRun, Says};

pub(super) const PROMISE: Promise = Promise {
    id: "W1",
    name: "carry on",
    text: "workers attached to surviving replicas keep their running jobs",
    judge: Judge::Alone(judge),
};

/// How long after the fault a lease may end because of it, in microseconds: silence, a scan, and some more.
const BECAUSE: u64 = 10_000_000;
/// Parts of the names of faults that strike workers.
const WORKERS: [&str; 6] = ["worker", "poller", "zombie", "session", "poison", "heartbeat"];

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let history = evidence.history;
    let struck: Vec<_> =
        history.faults.iter().filter(|fault| fault.leader && fault.proof.is_some()).collect();
    if struck.is_empty() {
        return Verdict::NotTried;
    }
    let Some(stores) = &evidence.stores else { return Verdict::not_dumped() };
    let Some(clock) = evidence.clock else { return Verdict::no_clock() };
    let crashes = crashes(evidence);
    let attached = attached(evidence);
    let heard = heard(evidence);
    let (mut cases, mut violations, mut doubts) = (0, Vec::new(), Vec::new());
    let mut leases: Vec<_> = evidence.runs.iter().collect();
    leases.sort_unstable_by_key(|(lease, _)| **lease);
    for (lease, runs) in leases {
        let Some(run) = runs.first() else { continue };
        // One that was told to stop, for it worked for too long or its job was cancelled, has nothing more to lose.
        let loses_until = match run.ended {
            Some((at, Ending::Cancelled)) => at,
            Some((at, _)) => heard.get(lease).map_or(u64::MAX, |heard| at.max(*heard)),
            None => u64::MAX,
        };
        let under_way = |fault: &&&FaultRun| run.began <= fault.begun && fault.begun < loses_until;
        let Some(fault) = struck.iter().rfind(under_way) else {
            continue;
        };
        cases += 1;
        let Some(cut) = cut(*lease, stores, clock, fault, loses_until) else { continue };
        let since = fault.begun;
        let crashed = crashes
            .get(run.worker)
            .is_some_and(|at| at.iter().any(|at| (since.saturating_sub(BECAUSE)..=cut).contains(at)));
        let by_name = |other: &FaultRun| WORKERS.iter().any(|part| other.name.contains(part));
        let near =
            |other: &FaultRun| other.begun <= cut && other.over.is_none_or(|over| over + BECAUSE >= since);
        if crashed || history.faults.iter().any(|other| by_name(other) && near(other)) {
            continue;
        }
        let told = format!(
            "{} ran job {} under lease {lease} when {} struck at {}; the lease was taken away at {}",
            run.worker,
            run.job,
            fault.name,
            time(since),
            time(cut)
        );
        let hit: BTreeSet<_> = history
            .faults
            .iter()
            .filter(|other| near(other))
            .flat_map(|other| &other.replicas)
            .copied()
            .collect();
        let at = attached.get(run.worker).and_then(|at| at.iter().rfind(|(at, _)| *at <= since));
        match at {
            Some((_, replica)) if hit.contains(replica) => {}
            Some((_, replica)) => violations.push(format!("{told}, and replica {} survived", replica + 1)),
            None => doubts.push(format!("{told}; where it was attached is not known")),
        }
    }
    Verdict::with_doubts(cases, violations, &doubts)
}

/// When the lease was taken away because of the fault, while its worker had something to lose.
fn cut(lease: Uuid, stores: &Stores<'_>, clock: Clock, fault: &FaultRun, loses_until: u64) -> Option<u64> {
    let lease = stores.leases.get(&lease)?;
    let lost = matches!(lease.execution?.error_code.as_deref(), Some("worker_lost" | "rejected" | "poison"));
    let change = lease.ended.filter(|_| lost)?;
    let until = fault.over.or(fault.healed).unwrap_or(u64::MAX).saturating_add(BECAUSE);
    let because =
        clock.is_after(change.at, fault.begun) && clock.is_before(change.at, until.min(loses_until));
    because.then(|| u64::try_from(clock.latest(change.at)).unwrap_or(0))
}

/// When workers crashed or went.
fn crashes<'a>(evidence: &Evidence<'a>) -> HashMap<&'a str, Vec<u64>> {
    let mut crashes: HashMap<&str, Vec<u64>> = HashMap::new();
    for (at, worker, act) in &evidence.history.acts {
        if matches!(act, Act::Gone { .. } | Act::End { end: Ending::Crashed, .. }) {
            crashes.entry(worker).or_default().push(*at);
        }
    }
    crashes
}

/// When the end of a run was acknowledged, by lease.
fn heard(evidence: &Evidence<'_>) -> HashMap<Uuid, u64> {
    let ends = evidence.reports.iter().filter(|report| !matches!(report.says, Says::Running));
    let heard = ends.filter(|report| report.acknowledged == Some(true));
    heard.filter_map(|report| Some((report.lease, report.answered?))).collect()
}

/// Where workers were, as far as they say so.
fn attached<'a>(evidence: &Evidence<'a>) -> HashMap<&'a str, Vec<(u64, usize)>> {
    let mut attached: HashMap<&str, Vec<(u64, usize)>> = HashMap::new();
    for (at, worker, act) in &evidence.history.acts {
        if let Act::Attached { replica: Some(replica), .. } | Act::Report { replica: Some(replica), .. } = act
        {
            attached.entry(worker).or_default().push((*at, *replica));
        }
    }
    attached
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, kept, refuted, undecided};
    use super::*;

    /// A worker at replica 2 runs a job when the leader, replica 1, is killed at 1,000 ms.
    fn running(code: Option<&str>) -> Story {
        let mut story = Story::submitted(1);
        story.row(1, 1, "completed");
        story.act(1, "w", Act::Attached { id: "w".to_owned(), replica: Some(1) });
        story.change(1, 0, "", "assigned", Some(1));
        story.act(500, "w", Story::began(1, 1, 1));
        story.fault(1000, 3000, "kill-leader", true);
        story.execution(1, 1, "completed");
        match code {
            Some(code) => {
                story.change(1, 2500, "assigned", "queued", None);
                story.execution_of(1).coded(code);
                story.act(6000, "w", Story::ended(1, 1, Ending::Success));
            }
            None => {
                story.act(2500, "w", Story::ended(1, 1, Ending::Success));
                story.change(1, 2600, "assigned", "completed", None);
            }
        }
        story
    }

    #[test]
    fn a_run_that_goes_on_is_as_promised() {
        kept(&running(None).judge(&PROMISE), 1);
    }

    #[test]
    fn a_run_that_is_cut_is_a_violation() {
        refuted(&running(Some("worker_lost")).judge(&PROMISE), "and replica 2 survived");
        refuted(&running(Some("rejected")).judge(&PROMISE), "and replica 2 survived");
    }

    #[test]
    fn a_run_whose_end_is_not_heard_before_its_lease_is_taken_away_is_cut() {
        let mut story = running(Some("worker_lost"));
        let Some((at, ..)) = story.acts.last_mut() else { panic!("it ended") };
        *at = 2_000_000;
        refuted(&story.judge(&PROMISE), "and replica 2 survived");
        let Some((_, _, Act::End { end, .. })) = story.acts.last_mut() else { panic!("it ended") };
        *end = Ending::Cancelled;
        kept(&story.judge(&PROMISE), 1);
    }

    #[test]
    fn where_the_worker_was_is_what_decides() {
        let mut story = running(Some("worker_lost"));
        story.faults[0].replicas = vec![1];
        kept(&story.judge(&PROMISE), 1);
        let mut story = running(Some("worker_lost"));
        story.acts.remove(0);
        undecided(&story.judge(&PROMISE));
    }

    #[test]
    fn a_report_says_where_its_worker_was_unless_it_was_made_on_a_session() {
        let mut story = running(Some("worker_lost"));
        story.acts.remove(0);
        story.report("w", 1, 1, Says::Running, 600, Some(true));
        kept(&story.judge(&PROMISE), 1);
        story.on_sessions();
        undecided(&story.judge(&PROMISE));
    }

    #[test]
    fn a_worker_that_crashed_or_was_struck_is_no_matter_of_the_leader() {
        let mut story = running(Some("worker_lost"));
        story.act(900, "w", Act::Gone { why: "crash".to_owned() });
        kept(&story.judge(&PROMISE), 1);
        let mut story = running(Some("worker_lost"));
        story.fault(900, 1500, "zombie-worker", false);
        kept(&story.judge(&PROMISE), 1);
    }

    #[test]
    fn a_lease_taken_away_before_or_long_after_is_another_matter() {
        let mut story = running(Some("worker_lost"));
        story.faults[0].over = Some(3_000_000);
        story.last().audit[1].at = Story::at(20_000);
        kept(&story.judge(&PROMISE), 1);
    }
}
