//! R1: what a fault strikes recovers, or refuses to go on, as it must.
//!
//! Each fault knows what the product owes it: a successor for a lost leader, a refusal of a damaged log, a queue that is
//! clean again. It says so at its end. A leader that is cut off while another replica is struck, too, may leave no
//! majority: then no successor is owed as long as it is cut off. That all see one leader afterwards is.

use super::evidence::{Evidence, time};
use super::{Judge, Promise, Verdict};
use crate::history::FaultRun;

pub(super) const PROMISE: Promise = Promise {
    id: "R1",
    name: "recovery",
    text: "what is struck recovers: a lost leader has a successor, a damaged log is detected, a torn one replayed, a forged \
           queue repaired, a poison job given up, a removed member serves nobody",
    judge: Judge::Alone(judge),
};

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let faults = &evidence.history.faults;
    let (mut cases, mut violations) = (0, Vec::new());
    for fault in faults {
        match &fault.broke {
            Some(why) if !(fault.no_successor && may_lack_majority(fault, faults)) => {
                violations.push(format!("{} at {}: {why}", fault.name, time(fault.begun)));
            }
            _ => cases += u64::from(fault.proof.is_some()),
        }
    }
    Verdict::of(cases, violations)
}

/// Whether the replicas that a cut leaves together may have been too few, for others were struck before it had healed.
fn may_lack_majority(cut: &FaultRun, faults: &[FaultRun]) -> bool {
    let healed = cut.healed.or(cut.over).unwrap_or(u64::MAX);
    let meanwhile = |other: &FaultRun| {
        other.fault != cut.fault && other.begun <= healed && other.over.is_none_or(|over| over >= cut.begun)
    };
    faults.iter().any(|other| !other.replicas.is_empty() && meanwhile(other))
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, kept, refuted};
    use super::*;

    fn broke(name: &str) -> Story {
        let mut story = Story::new();
        story.fault(1000, 3000, name, true);
        (story.faults[0].proof, story.faults[0].broke) = (None, Some("nobody leads".to_owned()));
        story
    }

    #[test]
    fn what_a_fault_is_owed_and_does_not_get_is_a_violation() {
        refuted(&broke("kill-leader").judge(&PROMISE), "kill-leader at 1.000 s: nobody leads");
        refuted(&broke("partition-leader").judge(&PROMISE), "nobody leads");
    }

    #[test]
    fn a_fault_that_bit_is_a_case_and_one_that_did_not_is_none() {
        let mut story = Story::new();
        story.fault(1000, 3000, "kill-leader", true);
        kept(&story.judge(&PROMISE), 1);
        story.faults[0].proof = None;
        assert_eq!(story.judge(&PROMISE), Verdict::NotTried);
    }

    #[test]
    fn a_partition_that_may_leave_no_majority_owes_no_successor() {
        let mut story = broke("partition-leader");
        story.faults[0].no_successor = true;
        refuted(&story.judge(&PROMISE), "nobody leads");
        story.fault(2000, 4000, "kill-follower", false);
        kept(&story.judge(&PROMISE), 1);
        let mut story = broke("kill-leader");
        story.fault(2000, 4000, "partition-follower", false);
        refuted(&story.judge(&PROMISE), "nobody leads");
    }

    #[test]
    fn a_partition_that_has_healed_owes_one_leader_whoever_else_is_struck() {
        let mut story = broke("partition-leader");
        story.fault(2000, 4000, "kill-follower", false);
        refuted(&story.judge(&PROMISE), "partition-leader at 1.000 s: nobody leads");
    }

    #[test]
    fn a_strike_at_others_after_a_partition_has_healed_excuses_nothing() {
        let mut story = broke("partition-leader");
        (story.faults[0].no_successor, story.faults[0].healed) = (true, Some(1_500_000));
        story.fault(2000, 4000, "kill-follower", false);
        refuted(&story.judge(&PROMISE), "nobody leads");
        story.fault(500, 1200, "kill-follower", false);
        kept(&story.judge(&PROMISE), 2);
    }

    #[test]
    fn a_group_without_a_leader_is_a_violation_though_nothing_has_struck_it() {
        let mut story = broke("kill-leader");
        (story.faults[0].replicas, story.faults[0].leader) = (Vec::new(), false);
        refuted(&story.judge(&PROMISE), "kill-leader at 1.000 s: nobody leads");
    }
}
