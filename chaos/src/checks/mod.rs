//! The promises, one file each, judged by a history alone.
//!
//! Times of the stores and of the harness are compared only as far as [`evidence::Clock`] can: where the difference
//! of the two leaves a doubt, nothing is called a violation.

mod evidence;
mod l1_progress;
mod l2_expired_leases;
mod l4_failover;
mod l5_no_election;
mod p1_no_panic;
mod r1_recovery;
mod s01_no_loss;
mod s02_idempotent;
mod s03_no_phantom;
mod s04_one_live_lease;
mod s05_attempts;
mod s06_stale_lease;
mod s07_effective_once;
mod s08_bounded;
mod s09_not_early;
mod s10_cancel;
mod s11_fence;
mod s11_fence_redis;
mod s12_raft;
mod s13_redis_no_authority;
mod s14_order;
mod s15_reads;
mod s16_refused;
#[cfg(test)]
mod story;
mod v1_verify;
mod w1_carry_on;

use serde::{Deserialize, Serialize};

use crate::history::History;
use evidence::Evidence;

pub use l4_failover::{BARS, ENOUGH, Failover, Kind, failovers};

/// What a judge says of one promise in one run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// It was kept, in so many cases in which it could have been broken.
    Pass {
        /// How many.
        cases: u64,
    },
    /// It was broken.
    Fail {
        /// How often.
        count: u64,
        /// The first of the violations, in words that name jobs, leases, replicas and times.
        violations: Vec<String>,
    },
    /// The history does not say. That is not a pass.
    Unknown {
        /// Why.
        why: String,
    },
    /// Nothing happened in this run that could have broken it.
    NotTried,
}

/// A promise.
pub struct Promise {
    /// S1 to S16, S11R, L1, L2, L4, L4H, L5, R1, P1, W1, V1. L3 is judged by `flush`, which is a run of its own.
    pub id: &'static str,
    /// In two or three words.
    pub name: &'static str,
    /// What is promised.
    pub text: &'static str,
    judge: Judge,
}

/// How a promise is judged.
enum Judge {
    /// By the evidence.
    Alone(fn(&Evidence<'_>) -> Verdict),
    /// By the evidence, and by what was said of the promises before it.
    After(fn(&Evidence<'_>, &[Judgement]) -> Verdict),
}

/// A promise and what is said of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Judgement {
    /// Its id.
    pub promise: String,
    /// What is said.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// All of them.
pub const PROMISES: &[Promise] = &[
    s01_no_loss::PROMISE,
    s02_idempotent::PROMISE,
    s03_no_phantom::PROMISE,
    s04_one_live_lease::PROMISE,
    s05_attempts::PROMISE,
    s06_stale_lease::PROMISE,
    s07_effective_once::PROMISE,
    s08_bounded::PROMISE,
    s09_not_early::PROMISE,
    s10_cancel::PROMISE,
    s11_fence::PROMISE,
    s11_fence_redis::PROMISE,
    s12_raft::PROMISE,
    s13_redis_no_authority::PROMISE,
    s14_order::PROMISE,
    s15_reads::PROMISE,
    s16_refused::PROMISE,
    l1_progress::PROMISE,
    l2_expired_leases::PROMISE,
    l4_failover::PROMISE,
    l4_failover::HAND_OVER,
    l5_no_election::PROMISE,
    r1_recovery::PROMISE,
    p1_no_panic::PROMISE,
    w1_carry_on::PROMISE,
    v1_verify::PROMISE,
];

/// Violations that are told in full.
const TOLD: usize = 20;

/// Judges a whole run.
pub fn judge(history: &History) -> Vec<Judgement> {
    let evidence = Evidence::of(history);
    let mut judgements = Vec::with_capacity(PROMISES.len());
    for promise in PROMISES {
        let verdict = match promise.judge {
            Judge::Alone(judge) => judge(&evidence),
            Judge::After(judge) => judge(&evidence, &judgements),
        };
        judgements.push(Judgement { promise: promise.id.to_owned(), verdict });
    }
    judgements
}

impl Verdict {
    /// A pass if there are no violations, and a pass of nothing if there were no cases.
    fn of(cases: u64, mut violations: Vec<String>) -> Self {
        let count = violations.len() as u64;
        violations.truncate(TOLD);
        match (count, cases) {
            (1.., _) => Self::Fail { count, violations },
            (_, 0) => Self::NotTried,
            _ => Self::Pass { cases },
        }
    }

    /// The same, but where some cases could not be decided it is no pass.
    fn with_doubts(cases: u64, violations: Vec<String>, doubts: &[String]) -> Self {
        match (violations.first(), doubts.first()) {
            (None, Some(first)) => {
                Self::Unknown { why: format!("{} undecided, of {cases}: {first}", doubts.len()) }
            }
            _ => Self::of(cases, violations),
        }
    }

    /// Without what was in the stores at the end nothing can be said.
    fn not_dumped() -> Self {
        Self::Unknown { why: "the run ended before the stores were read".to_owned() }
    }

    /// Without a common measure of the times of the stores and the harness nothing can be said.
    fn no_clock() -> Self {
        let why = "the clocks of PostgreSQL and of the harness cannot be compared: no submission was answered, or \
                   one of them jumped";
        Self::Unknown { why: why.to_owned() }
    }
}
