//! The promises, one file each, judged by a history alone.

mod failovers;
mod s01_no_loss;
pub use failovers::{Failover, failovers};

use serde::{Deserialize, Serialize};

use crate::history::History;

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
    /// S1 to S16, L1 to L5.
    pub id: &'static str,
    /// In two or three words.
    pub name: &'static str,
    /// What is promised.
    pub text: &'static str,
    judge: fn(&History) -> Verdict,
}

/// A promise and what is said of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Judgement {
    /// S1 to S16, L1 to L5.
    pub promise: String,
    /// What is said.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// All of them.
pub const PROMISES: &[Promise] = &[s01_no_loss::PROMISE];

/// Violations that are told in full.
const TOLD: usize = 20;

/// Judges a whole run.
pub fn judge(history: &History) -> Vec<Judgement> {
    let judge =
        |promise: &Promise| Judgement { promise: promise.id.to_owned(), verdict: (promise.judge)(history) };
    PROMISES.iter().map(judge).collect()
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

    /// Without what was in the stores at the end nothing can be said.
    fn not_dumped() -> Self {
        Self::Unknown { why: "the run ended before the stores were read".to_owned() }
    }
}
