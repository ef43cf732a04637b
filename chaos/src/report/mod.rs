//! What came of a run or a campaign, for people: `report.md`, and `report.html`, which needs nothing else.

mod html;
mod markdown;
mod summary;
mod timeline;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::{fs, io};

use crate::checks::{BARS, ENOUGH, Failover, Kind, PROMISES, Verdict};
use crate::history::History;

pub use summary::{Overall, Summary, add_up, milliseconds, percentile};

/// Several runs, or one, under one heading.
#[derive(Debug)]
pub struct Report {
    /// What it is about.
    pub title: String,
    /// The command that does it all again.
    pub command: String,
    /// Every run.
    pub rounds: Vec<Summary>,
}

/// A promise and what is said of it in all rounds together.
struct Row {
    id: &'static str,
    name: &'static str,
    text: &'static str,
    verdict: Verdict,
}

/// A time that is promised, and what was measured.
struct Bar {
    what: &'static str,
    samples: usize,
    p99: Option<f64>,
    bar: f64,
}

impl Bar {
    /// Whether it was kept; `None` if there are too few samples for a 99th percentile.
    fn kept(&self) -> Option<bool> {
        (self.samples >= ENOUGH).then(|| self.p99.is_some_and(|p99| p99 <= self.bar))
    }

    fn word(&self) -> &'static str {
        match self.kept() {
            Some(true) => "pass",
            Some(false) => "fail",
            None if self.samples == 0 => "not tried",
            None => "too few",
        }
    }
}

/// How long the cluster stood still after faults of one kind.
struct Times {
    name: String,
    count: usize,
    submission: [Option<f64>; 3],
    dispatch: [Option<f64>; 3],
}

impl Report {
    /// Writes `report.md` and `report.html`. The picture shows the history that is given, if one is.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write(&self, folder: &Path, history: Option<&History>) -> io::Result<()> {
        fs::write(folder.join("report.md"), markdown::render(self))?;
        fs::write(folder.join("report.html"), html::render(self, history).into_string())
    }

    /// What it is as a whole.
    pub fn overall(&self) -> Overall {
        if self.bars().iter().any(|bar| bar.kept() == Some(false)) {
            return Overall::Fail;
        }
        Overall::of(self.rows().iter().map(|row| &row.verdict))
    }

    fn rows(&self) -> Vec<Row> {
        let row = |promise: &crate::checks::Promise| {
            let of_it = |round: &'_ Summary| {
                round
                    .judgements
                    .iter()
                    .find(|judgement| judgement.promise == promise.id)
                    .map(|found| found.verdict.clone())
            };
            let verdicts: Vec<_> = self.rounds.iter().filter_map(of_it).collect();
            Row { id: promise.id, name: promise.name, text: promise.text, verdict: add_up(verdicts.iter()) }
        };
        PROMISES.iter().map(row).collect()
    }

    /// Strikes by kind: how many, and how many of them were shown to have bitten.
    fn strikes(&self) -> Vec<(String, u64, u64)> {
        let mut all = BTreeMap::<&str, (u64, u64)>::new();
        for (name, (count, bitten)) in self.rounds.iter().flat_map(|round| &round.faults) {
            let line = all.entry(name).or_default();
            (line.0, line.1) = (line.0 + count, line.1 + bitten);
        }
        all.into_iter().map(|(name, (count, bitten))| (name.to_owned(), count, bitten)).collect()
    }

    /// What a pass does not say: under a heading each, as far as there is anything.
    fn untold(&self) -> Vec<(&'static str, String)> {
        let not_tried = self.rows().into_iter().filter(|row| row.verdict == Verdict::NotTried);
        let mut not_tried: Vec<_> = not_tried.map(|row| format!("{} {}", row.id, row.name)).collect();
        not_tried.push("L3 queue whole again, which `flush` alone judges".to_owned());
        let bars = self.bars().into_iter().filter(|bar| bar.kept().is_none());
        let bars: Vec<_> = bars.map(|bar| format!("{} ({})", bar.what, bar.samples)).collect();
        let toothless = self.strikes().into_iter().filter(|(_, _, bitten)| *bitten == 0);
        let toothless: Vec<_> = toothless.map(|(name, count, _)| format!("{name} ({count})")).collect();
        let not_allowed: BTreeSet<_> = self.rounds.iter().flat_map(|round| &round.info.not_allowed).collect();
        let not_allowed: Vec<_> = not_allowed.into_iter().cloned().collect();
        let all = [
            ("Promises that were not tried", not_tried),
            ("Times of which there are too few samples for a percentile", bars),
            ("Kinds of faults that struck and were never shown to have bitten", toothless),
            ("Kinds of faults that this machine does not allow", not_allowed),
        ];
        let told = all.into_iter().filter(|(_, names)| !names.is_empty());
        told.map(|(what, names)| (what, names.join(", "))).collect()
    }

    /// What L4 asks of all rounds together.
    fn bars(&self) -> Vec<Bar> {
        let of = |kind, value: fn(&Failover) -> Option<f64>| {
            let all = self.rounds.iter().flat_map(|round| &round.failovers);
            let alone = all.filter(|failover| failover.kind == kind && failover.alone && failover.tried);
            alone.filter_map(value).collect::<Vec<_>>()
        };
        let rows = [
            ("leader lost to the next accepted submission", of(Kind::Failover, |one| one.to_submission_ms)),
            ("leader lost to the next dispatch", of(Kind::Failover, |one| one.to_dispatch_ms)),
            (
                "planned hand-over to the next accepted submission",
                of(Kind::HandOver, |one| one.to_submission_ms),
            ),
        ];
        let bar = |((what, values), bar): ((&'static str, Vec<f64>), f64)| Bar {
            what,
            samples: values.len(),
            p99: percentile(&values, 99.0),
            bar,
        };
        rows.into_iter().zip(BARS).map(bar).collect()
    }

    /// Median, 99th percentile and largest of the times after faults, by kind. Where another fault was under way at the
    /// same time, the wait is not this one's alone, and does not count.
    fn times(&self) -> Vec<Times> {
        let mut kinds = BTreeMap::<&str, Vec<&Failover>>::new();
        for failover in
            self.rounds.iter().flat_map(|round| &round.failovers).filter(|failover| failover.alone)
        {
            kinds.entry(&failover.name).or_default().push(failover);
        }
        let of = |values: Vec<f64>| [50.0, 99.0, 100.0].map(|percent| percentile(&values, percent));
        let times = |(name, all): (&str, Vec<&Failover>)| Times {
            name: name.to_owned(),
            count: all.len(),
            submission: of(all.iter().filter_map(|failover| failover.to_submission_ms).collect()),
            dispatch: of(all.iter().filter_map(|failover| failover.to_dispatch_ms).collect()),
        };
        kinds.into_iter().map(times).collect()
    }

    fn total(&self, of: impl Fn(&Summary) -> u64) -> u64 {
        self.rounds.iter().map(of).sum()
    }
}

/// The verdict in one word, and what goes with it.
fn words(verdict: &Verdict) -> (&'static str, String) {
    match verdict {
        Verdict::Pass { cases } => ("pass", format!("{cases} cases")),
        Verdict::Fail { count, .. } => ("fail", format!("{count} violations")),
        Verdict::Unknown { why } => ("unknown", why.clone()),
        Verdict::NotTried => ("not tried", String::new()),
    }
}

/// Milliseconds, or a dash.
fn ms(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.0}"))
}
