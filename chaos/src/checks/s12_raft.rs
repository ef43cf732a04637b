//! S12: the group has one leader at a time, and no replica forgets what it knew.
//!
//! A replica is known by its id: one that lost its data directory comes back with another one. What has been applied
//! is kept in memory and is applied again after a restart, so there it may be less for a while; it must come to what it
//! was. A view puts together what a replica learns one after the other, so a claim to lead counts once it has been seen
//! for two looks.

use std::collections::BTreeMap;

use super::evidence::{Evidence, time};
use super::{Judge, Promise, Verdict};
use crate::history::{Stage, View};

pub(super) const PROMISE: Promise = Promise {
    id: "S12",
    name: "raft",
    text: "at most one leader per term and per epoch; the term never goes back on a replica, across restarts too, nor what \
           it has applied, to which it comes back after a restart; members agree after healing",
    judge: Judge::Alone(judge),
};

/// How long a view has to last to count, in microseconds.
const LASTS: u64 = 200_000;

/// How long a leader has to have led at the end for everybody to know, in microseconds.
const SETTLED: u64 = 2_000_000;

/// A view with its replica, and until when it claimed the same, which what it applied meanwhile doesn't change.
struct Seen<'a> {
    at: u64,
    until: u64,
    replica: usize,
    pid: Option<u32>,
    view: &'a View,
}

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let seen = seen(evidence);
    let mut violations = Vec::new();
    one_leader(&seen, &mut violations);
    let mut by_id: BTreeMap<u64, Vec<&Seen<'_>>> = BTreeMap::new();
    for view in &seen {
        by_id.entry(view.view.id).or_default().push(view);
    }
    for views in by_id.values() {
        never_back(views, &mut violations);
    }
    let over = evidence.history.stage(Stage::Over);
    let mut doubts = Vec::new();
    match over {
        Some(over) => agree(&seen, end(evidence).max(over), &mut violations, &mut doubts),
        None if seen.is_empty() => {}
        None => doubts.push("the run ended before quiet: nobody knows whether they agree".to_owned()),
    }
    Verdict::with_doubts(seen.len() as u64, violations, &doubts)
}

/// When somebody looked for the last time.
fn end(evidence: &Evidence<'_>) -> u64 {
    let views = evidence.history.views.last().map(|(at, ..)| *at);
    views.max(evidence.history.depths.last().map(|(at, ..)| *at)).unwrap_or(0)
}

fn seen<'a>(evidence: &Evidence<'a>) -> Vec<Seen<'a>> {
    let mut next: BTreeMap<usize, (&View, u64, u64)> = BTreeMap::new();
    let mut seen: Vec<_> = evidence
        .history
        .views
        .iter()
        .rev()
        .map(|(at, replica, pid, view)| {
            let until = match next.get(replica) {
                None => u64::MAX,
                Some((later, _, until)) if claim(later) == claim(view) => *until,
                Some((_, at, _)) => *at,
            };
            next.insert(*replica, (view, *at, until));
            Seen { at: *at, until, replica: *replica, pid: *pid, view }
        })
        .collect();
    seen.reverse();
    seen
}

/// What a replica says that it is.
fn claim(view: &View) -> (u64, &str, u64, Option<u64>) {
    (view.id, &view.role, view.term, view.epoch)
}

fn one_leader(seen: &[Seen<'_>], violations: &mut Vec<String>) {
    let (mut terms, mut epochs) = (BTreeMap::new(), BTreeMap::new());
    for claim in seen.iter().filter(|seen| seen.view.role == "leader" && seen.until - seen.at >= LASTS) {
        let who = (claim.view.id, claim.at);
        let mut tell = |what: &str, number: u64, (former, since): (u64, u64)| {
            if former != claim.view.id {
                violations.push(format!(
                    "{what} {number} has two leaders: replica {former} ({}) and replica {} ({})",
                    time(since),
                    claim.view.id,
                    time(claim.at)
                ));
            }
        };
        tell("term", claim.view.term, *terms.entry(claim.view.term).or_insert(who));
        if let Some(epoch) = claim.view.epoch {
            tell("epoch", epoch, *epochs.entry(epoch).or_insert(who));
        }
    }
}

/// The views of one replica.
fn never_back(views: &[&Seen<'_>], violations: &mut Vec<String>) {
    let mut told = |what: &str, from: u64, to: u64, seen: &Seen<'_>| {
        violations.push(format!(
            "replica {} went back from {what} {from} to {to} at {} (process {:?})",
            seen.view.id,
            time(seen.at),
            seen.pid
        ));
    };
    for pair in views.windows(2) {
        let (former, later) = (pair[0], pair[1]);
        if later.view.term < former.view.term {
            told("term", former.view.term, later.view.term, later);
        }
        // Nothing applied yet is shown as 0.
        let applied = |seen: &Seen<'_>| seen.view.applied.filter(|index| *index > 0);
        if let (Some(from), Some(to)) = (applied(former), applied(later))
            && to < from
            && former.pid == later.pid
        {
            told("applied index", from, to, later);
        }
    }
    let highest = views.iter().filter_map(|seen| seen.view.applied).max();
    if let (Some(highest), Some(last)) = (highest, views.last())
        && last.view.applied.is_some_and(|applied| applied < highest)
    {
        told("applied index", highest, last.view.applied.unwrap_or(0), last);
    }
}

/// The last view of every replica that was a member at the end.
fn agree(seen: &[Seen<'_>], end: u64, violations: &mut Vec<String>, doubts: &mut Vec<String>) {
    let mut last: BTreeMap<usize, &Seen<'_>> = BTreeMap::new();
    for view in seen {
        last.insert(view.replica, view);
    }
    let Some(leader) =
        last.values().filter(|seen| seen.view.role == "leader").max_by_key(|seen| seen.view.term)
    else {
        if !last.is_empty() {
            violations.push(format!("nobody leads at the end, {}", time(end)));
        }
        return;
    };
    // Who has led for less than that at the end may not have been heard of by everybody who looked.
    let own = seen.iter().rev().filter(|view| view.replica == leader.replica);
    let same =
        |view: &&Seen<'_>| (&view.view.role, view.view.epoch) == (&leader.view.role, leader.view.epoch);
    let since = own.take_while(same).last().map_or(leader.at, |first| first.at);
    if since.saturating_add(SETTLED) > end {
        doubts.push(format!(
            "replica {} leads since {} only, and the run ended at {}",
            leader.view.id,
            time(since),
            time(end)
        ));
        return;
    }
    for view in last.values() {
        let same = (view.view.leader, view.view.term) == (Some(leader.view.id), leader.view.term)
            && view.view.epoch == leader.view.epoch;
        // A replica that was removed says that it knows of no leader, and takes no part.
        let takes_part = view.view.role != "learner" || view.view.leader.is_some();
        if !same && takes_part {
            violations.push(format!(
                "replica {} sees leader {:?}, term {} and epoch {:?} since {}; replica {} leads term {} with epoch {:?}",
                view.view.id,
                view.view.leader,
                view.view.term,
                view.view.epoch,
                time(view.at),
                leader.view.id,
                leader.view.term,
                leader.view.epoch
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, kept, refuted, undecided};
    use super::*;

    fn agreed() -> Story {
        let mut story = Story::new();
        story.view(0, 0, 1, ("leader", 1), (1, 5), 10);
        story.view(0, 1, 2, ("voter", 1), (1, 5), 10);
        story.view(1000, 1, 2, ("leader", 2), (2, 20), 21);
        story.view(2000, 0, 1, ("voter", 2), (2, 20), 22);
        story.stage(9000, Stage::Over);
        story
    }

    #[test]
    fn one_leader_after_the_other_is_as_promised() {
        kept(&agreed().judge(&PROMISE), 4);
    }

    #[test]
    fn two_leaders_of_a_term_or_an_epoch_are_a_violation() {
        let mut story = agreed();
        story.view(3000, 0, 1, ("leader", 1), (2, 30), 30);
        refuted(&story.judge(&PROMISE), "term 2 has two leaders");
        let mut story = agreed();
        story.view(3000, 0, 1, ("leader", 1), (3, 20), 30);
        refuted(&story.judge(&PROMISE), "epoch 20 has two leaders");
    }

    #[test]
    fn a_claim_that_is_gone_at_the_next_look_does_not_count() {
        let mut story = agreed();
        story.view(3000, 0, 1, ("leader", 1), (2, 20), 30);
        story.view(3100, 0, 1, ("voter", 2), (2, 20), 30);
        kept(&story.judge(&PROMISE), 6);
    }

    #[test]
    fn a_claim_lasts_while_more_is_applied() {
        let mut story = agreed();
        for step in 0..3 {
            story.view(3000 + 100 * step, 0, 1, ("leader", 1), (2, 20), 30 + step);
        }
        story.view(3300, 0, 1, ("voter", 2), (2, 20), 33);
        refuted(&story.judge(&PROMISE), "term 2 has two leaders");
    }

    #[test]
    fn going_back_is_a_violation() {
        let mut story = agreed();
        story.view(3000, 0, 1, ("voter", 2), (1, 20), 30);
        refuted(&story.judge(&PROMISE), "went back from term 2 to 1");
        let mut story = agreed();
        story.view(3000, 0, 1, ("voter", 2), (2, 20), 12);
        refuted(&story.judge(&PROMISE), "went back from applied index 22 to 12");
    }

    #[test]
    fn after_a_restart_the_applied_index_comes_again_and_the_term_does_not() {
        let mut story = agreed();
        story.view(3000, 0, 1, ("voter", 2), (2, 20), 3).views.last_mut().unwrap().2 = Some(99);
        refuted(&story.judge(&PROMISE), "applied index 22 to 3");
        story.view(4000, 0, 1, ("voter", 2), (2, 20), 25).views.last_mut().unwrap().2 = Some(99);
        kept(&story.judge(&PROMISE), 6);
        story.view(5000, 0, 1, ("voter", 2), (1, 20), 25).views.last_mut().unwrap().2 = Some(100);
        refuted(&story.judge(&PROMISE), "term 2 to 1");
    }

    #[test]
    fn members_that_disagree_at_the_end_are_a_violation() {
        let mut story = agreed();
        story.views.pop();
        refuted(&story.judge(&PROMISE), "sees leader Some(1)");
        let mut story = agreed();
        story.view(3000, 1, 2, ("voter", 1), (2, 20), 30);
        refuted(&story.judge(&PROMISE), "nobody leads");
    }

    #[test]
    fn without_an_end_it_is_unknown_and_without_views_not_tried() {
        let mut story = agreed();
        story.views.last_mut().unwrap().3.epoch = Some(19);
        refuted(&story.judge(&PROMISE), "epoch Some(19)");
        story.view(8000, 1, 2, ("leader", 2), (2, 21), 30);
        undecided(&story.judge(&PROMISE));
        let mut story = agreed();
        story.stages.clear();
        undecided(&story.judge(&PROMISE));
        assert_eq!(Story::new().judge(&PROMISE), Verdict::NotTried);
    }
}
