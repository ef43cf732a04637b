//! L4: how long clients and workers wait when the leader is struck.
//!
//! One run has too few failovers for a 99th percentile: a campaign puts those of many runs together ([`failovers`]).
//! Here a wait fails that is out of all proportion, and all of them are judged where there are enough.
//!
//! A fault after which nobody came to lead counts, too: it has the longest wait.
//!
//! Where the leadership changes, what counts is the first success of the next leader, for the former one may go on for
//! a moment. A planned hand-over is counted from the last submission that the former leader accepted to the first that
//! the next one does, also where its caller has waited for it since before the fault.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::evidence::{Clock, Evidence, Stores, in_fault, time};
use super::{Judge, Promise, Verdict};
use crate::history::{Call, FaultRun, History, Outcome, Request};

pub(super) const PROMISE: Promise = Promise {
    id: "L4",
    name: "failover",
    text: "leader killed, paused or cut off → next accepted submission p99 ≤ 1.0 s, next dispatch p99 ≤ 1.5 s",
    judge: Judge::Alone(|evidence| judge(evidence, Kind::Failover)),
};

pub(super) const HAND_OVER: Promise = Promise {
    id: "L4H",
    name: "planned hand-over",
    text: "leader stopped or told to hand over → from its last accepted submission to the next leader's first p99 ≤ 200 ms",
    judge: Judge::Alone(|evidence| judge(evidence, Kind::HandOver)),
};

/// No wait may be longer than this, in milliseconds.
const NEVER: f64 = 5_000.0;
/// Fewer samples have no 99th percentile.
pub const ENOUGH: usize = 30;
/// Bars in milliseconds: submission and dispatch after a failover, and submission after a hand-over.
pub const BARS: [f64; 3] = [1_000.0, 1_500.0, 200.0];
/// How long after a fault the leadership may change because of it, in microseconds.
const AFTERMATH: u64 = 10_000_000;

/// Somebody leads as long as a submission was accepted so short a time ago, in microseconds.
const GOING: u64 = 500_000;

/// How the leader went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Killed, paused or cut off.
    Failover,
    /// It handed over by itself.
    HandOver,
}

/// How long it took until things went on after the leader was struck.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failover {
    /// Number of the fault.
    pub fault: u64,
    /// Its name.
    pub name: String,
    /// How the leader went.
    pub kind: Kind,
    /// Whether the fault before it had been overcome and no other one was under way until things went on: otherwise the wait is not
    /// the leader's alone.
    pub alone: bool,
    /// Until the next accepted submission was answered, in milliseconds; `None` if none was.
    pub to_submission_ms: Option<f64>,
    /// Until a worker began a job that was granted afterwards, in milliseconds; `None` if none did.
    pub to_dispatch_ms: Option<f64>,
    /// Whether anybody submitted anything afterwards.
    pub tried: bool,
}

/// The failovers and hand-overs of a run.
pub fn failovers(history: &History) -> Vec<Failover> {
    of(&Evidence::of(history))
}

fn of(evidence: &Evidence<'_>) -> Vec<Failover> {
    let Some(stores) = &evidence.stores else { return Vec::new() };
    let Some(clock) = evidence.clock else { return Vec::new() };
    let leaders = Leaders::of(stores, clock);
    let struck = evidence.history.faults.iter().filter(|fault| is_sample(fault));
    struck.map(|fault| measure(evidence, stores, clock, &leaders, fault)).collect()
}

/// When each epoch made its first change, in microseconds of the harness.
struct Leaders(Vec<(i64, i64)>);

impl Leaders {
    fn of(stores: &Stores<'_>, clock: Clock) -> Self {
        let mut changes: Vec<_> =
            stores.last.audit.iter().filter_map(|change| Some((change.epoch?, change.at))).collect();
        changes.sort_unstable();
        changes.dedup_by_key(|(epoch, _)| *epoch);
        Self(changes.into_iter().map(|(epoch, at)| (clock.latest(at), epoch)).collect())
    }

    /// The epoch at this time, and whether another one follows before that time.
    fn at(&self, begun: u64, until: u64) -> (i64, bool) {
        let former =
            self.0.iter().rfind(|(at, _)| *at <= begun.cast_signed()).map_or(i64::MIN, |(_, epoch)| *epoch);
        (former, self.0.iter().any(|(at, epoch)| *epoch > former && *at <= until.cast_signed()))
    }
}

fn measure(
    evidence: &Evidence<'_>,
    stores: &Stores<'_>,
    clock: Clock,
    leaders: &Leaders,
    fault: &FaultRun,
) -> Failover {
    let begun = fault.begun;
    let until = fault.over.or(fault.healed).unwrap_or(begun).saturating_add(AFTERMATH);
    let (former, changes) = leaders.at(begun, until);
    let epoch = |job: Uuid| stores.trails.get(&job).and_then(|trail| trail.changes.first()?.epoch);
    let by_next = |epoch: Option<i64>| !changes || epoch.is_some_and(|epoch| epoch > former);
    let accepted: Vec<_> = evidence
        .history
        .calls
        .iter()
        .filter_map(|call| accepted(call).map(|(end, job)| (call, end, job)))
        .collect();
    let kind = kind(fault);
    let since = |call: &Call, end: u64| match kind {
        Kind::HandOver if changes => end >= begun,
        _ => call.start >= begun,
    };
    let next = accepted
        .iter()
        .filter(|(call, end, job)| since(call, *end) && by_next(epoch(*job)))
        .map(|(_, end, _)| *end)
        .min();
    let from = match (kind, next) {
        (Kind::HandOver, Some(next)) => accepted
            .iter()
            .filter(|(_, end, job)| *end < next && epoch(*job) <= Some(former))
            .map(|(_, end, _)| *end)
            .max()
            .map_or(begun, |last| last.max(begun)),
        _ => begun,
    };
    let granted_by_next = |lease: &Uuid| {
        let granted = stores.leases.get(lease).and_then(|lease| lease.granted.first());
        granted.is_some_and(|change| {
            if changes {
                change.epoch.is_some_and(|epoch| epoch > former)
            } else {
                clock.is_after(change.at, begun)
            }
        })
    };
    let runs = evidence.runs.iter().flat_map(|(lease, runs)| runs.iter().map(move |run| (lease, run.began)));
    let dispatched =
        runs.filter(|(lease, at)| *at >= begun && granted_by_next(lease)).map(|(_, at)| at).min();
    let recovered = next.max(dispatched).unwrap_or(u64::MAX);
    let others = || evidence.history.faults.iter().filter(|other| other.fault != fault.fault);
    let beside = others().any(|other| other.begun <= recovered && in_fault(other, begun.max(other.begun), 0));
    // After another fault there may be no leader yet that could be lost.
    let again = others().any(|other| other.over.or(other.healed).is_some_and(|over| over <= begun));
    let going = || accepted.iter().any(|(_, end, _)| (begun.saturating_sub(GOING)..=begun).contains(end));
    let alone = !beside && (!again || going());
    Failover {
        fault: fault.fault,
        name: fault.name.clone(),
        kind,
        alone,
        to_submission_ms: next.map(|at| milliseconds(at - from)),
        to_dispatch_ms: dispatched.map(|at| milliseconds(at - begun)),
        tried: evidence
            .history
            .calls
            .iter()
            .any(|call| call.start >= begun && matches!(call.request, Request::Submit { .. })),
    }
}

/// When an accepted submission was answered, and its first job.
fn accepted(call: &Call) -> Option<(u64, Uuid)> {
    match (&call.request, &call.outcome) {
        (Request::Submit { .. }, Outcome::Ok { jobs, .. }) => Some((call.end?, jobs.first()?.id)),
        _ => None,
    }
}

fn kind(fault: &FaultRun) -> Kind {
    match fault.name.as_str() {
        "stop-leader" | "transfer-leader" => Kind::HandOver,
        _ => Kind::Failover,
    }
}

/// Whether the fault took the leader away, or should have been followed by another one.
fn is_sample(fault: &FaultRun) -> bool {
    fault.leader && (fault.proof.is_some() || fault.broke.is_some())
}

fn milliseconds(micros: u64) -> f64 {
    std::time::Duration::from_micros(micros).as_secs_f64() * 1000.0
}

fn judge(evidence: &Evidence<'_>, of_kind: Kind) -> Verdict {
    let begun =
        |fault: u64| evidence.history.faults.iter().find(|run| run.fault == fault).map_or(0, |run| run.begun);
    if !evidence.history.faults.iter().any(|fault| is_sample(fault) && kind(fault) == of_kind) {
        return Verdict::NotTried;
    }
    if evidence.stores.is_none() {
        return Verdict::not_dumped();
    }
    if evidence.clock.is_none() {
        return Verdict::no_clock();
    }
    let counts = |sample: &Failover| sample.kind == of_kind && sample.alone && sample.tried;
    let samples: Vec<_> = of(evidence).into_iter().filter(counts).collect();
    let mut violations = Vec::new();
    for sample in &samples {
        let waits = [("accepted submission", sample.to_submission_ms), ("dispatch", sample.to_dispatch_ms)];
        for (what, wait) in waits {
            let told = match wait {
                None => "never came".to_owned(),
                Some(ms) if ms > NEVER => format!("came after {ms:.0} ms"),
                Some(_) => continue,
            };
            violations.push(format!(
                "{} at {}: the next {what} {told}",
                sample.name,
                time(begun(sample.fault))
            ));
        }
    }
    let submissions = || samples.iter().filter_map(|sample| sample.to_submission_ms).collect::<Vec<_>>();
    let dispatches = || samples.iter().filter_map(|sample| sample.to_dispatch_ms).collect();
    let [submission, dispatch, hand_over] = BARS;
    let pools = match of_kind {
        Kind::Failover => vec![
            ("submission after a failover", submissions(), submission),
            ("dispatch after a failover", dispatches(), dispatch),
        ],
        Kind::HandOver => vec![("submission after a hand-over", submissions(), hand_over)],
    };
    for (what, mut waits, bar) in pools {
        waits.sort_by(f64::total_cmp);
        let rank = (waits.len() * 99).div_ceil(100);
        if waits.len() >= ENOUGH
            && let Some(p99) = waits.get(rank - 1).filter(|p99| **p99 > bar)
        {
            violations.push(format!("{what}: p99 of {} is {p99:.0} ms, more than {bar:.0} ms", waits.len()));
        }
    }
    Verdict::of(samples.len() as u64, violations)
}

#[cfg(test)]
#[path = "l4_failover_tests.rs"]
mod tests;
