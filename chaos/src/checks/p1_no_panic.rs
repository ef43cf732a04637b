//! P1: nothing that is done to a replica makes it panic, and it ends only when it is struck.
//!
//! Strikes kill, restart and replace replicas, damage their logs and take their disks away: whatever a replica does under
//! the strike that names it is R1's concern. One that such a strike has left behind without proof, because the harness
//! could not go on, need not be ready at the end.
//!
//! Judged by the replicas' own logs. Reading a damaged Raft log may panic in the library that reads it; that is caught,
//! and the replica refuses to start, as R1 demands. So the logs of those whose files were damaged prove nothing here.

use super::evidence::{Evidence, in_fault, time};
use super::{Judge, Promise, Verdict};
use crate::history::History;

pub(super) const PROMISE: Promise = Promise {
    id: "P1",
    name: "no panic",
    text: "no replica panics, overflows its stack or runs out of memory, whatever is done to it; none ends by itself, and \
           all are ready at the end",
    judge: Judge::Alone(judge),
};

/// Faults that damage what is on a replica's disk.
const DAMAGE: [&str; 2] = ["raft-flipped-bit", "raft-torn-tail"];
/// How long after a strike its traces may still be seen, in microseconds: replicas are looked at in turn.
const AFTERMATH: u64 = 3_000_000;

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let Some(panics) = &evidence.history.panics else {
        return Verdict::Unknown { why: "the logs of the replicas were not read".to_owned() };
    };
    let damaged = |replica: &usize| {
        let mut faults = evidence.history.faults.iter();
        faults.any(|fault| DAMAGE.contains(&fault.name.as_str()) && fault.replicas.contains(replica))
    };
    let counts = panics.iter().filter(|(replica, _)| !damaged(replica));
    let told = counts.flat_map(|(replica, lines)| {
        lines.iter().map(move |line| format!("replica {}: {line}", replica + 1))
    });
    let mut violations: Vec<_> = told.collect();
    ends(evidence.history, &mut violations);
    Verdict::of(panics.keys().filter(|replica| !damaged(replica)).count() as u64, violations)
}

/// Replicas that no strike has ended, and those that do not serve when all is over.
fn ends(history: &History, violations: &mut Vec<String>) {
    let at = |replica: usize| history.faults.iter().filter(move |fault| fault.replicas.contains(&replica));
    for (when, replica, status) in &history.exits {
        if !at(*replica).any(|fault| in_fault(fault, *when, AFTERMATH)) {
            let when = time(*when);
            violations.push(format!("replica {} ended by itself before {when}: {status}", replica + 1));
        }
    }
    for replica in &history.not_ready {
        if at(*replica).next_back().is_none_or(|fault| fault.proof.is_some()) {
            violations.push(format!("replica {} was not ready at the end", replica + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, kept, refuted, undecided};
    use super::*;

    fn with(panics: &[(usize, &[&str])]) -> Story {
        let mut story = Story::new();
        let lines = |lines: &[&str]| lines.iter().map(ToString::to_string).collect();
        story.panics = Some(panics.iter().map(|(replica, told)| (*replica, lines(told))).collect());
        story
    }

    #[test]
    fn a_panic_is_a_violation_and_none_is_as_promised() {
        kept(&with(&[(0, &[]), (1, &[])]).judge(&PROMISE), 2);
        refuted(&with(&[(0, &[]), (1, &["panicked: index"])]).judge(&PROMISE), "replica 2: panicked: index");
    }

    #[test]
    fn a_replica_whose_log_was_damaged_proves_nothing() {
        let mut story = with(&[(0, &[]), (1, &["panicked: a page"])]);
        story.fault(1000, 2000, "raft-flipped-bit", false);
        story.faults[0].replicas = vec![1];
        kept(&story.judge(&PROMISE), 1);
    }

    #[test]
    fn a_replica_that_no_strike_has_ended_is_a_violation() {
        let mut story = with(&[(0, &[])]);
        story.fault(1000, 2000, "kill-leader", true);
        story.exits = vec![(1_100_000, 0, "signal: 9 (SIGKILL)".to_owned())];
        kept(&story.judge(&PROMISE), 1);
        story.exits.push((1_200_000, 1, "exit status: 1".to_owned()));
        refuted(&story.judge(&PROMISE), "replica 2 ended by itself before 1.200 s: exit status: 1");
        story.exits = vec![(6_000_000, 0, "exit status: 1".to_owned())];
        refuted(&story.judge(&PROMISE), "replica 1 ended by itself before 6.000 s");
    }

    #[test]
    fn a_replica_that_does_not_serve_at_the_end_is_a_violation_unless_the_harness_has_left_it_so() {
        let mut story = with(&[(0, &[])]);
        story.not_ready = vec![0];
        refuted(&story.judge(&PROMISE), "replica 1 was not ready at the end");
        story.fault(1000, 2000, "kill-leader", true);
        refuted(&story.judge(&PROMISE), "replica 1 was not ready at the end");
        story.faults[0].proof = None;
        kept(&story.judge(&PROMISE), 1);
    }

    #[test]
    fn without_the_logs_it_is_unknown() {
        undecided(&Story::new().judge(&PROMISE));
    }
}
