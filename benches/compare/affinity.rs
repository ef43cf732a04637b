//! `affinity`: how many loads of models the workers are spared because placement prefers those that have the
//! model loaded. Simulated by `fleet.rs`, so it says nothing of speed.

use serde_json::{Value, json};

use crate::fleet::{Outcome, Pace, Reports, Work, simulate};
use crate::report::{NONE, Report, figure, figures, median, spread, table};
use crate::{Failure, Options};

/// How many there are. The fleet has room for 128 loaded ones.
const MODELS: [u32; 2] = [40, 200];
/// Parts of what the fleet does when jobs always wait.
const LOADS: [(&str, Option<f64>); 5] = [
    ("50 %", Some(0.5)),
    ("80 %", Some(0.8)),
    ("95 %", Some(0.95)),
    ("150 %", Some(1.5)),
    ("jobs always wait", None),
];
const REPORTS: [(&str, Reports); 3] =
    [("none", Reports::Never), ("heartbeats", Reports::Heartbeats), ("at once", Reports::AtOnce)];

/// The runs at one load, with each kind of reports.
struct Runs {
    models: u32,
    load: &'static str,
    part: Option<f64>,
    lines: [Vec<Value>; 3],
}

pub fn run(options: &Options, report: &mut Report) -> Result<(), Failure> {
    let mut rows = Vec::new();
    for models in MODELS {
        let start = |(load, part)| Runs { models, load, part, lines: Default::default() };
        let mut runs: Vec<Runs> = LOADS.into_iter().map(start).collect();
        for round in 1..=options.runs() {
            let work = Work::new(models, options.size(18_000, 3_000), round.into());
            measure(&work, round, &mut runs, report)?;
        }
        rows.extend(runs.iter().map(row));
    }
    let head = [
        "models",
        "load",
        "jobs/s",
        "loads per 1,000 jobs",
        "saved, %",
        "saved if known at once, %",
        "p50 to the start, s",
        "p99, s",
    ];
    report.print("affinity", &table(&head, &rows))
}

/// The same work at each load, with each kind of reports.
fn measure(work: &Work, round: u32, runs: &mut [Runs], report: &mut Report) -> Result<(), Failure> {
    let most = simulate(work, Pace::AllAtOnce, Reports::Never).per_s();
    for runs in runs {
        let pace = runs.part.map_or(Pace::AllAtOnce, |part| Pace::PerSecond(part * most));
        let case = format!("{} models, {}", runs.models, runs.load);
        for ((reports, kind), lines) in REPORTS.into_iter().zip(&mut runs.lines) {
            let line = line(&simulate(work, pace, kind));
            report.keep(reports, &case, round, &line)?;
            lines.push(line);
        }
    }
    Ok(())
}

fn line(outcome: &Outcome) -> Value {
    json!({
        "jobs": outcome.starts.len(),
        "jobs_per_s": outcome.per_s(),
        "loads_per_1000": outcome.loads_per_1000(),
        "p50_s": outcome.percentile(50),
        "p99_s": outcome.percentile(99),
    })
}

fn row(runs: &Runs) -> Vec<String> {
    let [without, with, at_once] = &runs.lines;
    let of = |lines: &[Value], key| median(&figures(lines, key)).map_or_else(|| NONE.to_owned(), figure);
    let both = |key| format!("{} → {}", of(without, key), of(with, key));
    // Where more comes than is done, it grows for as long as the run takes.
    let steady = runs.part.is_some_and(|part| part < 1.0);
    let start = |key| if steady { both(key) } else { NONE.to_owned() };
    let saved = |with: &[Value]| {
        let pairs = figures(without, "loads_per_1000").into_iter().zip(figures(with, "loads_per_1000"));
        spread(&pairs.map(|(without, with)| 100.0 * (1.0 - with / without)).collect::<Vec<_>>())
    };
    vec![
        runs.models.to_string(),
        runs.load.to_owned(),
        both("jobs_per_s"),
        both("loads_per_1000"),
        saved(with),
        saved(at_once),
        start("p50_s"),
        start("p99_s"),
    ]
}
