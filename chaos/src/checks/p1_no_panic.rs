//! P1: nothing that is done to a replica makes it panic, and it ends only when it is struck.
//!
//! Strikes end replicas, replace them, damage their logs and take their disks away: that one ends under such a strike that
//! names it is R1's concern. Under one that stops it for a while, or breaks its network, it must live on. One that is not
//! ready at the end because the harness could not finish such a strike at it leaves the run undecided.
//!
//! Judged by the replicas' own logs. Reading a damaged Raft log may panic in redb, which reads it; that is caught, and the
//! replica refuses to start, as R1 demands. So of a replica whose log was damaged, panics in redb prove nothing; all others
//! do.

use super::evidence::{Evidence, in_fault, time};
use super::{Judge, Promise, Verdict};
use crate::faults::{Fault, Subject};
use crate::history::{FaultRun, History};

pub(super) const PROMISE: Promise = Promise {
    id: "P1",
    name: "no panic",
    text: "no replica panics, overflows its stack or runs out of memory, whatever is done to it; none ends by itself, and \
           all are ready at the end",
    judge: Judge::Alone(judge),
};

/// Faults that damage what is on a replica's disk.
const DAMAGE: [&str; 2] = ["raft-flipped-bit", "raft-torn-tail"];
/// Strikes at replicas that end none: it stands still for a while, or leads no longer.
const SPARE: [&str; 3] = ["freeze-leader", "freeze-leader-long", "transfer-leader"];
/// What stands before the place of a panic: in the product's log as text and as JSON, and in what Rust itself says.
const BEFORE_PLACE: [&str; 3] = ["location=", "\"location\":\"", "panicked at "];
/// The folder of redb's sources, up to its version.
const REDB: &str = "/redb-";
/// How long after a strike its traces may still be seen, in microseconds: replicas are looked at in turn.
const AFTERMATH: u64 = 3_000_000;

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let history = evidence.history;
    let Some(panics) = &history.panics else {
        return Verdict::Unknown { why: "the logs of the replicas were not read".to_owned() };
    };
    let damaged =
        |replica: usize| struck(history, replica).any(|fault| DAMAGE.contains(&fault.name.as_str()));
    let (mut violations, mut doubts) = (Vec::new(), Vec::new());
    for (replica, lines) in panics {
        let counts = lines.iter().filter(|line| !(is_in_redb(line) && damaged(*replica)));
        violations.extend(counts.map(|line| format!("replica {}: {line}", replica + 1)));
    }
    ends(history, &mut violations);
    not_ready(history, &mut violations, &mut doubts);
    Verdict::with_doubts(panics.len() as u64, violations, &doubts)
}

/// Strikes that name a replica.
fn struck(history: &History, replica: usize) -> impl DoubleEndedIterator<Item = &FaultRun> {
    history.faults.iter().filter(move |fault| fault.replicas.contains(&replica))
}

/// Whether a strike of this kind ends the replicas that it names, or takes away what they run on.
fn ends_them(fault: &FaultRun) -> bool {
    let kind = Fault::named(&fault.name);
    kind.is_some_and(|kind| kind.subject == Subject::Replicas) && !SPARE.contains(&fault.name.as_str())
}

/// Whether a line tells of a panic in redb.
fn is_in_redb(line: &str) -> bool {
    let place = BEFORE_PLACE.iter().find_map(|before| line.rsplit_once(*before));
    let place = place.and_then(|(_, after)| after.split_whitespace().next());
    place.is_some_and(|place| place.contains(REDB))
}

/// Replicas that no strike has ended.
fn ends(history: &History, violations: &mut Vec<String>) {
    for (when, replica, status) in &history.exits {
        let mut strikes = struck(history, *replica).filter(|fault| ends_them(fault));
        if !strikes.any(|fault| in_fault(fault, *when, AFTERMATH)) {
            let when = time(*when);
            violations.push(format!("replica {} ended by itself before {when}: {status}", replica + 1));
        }
    }
}

/// Replicas that do not serve when all is over.
fn not_ready(history: &History, violations: &mut Vec<String>, doubts: &mut Vec<String>) {
    for replica in &history.not_ready {
        let told = format!("replica {} was not ready at the end", replica + 1);
        // The harness may have left behind what it could not heal.
        let left = |fault: &&FaultRun| ends_them(fault) || fault.healed.is_none();
        let mut strikes = struck(history, *replica).filter(left);
        match strikes.next_back() {
            Some(last) if last.proof.is_none() => {
                doubts.push(format!("{told}; {} at {} shows nothing", last.name, time(last.begun)));
            }
            _ => violations.push(told),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, kept, refuted, undecided};
    use super::*;

    /// As a replica's log tells of a panic, and as Rust does by itself.
    const IN_REDB: [&str; 2] = [
        "ERROR cortex::telemetry::logging: panicked: a page location=/r/src/i-1/redb-4.6.0/src/db.rs:7:9 thread=\"main\"",
        "thread 'main' panicked at /r/src/i-1/redb-4.6.0/src/db.rs:7:9:",
    ];

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
    fn of_a_replica_whose_log_was_damaged_panics_in_redb_alone_prove_nothing() {
        let mut story = with(&[(0, &[]), (1, &IN_REDB)]);
        refuted(&story.judge(&PROMISE), "replica 2: thread 'main' panicked at /r/src/i-1/redb-4.6.0");
        story.fault(1000, 2000, "raft-flipped-bit", false);
        refuted(&story.judge(&PROMISE), "replica 2: ERROR");
        story.faults[0].replicas = vec![1];
        kept(&story.judge(&PROMISE), 2);
        let elsewhere = [
            "panicked: redb said /redb-4.6.0/ location=src/leadership.rs:1:2 thread=\"main\"",
            "thread 'main' panicked at cluster/src/store/database.rs:1:2:",
            "memory allocation of 99999999999 bytes failed",
            "panicked: index",
        ];
        for line in elsewhere {
            story.panics = Some([(1, vec![line.to_owned()])].into());
            refuted(&story.judge(&PROMISE), line);
        }
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
    fn a_replica_that_ends_under_a_strike_that_must_not_end_it_is_a_violation() {
        let strikes = ["lossy-network", "partition-leader", "cut-leader-postgres", "lose-replies-peer"];
        for name in strikes.into_iter().chain(SPARE) {
            let mut story = with(&[(0, &[])]);
            story.fault(1000, 2000, name, true);
            story.exits = vec![(1_100_000, 0, "exit status: 1".to_owned())];
            refuted(&story.judge(&PROMISE), "replica 1 ended by itself before 1.100 s: exit status: 1");
            story.fault(500, 1050, "kill-follower", false);
            kept(&story.judge(&PROMISE), 1);
        }
    }

    #[test]
    fn every_kind_that_is_named_is_one_that_strikes_replicas() {
        for name in SPARE.into_iter().chain(DAMAGE) {
            assert!(Fault::named(name).is_some_and(|kind| kind.subject == Subject::Replicas), "{name}");
        }
    }

    #[test]
    fn a_replica_that_does_not_serve_at_the_end_is_a_violation_unless_the_harness_has_left_it_so() {
        let mut story = with(&[(0, &[])]);
        story.not_ready = vec![0];
        refuted(&story.judge(&PROMISE), "replica 1 was not ready at the end");
        story.fault(1000, 2000, "kill-leader", true);
        refuted(&story.judge(&PROMISE), "replica 1 was not ready at the end");
        story.faults[0].proof = None;
        undecided(&story.judge(&PROMISE));
        story.fault(3000, 4000, "slow-network", false);
        undecided(&story.judge(&PROMISE));
        story.fault(5000, 6000, "kill-follower", true);
        refuted(&story.judge(&PROMISE), "replica 1 was not ready at the end");
    }

    #[test]
    fn a_network_that_is_whole_again_excuses_no_replica_that_does_not_serve() {
        let mut story = with(&[(0, &[])]);
        story.not_ready = vec![0];
        story.fault(1000, 2000, "lossy-network", false);
        story.faults[0].proof = None;
        refuted(&story.judge(&PROMISE), "replica 1 was not ready at the end");
        story.faults[0].healed = None;
        undecided(&story.judge(&PROMISE));
    }

    #[test]
    fn without_the_logs_it_is_unknown() {
        undecided(&Story::new().judge(&PROMISE));
    }
}
