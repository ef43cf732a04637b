//! `overload`: more than can be done. What is too much must be refused (429 or 503) while as many jobs as before
//! are run and memory does not grow. The queue has the bound that it has by default in production.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use crate::load::{Crew, Kind, Offered, Submitter, job};
use crate::process::resident_mib;
use crate::report::{NONE, Report, figure, figures, median, ratio, say, table};
use crate::stage::{At, Stage};
use crate::{Failure, Options};

/// Jobs that may wait: the default of `queue.max_queue_size`, which `cortex dev` widens.
const ROOM: u32 = 10_000;
/// Workers, as many as `cortex bench` runs, with as many slots.
const WORKERS: usize = 8;
/// Jobs that a drain measures: fewer than the queue takes.
const DRAINED: &str = "9000";
/// Jobs of one offer.
const OFFER: u16 = 25;
/// Offers in flight at the most. One that finds no free connection is not made, and counts as held back.
const CONNECTIONS: usize = 512;
/// Parts of the time after which memory is looked at.
const LOOKS: u64 = 10;

/// The offers of some time.
#[derive(Debug, Clone, Copy, Default)]
struct Count {
    stored: u64,
    refused: u64,
    held_back: u64,
}

pub async fn run(options: &Options, report: &mut Report) -> Result<(), Failure> {
    let seconds = options.size(30, 3);
    let text = seconds.to_string();
    let mut runs: [Vec<Value>; 4] = Default::default();
    for round in 1..=options.runs() {
        let stage = Stage::start(ROOM).await?;
        let drained = stage.bench_once(At::Leader, &["drain", "--jobs", DRAINED]).await?;
        let usual = stage.bench_once(At::Leader, &["pipeline", "--seconds", &text]).await?;
        let rate = usual["jobs_per_s"].as_f64().unwrap_or(0.0);
        let before = resident_mib(stage.leader_pid().await?)?;
        let crowded = ["pipeline", "--in-flight", "256", "--seconds", &text];
        let crowded = stage.bench_once(At::Leader, &crowded).await?;
        let twice = format!("{:.0}", (2.0 * rate).max(2.0));
        let paced = ["soak", "--rate", &twice, "--in-flight", "2048", "--seconds", &text];
        let paced = stage.bench_once(At::Leader, &paced).await?;
        // No pipeline is faster than a drain, so this cannot be done however jobs are submitted.
        let most = drained["jobs_per_s"].as_f64().unwrap_or(0.0).max(rate);
        let open = offer(&stage, 2.0 * most, Duration::from_secs(seconds)).await?;
        let after = resident_mib(stage.leader_pid().await?)?;
        say(&format!("the leader holds {} MiB before, {} MiB after", figure(before), figure(after)));
        let memory = json!({"resident_mib": after, "resident_before_mib": before});
        let cases = ["usual", "crowded", "paced", "offered"];
        for ((case, mut line), kept) in cases.into_iter().zip([usual, crowded, paced, open]).zip(&mut runs) {
            match case {
                "paced" => line["offered_per_s"] = json!(2.0 * rate),
                "offered" => line["memory"] = memory.clone(),
                _ => {}
            }
            report.keep("cortex", case, round, &line)?;
            kept.push(line);
        }
        stage.stop().await?;
    }
    report.print("overload", &rows(&runs))
}

fn rows(runs: &[Vec<Value>; 4]) -> String {
    let titles = [
        "64 connections, as fast as answered",
        "256 connections, as fast as answered",
        "singles at twice that rate, 2,048 connections",
        "25 in a call, at twice the rate of a drain, not waiting for answers",
    ];
    let usual = median(&figures(&runs[0], "jobs_per_s"));
    let row = |(title, lines): (&str, &Vec<Value>)| {
        let of = |key| median(&figures(lines, key));
        let shown = |figures: Option<f64>| figures.map_or_else(|| NONE.to_owned(), figure);
        let memory: Vec<Value> = lines.iter().map(|line| line["memory"].clone()).collect();
        let held = |key| median(&figures(&memory, key));
        let grown = match (held("resident_before_mib"), held("resident_mib")) {
            (Some(before), Some(after)) => format!("{} → {}", figure(before), figure(after)),
            _ => NONE.to_owned(),
        };
        vec![
            title.to_owned(),
            shown(of("offered_per_s")),
            shown(of("jobs_per_s")),
            shown(ratio(of("jobs_per_s"), usual)),
            shown(of("refused")),
            shown(of("p99_ms")),
            grown,
        ]
    };
    let rows: Vec<_> = titles.into_iter().zip(runs).map(row).collect();
    let head = [
        "load",
        "offered, jobs/s",
        "run, jobs/s",
        "÷ first row",
        "refused",
        "p99, ms",
        "leader's memory, MiB",
    ];
    table(&head, &rows)
}

/// Offers jobs at a rate, whatever the answers are.
async fn offer(stage: &Stage, rate: f64, time: Duration) -> Result<Value, Failure> {
    let kind = || Kind { model: "overload".to_owned(), slots: 100, heartbeat: Duration::from_secs(1) };
    let crew = Crew::start(&stage.cluster.grpc_endpoints(), std::iter::repeat_with(kind).take(WORKERS))?;
    let submitter = Submitter::new(&stage.leader_url().await?)?;
    let leader = stage.leader_pid().await?;
    submitter.batch(&[job("overload", crew.tally.micros())]).await?;
    crew.tally.reached(1).await?;
    crew.tally.take_times();

    let (began, handled) = (crew.tally.micros(), crew.tally.handled());
    let period = Duration::from_secs_f64(f64::from(OFFER) / rate.max(1.0));
    let mut clock = interval(period);
    clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut looks = interval(time / u32::try_from(LOOKS).unwrap_or(1));
    let (mut calls, mut count, mut largest) = (JoinSet::new(), Count::default(), 0.0_f64);
    while u128::from(crew.tally.micros() - began) < time.as_micros() {
        tokio::select! {
            _ = clock.tick() => {
                if calls.len() >= CONNECTIONS {
                    count.held_back += u64::from(OFFER);
                    continue;
                }
                let (submitter, tally) = (submitter.clone(), crew.tally.clone());
                calls.spawn(async move {
                    let job = job("overload", tally.micros());
                    submitter.batch(&vec![job; usize::from(OFFER)]).await
                });
            }
            Some(call) = calls.join_next(), if !calls.is_empty() => count.add(call??),
            _ = looks.tick() => largest = largest.max(resident_mib(leader)?),
        }
    }
    let seconds = f64::from(u32::try_from(crew.tally.micros() - began).unwrap_or(u32::MAX)) / 1e6;
    let run = crew.tally.handled() - handled;
    while let Some(call) = calls.join_next().await {
        count.add(call??);
    }
    // Everything that was stored is run: the queue is as it was.
    crew.tally.reached(handled + count.stored).await?;
    let times = crew.tally.take_times();
    crew.dismiss().await?;
    let all = count.stored + count.refused + count.held_back;
    #[expect(clippy::cast_precision_loss, reason = "rates for people")]
    let (run_per_s, offered_per_s) = (run as f64 / seconds, all as f64 / seconds);
    #[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
    let p99_ms = times.value_at_percentile(99.0) as f64 / 1000.0;
    Ok(json!({
        "workload": "offered", "jobs": run, "seconds": seconds, "jobs_per_s": run_per_s,
        "offered_per_s": offered_per_s, "stored": count.stored, "refused": count.refused,
        "held_back": count.held_back, "p99_ms": p99_ms, "largest_resident_mib": largest,
    }))
}

impl Count {
    fn add(&mut self, offered: Offered) {
        match offered {
            Offered::Stored => self.stored += u64::from(OFFER),
            Offered::Refused => self.refused += u64::from(OFFER),
        }
    }
}
