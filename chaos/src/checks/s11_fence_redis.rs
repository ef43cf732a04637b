//! S11 in Redis: no script of a former leader's writes after one of a later leader's.
//!
//! Judged by what Redis carried out ([`crate::monitor`]): the epoch that each script was given, and whether it came to a
//! command that writes. What the fence in the scripts has to say is not asked.
//!
//! The fence there is an epoch that Redis stores, and Redis is no authority (S13). So CORTEX promises this for as long
//! as Redis keeps what was written. When the stored epoch is lost, a former leader whose script comes before the next
//! one of the new leader's is let in: it changes entries that PostgreSQL has to confirm and that are rebuilt anyway.
//! Therefore epochs are compared within stretches alone, and a stretch ends only
//!
//! - where the stored epoch was taken away, or set to a lower one, by somebody who is no script: FLUSHALL, a forger;
//! - where Redis was short of memory, and may have thrown it away: nothing in between is compared;
//! - where Redis' commands were not seen. After a new start of Redis that is excused, for what it had not synced is
//!   lost. If it was the same run of Redis all the time, there is a gap in what the harness saw, and no verdict.
//!
//! The first write after that begins the next stretch. One more thing is let pass: a new leader that finds an epoch
//! higher than its own, which it has from PostgreSQL, sets it back (`reset.lua`), and does not look again. So while an
//! epoch is forged, a leader that froze on the way to that may set it back later than its successor. It is excused
//! after a forged epoch, and for the setting alone.
//!
//! A script that carries no leader's epoch must change nothing. Throwing keys away of a kind which CORTEX never writes
//! (`discard.lua`) is none of the queue's business, and not noted.

use super::evidence::{Evidence, time};
use super::{Judge, Promise, Verdict};
use crate::history::{RedisAct, Stage};

pub(super) const PROMISE: Promise = Promise {
    id: "S11R",
    name: "fence in Redis",
    text: "no script of epoch E writes to Redis after the first write of an epoch > E, as long as Redis keeps the epoch",
    judge: Judge::Alone(judge),
};

/// What has been seen so far.
#[derive(Default)]
struct Seen {
    cases: u64,
    violations: Vec<String>,
    doubts: Vec<String>,
    /// The highest epoch that has written in this stretch.
    highest: Option<i64>,
    is_forged: bool,
    evicts: bool,
    run_id: Option<String>,
    /// Since when nothing is seen, and why.
    unwatched: Option<(u64, String)>,
}

fn judge(evidence: &Evidence<'_>) -> Verdict {
    let history = evidence.history;
    if !history.redis.iter().any(|(_, act)| matches!(act, RedisAct::Watched { .. })) {
        return Verdict::Unknown { why: "nobody watched what Redis was told".to_owned() };
    }
    let mut seen = Seen::default();
    for (at, act) in &history.redis {
        seen.take(*at, act);
    }
    // What is done while everybody goes home cannot be told from nothing.
    let over = history.stage(Stage::Over).unwrap_or(u64::MAX);
    if let Some((since, why)) = seen.unwatched.take()
        && since < over
    {
        seen.doubts.push(format!("Redis was not watched from {} on: {why}", time(since)));
    }
    Verdict::with_doubts(seen.cases, seen.violations, &seen.doubts)
}

impl Seen {
    fn take(&mut self, at: u64, act: &RedisAct) {
        match act {
            RedisAct::Watched { run_id } => self.watched(at, run_id),
            RedisAct::Unwatched { why } => {
                self.unwatched.get_or_insert_with(|| (at, why.clone()));
            }
            RedisAct::Writes { epoch, script, command, resets } => {
                self.writes(*epoch, *resets, &format!("script {script} ({command}) at {}", time(at)));
            }
            RedisAct::Wrote { .. } => {}
            RedisAct::EpochGone { .. } => self.begin(),
            RedisAct::EpochForged { value } => {
                let value = value.parse().ok();
                if value < self.highest {
                    self.begin();
                }
                self.is_forged = true;
            }
            RedisAct::Evicts { begins } => {
                self.begin();
                self.evicts = *begins;
            }
        }
    }

    /// A new stretch begins.
    fn begin(&mut self) {
        (self.highest, self.is_forged) = (None, false);
    }

    fn watched(&mut self, at: u64, run_id: &str) {
        let before = self.run_id.replace(run_id.to_owned());
        let is_same = before.as_deref() == Some(run_id);
        if let Some((since, why)) = self.unwatched.take()
            && is_same
        {
            let (since, at) = (time(since), time(at));
            self.doubts.push(format!("Redis was not watched from {since} to {at}: {why}"));
        }
        // How much memory it has is forgotten with the rest.
        self.evicts &= is_same;
        self.begin();
    }

    fn writes(&mut self, epoch: Option<i64>, resets: bool, what: &str) {
        let Some(epoch) = epoch.filter(|epoch| *epoch > 0) else {
            self.violations.push(format!("{what} wrote without a leader's epoch: {epoch:?}"));
            return;
        };
        if self.evicts {
            return;
        }
        match self.highest {
            Some(highest) if epoch < highest && resets && self.is_forged => {
                self.begin();
                self.highest = Some(epoch);
            }
            Some(highest) if epoch < highest => {
                self.violations.push(format!("{what} of epoch {epoch} wrote after epoch {highest} had"));
            }
            highest => {
                self.cases += u64::from(highest.is_some_and(|highest| highest < epoch));
                self.highest = Some(epoch);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::story::{Story, kept, refuted, undecided};
    use super::*;

    fn watched(run_id: &str) -> RedisAct {
        RedisAct::Watched { run_id: run_id.to_owned() }
    }

    fn unwatched() -> RedisAct {
        RedisAct::Unwatched { why: "it was gone".to_owned() }
    }

    fn writes(epoch: i64) -> RedisAct {
        let (script, command) = ("abc".to_owned(), "ZADD".to_owned());
        RedisAct::Writes { epoch: Some(epoch), script, command, resets: false }
    }

    fn resets(epoch: i64) -> RedisAct {
        let (script, command) = ("abc".to_owned(), "SET".to_owned());
        RedisAct::Writes { epoch: Some(epoch), script, command, resets: true }
    }

    fn gone() -> RedisAct {
        RedisAct::EpochGone { how: "FLUSHALL".to_owned() }
    }

    fn forged(value: &str) -> RedisAct {
        RedisAct::EpochForged { value: value.to_owned() }
    }

    fn evicts(begins: bool) -> RedisAct {
        RedisAct::Evicts { begins }
    }

    /// Watched from the beginning, over after all of it.
    fn verdict(acts: &[RedisAct]) -> Verdict {
        let mut story = Story::new();
        story.redis(0, watched("a"));
        for (number, act) in acts.iter().enumerate() {
            story.redis(number as u64 + 1, act.clone());
        }
        story.stage(acts.len() as i64 + 1, Stage::Over);
        story.redis(acts.len() as u64 + 2, unwatched());
        story.judge(&PROMISE)
    }

    #[test]
    fn epochs_in_turn_are_as_promised() {
        kept(&verdict(&[writes(3), writes(9), writes(12)]), 2);
        assert_eq!(verdict(&[writes(3), writes(3)]), Verdict::NotTried);
        assert_eq!(verdict(&[]), Verdict::NotTried);
    }

    #[test]
    fn a_write_by_a_former_epoch_is_a_violation() {
        let wrote = RedisAct::Wrote { epoch: Some(9), scripts: 4 };
        let verdict = verdict(&[writes(3), writes(9), wrote, writes(3), writes(3), writes(9)]);
        refuted(&verdict, "script abc (ZADD) at 0.004 s of epoch 3 wrote after epoch 9 had");
        assert!(matches!(verdict, Verdict::Fail { count: 2, .. }), "{verdict:?}");
    }

    #[test]
    fn a_write_without_a_leaders_epoch_is_a_violation() {
        refuted(&verdict(&[writes(0)]), "without a leader's epoch");
        let RedisAct::Writes { script, command, .. } = writes(3) else { unreachable!() };
        let none = RedisAct::Writes { epoch: None, script, command, resets: false };
        refuted(&verdict(&[evicts(true), none]), "without a leader's epoch");
    }

    #[test]
    fn after_the_stored_epoch_was_lost_a_former_leader_may_come_first_and_not_second() {
        assert_eq!(verdict(&[writes(9), gone(), writes(3)]), Verdict::NotTried);
        kept(&verdict(&[writes(9), gone(), writes(3), writes(9)]), 1);
        refuted(&verdict(&[writes(9), gone(), writes(9), writes(3)]), "after epoch 9 had");
        kept(&verdict(&[writes(9), forged("1"), writes(3), writes(9)]), 1);
        assert_eq!(verdict(&[writes(9), forged("nonsense"), writes(3)]), Verdict::NotTried);
    }

    #[test]
    fn a_forged_epoch_above_all_excuses_setting_it_back_alone() {
        kept(&verdict(&[writes(3), writes(9), forged("1000"), resets(9), writes(9)]), 1);
        kept(&verdict(&[writes(9), forged("1000"), resets(12), resets(9), writes(12)]), 2);
        refuted(&verdict(&[writes(9), forged("1000"), writes(3)]), "after epoch 9 had");
        refuted(&verdict(&[writes(9), resets(3)]), "after epoch 9 had");
        refuted(&verdict(&[forged("1000"), writes(9), gone(), writes(9), resets(3)]), "after epoch 9 had");
    }

    #[test]
    fn nothing_is_compared_while_redis_throws_keys_away() {
        let during = [writes(9), evicts(true), writes(9), writes(3), evicts(false), writes(3), writes(9)];
        kept(&verdict(&during), 1);
        refuted(&verdict(&[evicts(true), evicts(false), writes(9), writes(3)]), "after epoch 9 had");
        let restarted = [evicts(true), unwatched(), watched("b"), writes(9), writes(3)];
        refuted(&verdict(&restarted), "after epoch 9 had");
    }

    #[test]
    fn a_new_start_of_redis_begins_a_new_stretch() {
        assert_eq!(verdict(&[writes(9), unwatched(), watched("b"), writes(12)]), Verdict::NotTried);
        kept(&verdict(&[writes(9), unwatched(), watched("b"), writes(3), writes(9)]), 1);
        refuted(&verdict(&[unwatched(), watched("b"), writes(9), writes(3)]), "after epoch 9 had");
    }

    #[test]
    fn what_was_not_seen_is_not_called_a_pass() {
        assert!(matches!(Story::new().judge(&PROMISE), Verdict::Unknown { .. }));
        undecided(&verdict(&[writes(3), writes(9), unwatched(), watched("a"), writes(12)]));
        undecided(&verdict(&[writes(3), writes(9), unwatched()]));
        refuted(&verdict(&[writes(9), writes(3), unwatched(), watched("a")]), "after epoch 9 had");
    }
}
