//! `table`: limit, CORTEX and the peers, one after the other, round after round, so that whatever else happens
//! on the machine is spread over all of them. Only one set of stores runs at a time.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::cases::{CASES, Case, Measure};
use crate::peers::Peers;
use crate::report::{BARS, Bar, NONE, Report, bar_row, figure, figures, median, ratio, say, spread, table};
use crate::stage::{ROOMY, Stage};
use crate::{Failure, Options};

/// This system.
const CORTEX: &str = "cortex";

/// Runs by system and case.
type Runs = BTreeMap<(String, &'static str), Vec<Value>>;

/// What is wanted of systems and cases.
struct Choice {
    systems: Vec<String>,
    cases: Vec<&'static Case>,
}

pub async fn run(options: &Options, report: &mut Report) -> Result<(), Failure> {
    let peers = Peers::find(options)?;
    let choice = choose(options, peers.as_ref())?;
    let mut runs = Runs::new();
    for round in 1..=options.runs() {
        say(&format!("round {round} of {}", options.runs()));
        if choice.systems.iter().any(|system| system == CORTEX) {
            measure_cortex(options, report, round, &choice, &mut runs).await?;
        }
        let Some(peers) = &peers else { continue };
        let measured = measure_peers(options, report, round, &choice, peers, &mut runs).await;
        peers.stop().await?;
        measured?;
    }
    let on_postgres = |system: &str| peers.as_ref().is_some_and(|peers| peers.on_postgres(system));
    report.print("table", &comparison(&choice, &runs, &on_postgres))?;
    report.print("peers", &all_systems(&choice, &runs))?;
    report.print("bars", &bars(&choice, &runs, &on_postgres))
}

/// Takes `--only` apart: names of systems choose among the systems, names of workloads among the workloads.
fn choose(options: &Options, peers: Option<&Peers>) -> Result<Choice, Failure> {
    let mut systems = vec![CORTEX.to_owned()];
    systems.extend(peers.map(Peers::names).unwrap_or_default().iter().cloned());
    let (cases, wanted): (Vec<&String>, Vec<&String>) =
        options.only.iter().partition(|name| CASES.iter().any(|case| case.name == **name));
    if let Some(unknown) = wanted.iter().find(|name| !systems.contains(name)) {
        let known: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        let text = format!(
            "--only {unknown}: the workloads are {}; the systems are {}",
            known.join(", "),
            systems.join(", ")
        );
        return Err(text.into());
    }
    if !wanted.is_empty() {
        systems.retain(|system| wanted.contains(&system));
    }
    let chosen = |case: &&Case| cases.is_empty() || cases.iter().any(|name| *name == case.name);
    Ok(Choice { systems, cases: CASES.iter().filter(chosen).collect() })
}

async fn measure_cortex(
    options: &Options,
    report: &mut Report,
    round: u32,
    choice: &Choice,
    runs: &mut Runs,
) -> Result<(), Failure> {
    let stage = Stage::start(ROOMY).await?;
    for case in &choice.cases {
        match stage.bench(case.at, case.arguments(options)).await {
            // The limit says two lines: the direct way, which counts, and the one through the queue.
            Ok(lines) => {
                for line in &lines {
                    report.keep(CORTEX, case.name, round, line)?;
                }
                let kept = runs.entry((CORTEX.to_owned(), case.name)).or_default();
                kept.extend(lines.into_iter().next());
            }
            Err(error) => report.fail(case.name, &error),
        }
    }
    stage.stop().await
}

async fn measure_peers(
    options: &Options,
    report: &mut Report,
    round: u32,
    choice: &Choice,
    peers: &Peers,
    runs: &mut Runs,
) -> Result<(), Failure> {
    for system in choice.systems.iter().filter(|system| *system != CORTEX) {
        for case in &choice.cases {
            let Some(workload) = case.peer.filter(|workload| peers.runs(system, workload)) else { continue };
            let line = peers.run(system, workload, options.quick).await;
            report.keep(system, case.name, round, &line)?;
            runs.entry((system.clone(), case.name)).or_default().push(line);
        }
    }
    Ok(())
}

fn figures_of(runs: &Runs, system: &str, case: &'static str, key: &str) -> Vec<f64> {
    runs.get(&(system.to_owned(), case)).map(|lines| figures(lines, key)).unwrap_or_default()
}

fn median_of(runs: &Runs, system: &str, case: &'static str, key: &str) -> Option<f64> {
    median(&figures_of(runs, system, case, key))
}

/// What a case is judged by.
fn key_of(case: &Case) -> &'static str {
    match case.measure {
        Measure::Rate => "jobs_per_s",
        Measure::Latency => "p50_ms",
    }
}

/// The best of the other systems that are `wanted`, and its median.
fn best(case: &Case, choice: &Choice, runs: &Runs, wanted: &dyn Fn(&str) -> bool) -> Option<(String, f64)> {
    let others = choice.systems.iter().filter(|system| *system != CORTEX && wanted(system));
    let known = others.filter_map(|system| {
        let figure = median_of(runs, system, case.name, key_of(case)).filter(|figure| *figure > 0.0)?;
        Some((system.clone(), figure))
    });
    match case.measure {
        Measure::Rate => known.max_by(|one, other| one.1.total_cmp(&other.1)),
        Measure::Latency => known.min_by(|one, other| one.1.total_cmp(&other.1)),
    }
}

/// CORTEX, and by how much it is ahead of the best of the others.
fn comparison(choice: &Choice, runs: &Runs, on_postgres: &dyn Fn(&str) -> bool) -> String {
    let row = |case: &&'static Case| {
        let key = key_of(case);
        let own = median_of(runs, CORTEX, case.name, key);
        let beside = |best: Option<(String, f64)>| {
            let Some((name, figure_of_best)) = best else { return [NONE.to_owned(), NONE.to_owned()] };
            let ahead = match case.measure {
                Measure::Rate => ratio(own, Some(figure_of_best)),
                Measure::Latency => ratio(Some(figure_of_best), own),
            };
            [format!("{} ({name})", figure(figure_of_best)), times(ahead)]
        };
        let [postgres, ahead_of_postgres] = beside(best(case, choice, runs, on_postgres));
        let [any, ahead_of_any] = beside(best(case, choice, runs, &|_| true));
        let of = |key| spread(&figures_of(runs, CORTEX, case.name, key));
        let rate = if case.measure == Measure::Rate { of("jobs_per_s") } else { NONE.to_owned() };
        let (p50, p99) = if case.name == "limit" || case.name == "drain" {
            (NONE.to_owned(), NONE.to_owned())
        } else {
            (of("p50_ms"), of("p99_ms"))
        };
        vec![case.title.to_owned(), rate, p50, p99, postgres, ahead_of_postgres, any, ahead_of_any]
    };
    let rows: Vec<_> = choice.cases.iter().map(row).collect();
    let head = [
        "workload",
        "CORTEX, jobs/s",
        "p50, ms",
        "p99, ms",
        "best on PostgreSQL",
        "CORTEX is ahead",
        "best of all others",
        "CORTEX is ahead",
    ];
    table(&head, &rows)
}

/// Every system with the figure that each workload is judged by.
fn all_systems(choice: &Choice, runs: &Runs) -> String {
    let cases: Vec<&&Case> = choice.cases.iter().filter(|case| case.peer.is_some()).collect();
    let unit = |case: &Case| match case.measure {
        Measure::Rate => "jobs/s",
        Measure::Latency => "p50 / p99 ms",
    };
    let head: Vec<String> = std::iter::once("system".to_owned())
        .chain(cases.iter().map(|case| format!("{}, {}", case.name, unit(case))))
        .collect();
    let cell = |system: &str, case: &Case| {
        let figure_of = |key| median_of(runs, system, case.name, key).map(figure);
        match (case.measure, figure_of(key_of(case)), figure_of("p99_ms")) {
            (Measure::Latency, Some(p50), Some(p99)) => format!("{p50} / {p99}"),
            (Measure::Rate, Some(rate), _) => rate,
            _ if runs.contains_key(&(system.to_owned(), case.name)) => "failed".to_owned(),
            _ => NONE.to_owned(),
        }
    };
    let row = |system: &String| {
        std::iter::once(system.clone()).chain(cases.iter().map(|case| cell(system, case))).collect()
    };
    let rows: Vec<Vec<String>> = choice.systems.iter().map(row).collect();
    table(&head.iter().map(String::as_str).collect::<Vec<_>>(), &rows)
}

fn bars(choice: &Choice, runs: &Runs, on_postgres: &dyn Fn(&str) -> bool) -> String {
    let mut rows = Vec::new();
    for case in &choice.cases {
        let parts = [
            (case.rate, "jobs_per_s", "", "jobs/s"),
            (case.p50, "p50_ms", ", p50", "ms"),
            (case.p99, "p99_ms", ", p99", "ms"),
        ];
        for (bar, key, which, unit) in parts {
            if let Some(bar) = bar {
                let measured = median_of(runs, CORTEX, case.name, key);
                rows.push(bar_row(&format!("{}{which}", case.title), unit, measured, bar));
            }
        }
    }
    let rate = |case| median_of(runs, CORTEX, case, "jobs_per_s");
    let pipeline = choice.cases.iter().find(|case| case.name == "pipeline");
    if let Some(case) = pipeline {
        let peer = best(case, choice, runs, on_postgres).map(|(_, rate)| rate);
        let ahead = ratio(rate("pipeline"), peer);
        rows.push(bar_row("pipeline ÷ best peer on PostgreSQL", "", ahead, Bar::AtLeast(2.5, 2.5)));
        let of_limit = ratio(rate("pipeline"), rate("limit"));
        rows.push(bar_row("pipeline ÷ limit", "", of_limit, Bar::AtLeast(0.25, 0.4)));
        let of_leader = ratio(rate("pipeline-follower"), rate("pipeline"));
        rows.push(bar_row("pipeline through a follower ÷ leader", "", of_leader, Bar::AtLeast(0.75, 0.9)));
    }
    table(&BARS, &rows)
}

fn times(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| NONE.to_owned(), |ratio| format!("{} ×", figure(ratio)))
}
