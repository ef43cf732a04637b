//! What a run has found, for people and programs.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::catalog::{Check, Severity};

/// What became of all checks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// What they come to.
    pub verdict: Verdict,
    /// How long the run took, in milliseconds.
    pub elapsed_ms: u64,
    /// Every check, in a fixed order.
    pub checks: Vec<Checked>,
}

/// What all checks come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// All was looked at, and nothing is off but what is noticed only.
    Clean,
    /// Something is off; some checks may be unknown besides.
    Off,
    /// Nothing is off as far as could be seen, and not all was looked at.
    Unknown,
}

/// A check and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// Its name.
    pub name: String,
    /// How bad a finding is.
    pub severity: Severity,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What became of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "lowercase")]
pub enum Outcome {
    /// Nothing is off.
    Clean,
    /// Something is off.
    Off(Finding),
    /// It could not be made.
    Unknown {
        /// Why.
        reason: String,
    },
}

/// What is off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How much.
    pub count: u64,
    /// There may be more: more was found than can be compared between two looks.
    pub at_least: bool,
    /// What that means.
    pub means: String,
    /// What sets it right.
    pub repair: String,
    /// Some of it.
    pub samples: Vec<Sample>,
}

/// One thing that is off.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// What, most often a job's id.
    pub id: String,
    /// What is off about it.
    pub detail: String,
}

impl Finding {
    pub(super) fn of(check: &Check, count: u64, at_least: bool, rows: Vec<(String, String)>) -> Self {
        let samples = rows.into_iter().map(|(id, detail)| Sample { id, detail }).collect();
        Self { count, at_least, means: check.means.to_owned(), repair: check.repair.to_owned(), samples }
    }
}

impl Checked {
    /// Whether it counts for the verdict.
    fn is_off(&self) -> bool {
        matches!(self.outcome, Outcome::Off(_)) && self.severity != Severity::Notice
    }
}

impl Report {
    pub(super) fn of(outcomes: Vec<(&Check, Outcome)>, samples: usize, elapsed: Duration) -> Self {
        let checked = |(check, mut outcome): (&Check, Outcome)| {
            if let Outcome::Off(finding) = &mut outcome {
                finding.samples.truncate(samples);
            }
            Checked { name: check.name.to_owned(), severity: check.severity, outcome }
        };
        let checks: Vec<Checked> = outcomes.into_iter().map(checked).collect();
        let unknown = checks.iter().any(|check| matches!(check.outcome, Outcome::Unknown { .. }));
        let verdict = if checks.iter().any(Checked::is_off) {
            Verdict::Off
        } else if unknown {
            Verdict::Unknown
        } else {
            Verdict::Clean
        };
        Self { verdict, elapsed_ms: u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX), checks }
    }

    /// What is off, notices included.
    pub fn findings(&self) -> impl Iterator<Item = (&Checked, &Finding)> {
        self.checks.iter().filter_map(|check| match &check.outcome {
            Outcome::Off(finding) => Some((check, finding)),
            Outcome::Clean | Outcome::Unknown { .. } => None,
        })
    }
}
