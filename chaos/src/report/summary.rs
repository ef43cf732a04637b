//! What a run comes down to; campaigns add these up.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::checks::{self, Failover, Judgement, Verdict};
use crate::history::{Act, Ending, History, Outcome, Request, RunInfo, Stage};

/// A run in figures: `summary.json`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Summary {
    /// What was run.
    pub info: RunInfo,
    /// Jobs whose submission was answered ok.
    pub acknowledged: u64,
    /// Submissions, in requests, whose outcome the client does not know.
    pub unknown_submissions: u64,
    /// Jobs in the table at the end.
    pub jobs: u64,
    /// Runs of jobs that workers began.
    pub starts: u64,
    /// Effects that workers had outside of the cluster, one for each completion that was acknowledged to them.
    pub effects: u64,
    /// Strikes by kind: how many there were, and of how many it was shown that they bit.
    pub faults: BTreeMap<String, (u64, u64)>,
    /// How long the cluster stood still after faults that took its leader away.
    pub failovers: Vec<Failover>,
    /// How long it took after the last fault until every job was at its end, in milliseconds.
    pub quiet_ms: Option<f64>,
    /// What is said of each promise.
    pub judgements: Vec<Judgement>,
}

/// What a run, or a campaign, is as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overall {
    /// Every promise that was tried was kept.
    Pass,
    /// One was broken.
    Fail,
    /// None was seen broken, and of one it cannot be said.
    Unknown,
}

impl Summary {
    /// Judges a run and sums it up.
    pub fn of(history: &History) -> Self {
        let (mut acknowledged, mut unknown_submissions) = (BTreeSet::new(), 0);
        for call in &history.calls {
            match (&call.request, &call.outcome) {
                (Request::Submit { numbers, .. }, Outcome::Ok { .. }) => {
                    acknowledged.extend(numbers.iter().copied())
                }
                (Request::Submit { .. }, Outcome::Unknown { .. }) => unknown_submissions += 1,
                _ => {}
            }
        }
        let mut faults: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for fault in &history.faults {
            let line = faults.entry(fault.name.clone()).or_default();
            line.0 += 1;
            line.1 += u64::from(fault.proof.is_some());
        }
        for (_, name) in &history.misses {
            faults.entry(name.clone()).or_default().0 += 1;
        }
        let count =
            |kind: fn(&Act) -> bool| history.acts.iter().filter(|(_, _, act)| kind(act)).count() as u64;
        let quiet = history.stage(Stage::Over).zip(history.stage(Stage::Quiet));
        Self {
            info: history.info.clone(),
            acknowledged: acknowledged.len() as u64,
            unknown_submissions,
            jobs: history.last.as_ref().map_or(0, |last| last.jobs.len() as u64),
            starts: count(|act| matches!(act, Act::Start { .. })),
            effects: count(|act| matches!(act, Act::Effect { .. })),
            faults,
            failovers: checks::failovers(history),
            quiet_ms: quiet.map(|(over, quiet)| milliseconds(over.saturating_sub(quiet))),
            judgements: checks::judge(history),
        }
    }

    /// Reads the `summary.json` of a run's folder; `None` if there is none.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(folder: &Path) -> io::Result<Option<Self>> {
        match fs::read(folder.join("summary.json")) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes `summary.json` to a run's folder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        fs::write(folder.join("summary.json"), serde_json::to_vec_pretty(self)?)
    }

    /// What the run is as a whole.
    pub fn overall(&self) -> Overall {
        Overall::of(self.judgements.iter().map(|judgement| &judgement.verdict))
    }
}

impl Overall {
    /// The worst of these.
    pub fn of<'a>(verdicts: impl Iterator<Item = &'a Verdict>) -> Self {
        let mut overall = Self::Pass;
        for verdict in verdicts {
            match verdict {
                Verdict::Fail { .. } => return Self::Fail,
                Verdict::Unknown { .. } => overall = Self::Unknown,
                Verdict::Pass { .. } | Verdict::NotTried => {}
            }
        }
        overall
    }

    /// In one word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Unknown => "unknown",
        }
    }
}

/// Adds up what is said of one promise in several runs.
pub fn add_up<'a>(verdicts: impl Iterator<Item = &'a Verdict>) -> Verdict {
    let (mut cases, mut broken, mut told, mut unknown) = (0, 0, Vec::new(), None);
    for verdict in verdicts {
        match verdict {
            Verdict::Pass { cases: more } => cases += more,
            Verdict::Fail { count, violations } => {
                broken += count;
                told.extend(violations.iter().cloned());
            }
            Verdict::Unknown { why } => unknown = unknown.or_else(|| Some(why.clone())),
            Verdict::NotTried => {}
        }
    }
    match (broken, unknown, cases) {
        (1.., _, _) => Verdict::Fail { count: broken, violations: told },
        (_, Some(why), _) => Verdict::Unknown { why },
        (_, None, 0) => Verdict::NotTried,
        (_, None, _) => Verdict::Pass { cases },
    }
}

/// The value below which so many in a hundred lie; `None` of nothing.
pub fn percentile(values: &[f64], percent: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "few values"
    )]
    let place = ((percent / 100.0 * sorted.len() as f64).ceil() as usize).clamp(1, sorted.len().max(1)) - 1;
    sorted.get(place).copied()
}

/// Microseconds as milliseconds.
#[expect(clippy::cast_precision_loss, reason = "a run lasts hours at the most")]
pub fn milliseconds(microseconds: u64) -> f64 {
    microseconds as f64 / 1000.0
}

/// Ends of runs with a result: when.
pub(super) fn completions(history: &History) -> impl Iterator<Item = u64> {
    history
        .acts
        .iter()
        .filter_map(|(at, _, act)| matches!(act, Act::End { end: Ending::Success, .. }).then_some(*at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let values: Vec<_> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&values, 99.0), Some(99.0));
        assert_eq!(percentile(&values, 50.0), Some(50.0));
        assert_eq!(percentile(&[7.0], 99.0), Some(7.0));
        assert_eq!(percentile(&[], 99.0), None);
    }

    #[test]
    fn one_broken_promise_breaks_the_sum_and_an_unknown_is_no_pass() {
        let (pass, not_tried) = (Verdict::Pass { cases: 2 }, Verdict::NotTried);
        let fail = Verdict::Fail { count: 3, violations: vec!["a".to_owned()] };
        let unknown = Verdict::Unknown { why: "b".to_owned() };
        assert_eq!(add_up([&pass, &not_tried, &pass].into_iter()), Verdict::Pass { cases: 4 });
        assert_eq!(add_up([&not_tried].into_iter()), Verdict::NotTried);
        assert_eq!(add_up([&pass, &unknown].into_iter()), unknown);
        assert_eq!(add_up([&unknown, &fail, &pass].into_iter()), fail);
        assert_eq!(Overall::of([&pass, &unknown].into_iter()), Overall::Unknown);
        assert_eq!(Overall::of([&unknown, &fail].into_iter()), Overall::Fail);
    }
}
