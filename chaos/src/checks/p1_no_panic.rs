//! P1: nothing that is done to a replica makes it panic.
//!
//! Judged by the replicas' own logs. Reading a damaged Raft log may panic in the library that reads it; that is caught,
//! and the replica refuses to start, as R1 demands. So the logs of those whose files were damaged prove nothing here.

use super::evidence::Evidence;
use super::{Judge, Promise, Verdict};

pub(super) const PROMISE: Promise = Promise {
    id: "P1",
    name: "no panic",
    text: "no replica panics, overflows its stack or runs out of memory, whatever is done to it",
    judge: Judge::Alone(judge),
};

/// Faults that damage what is on a replica's disk.
const DAMAGE: [&str; 2] = ["raft-flipped-bit", "raft-torn-tail"];

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
    Verdict::of(panics.keys().filter(|replica| !damaged(replica)).count() as u64, told.collect())
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
    fn without_the_logs_it_is_unknown() {
        undecided(&Story::new().judge(&PROMISE));
    }
}
