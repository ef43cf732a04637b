//! L5: without a fault nobody stands for election.

use std::collections::BTreeMap;

use super::evidence::{Evidence, in_fault, time};
use super::{Judge, Promise, Verdict};
use crate::history::{FaultRun, Stage};

pub(super) const PROMISE: Promise = Promise {
    id: "L5",
    name: "no election",
    text: "no election while nothing is the matter: 10 healthy minutes at 90 % CPU",
    judge: Judge::Alone(judge),
};

/// Seconds without a fault that the promise is about. In less, on a machine that does much else, an election says little.
const HEALTHY: u64 = 600;
/// How long after a fault the group may still come to itself, in microseconds.
const AFTERMATH: u64 = 5_000_000;

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let history = evidence.history;
    let mut last: BTreeMap<u64, (u64, Option<u64>)> = BTreeMap::new();
    let mut violations = Vec::new();
    let healthy = |at: u64| !history.faults.iter().any(|fault| in_fault(fault, at, AFTERMATH));
    for (at, replica, _, view) in &history.views {
        let (term, leader) = last.get(&view.id).copied().unwrap_or((view.term, view.leader));
        let elected = view.term > term || view.leader.is_some() && leader.is_some() && view.leader != leader;
        if elected && healthy(*at) {
            violations.push(format!(
                "replica {} saw term {} led by {:?} at {}, after term {term} led by {leader:?}, and no fault was under way",
                replica + 1,
                view.term,
                view.leader,
                time(*at)
            ));
        }
        // A replica that knows of no leader for a moment has not forgotten whom it followed.
        last.insert(view.id, (view.term, view.leader.or(leader)));
    }
    let end = history.stage(Stage::Over).or(history.views.last().map(|(at, ..)| *at)).unwrap_or(0);
    let begun = history.views.first().map_or(end, |(at, ..)| *at);
    match healthy_seconds(begun, end, &history.faults) {
        seconds @ HEALTHY.. => Verdict::of(seconds, violations),
        _ => Verdict::NotTried,
    }
}

/// Whole seconds without a fault, and not shortly after one.
fn healthy_seconds(begun: u64, end: u64, faults: &[FaultRun]) -> u64 {
    let (mut healthy, mut from) = (0, begun);
    // Faults are in the order of their beginning.
    for fault in faults {
        healthy += fault.begun.min(end).saturating_sub(from);
        from = from.max(fault.over.or(fault.healed).unwrap_or(u64::MAX).saturating_add(AFTERMATH));
    }
    (healthy + end.saturating_sub(from)) / 1_000_000
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, kept, refuted};
    use super::*;

    fn elected(at: u64) -> Story {
        let mut story = Story::new();
        story.view(0, 0, 1, ("leader", 1), (1, 5), 10);
        story.fault(10_000, 12_000, "kill-leader", true);
        story.view(at, 0, 1, ("voter", 2), (2, 9), 10);
        story.stage(660_000, Stage::Over);
        story
    }

    #[test]
    fn elections_belong_to_faults() {
        kept(&elected(10_500).judge(&PROMISE), 653);
        kept(&elected(16_000).judge(&PROMISE), 653);
    }

    #[test]
    fn an_election_without_a_fault_is_a_violation() {
        refuted(&elected(9_000).judge(&PROMISE), "saw term 2");
        refuted(&elected(18_000).judge(&PROMISE), "saw term 2");
    }

    #[test]
    fn knowing_of_no_leader_for_a_moment_is_no_election() {
        let mut story = elected(11_000);
        story.view(30_000, 0, 1, ("voter", 2), (2, 9), 10);
        story.views.last_mut().unwrap().3.leader = None;
        story.view(31_000, 0, 1, ("voter", 2), (2, 9), 10);
        kept(&story.judge(&PROMISE), 653);
        story.view(32_000, 0, 1, ("voter", 1), (2, 9), 10);
        refuted(&story.judge(&PROMISE), "led by Some(1)");
    }

    #[test]
    fn where_nobody_looked_it_is_not_tried() {
        assert_eq!(Story::new().judge(&PROMISE), Verdict::NotTried);
    }
}
