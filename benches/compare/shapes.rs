//! `shapes`: a large fleet. 1,000 workers of 500 kinds are connected; what does the leader cost while nothing
//! happens, how soon does a job start, and what does the leader hold while a million jobs wait?

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval, sleep};

use crate::load::{Crew, Kind, Offered, Submitter, job};
use crate::process::{cpu_seconds, resident_mib};
use crate::report::{BARS, Bar, Report, bar_row, figures, median, say, table};
use crate::stage::{ROOMY, Stage};
use crate::{Failure, Options};

const SHAPES: usize = 500;
const WORKERS: usize = 1_000;
const SLOTS: usize = 10;
const HEARTBEAT: Duration = Duration::from_secs(30);
/// Submissions a second.
const RATE: u32 = 200;
/// Jobs that wait and that no worker can take.
const WAITING: usize = 1_000_000;

/// A cluster with its fleet, and how long it is looked at.
struct Scene {
    stage: Stage,
    crew: Crew,
    submitter: Submitter,
    shapes: usize,
    idle: Duration,
    dispatched: Duration,
}

pub async fn run(options: &Options, report: &mut Report) -> Result<(), Failure> {
    let waiting = options.size(WAITING, 10_000);
    let mut lines = Vec::new();
    for round in 1..=options.runs() {
        let scene = Scene::set(options).await?;
        let alone = scene.measure().await?;
        report.keep("cortex", "shapes", round, &alone)?;
        say(&format!("{waiting} jobs are being stored"));
        let unfit = |number: usize| {
            let mut job = job(&model(number % scene.shapes), 0);
            job["metadata"] = json!({"requires_gpu": true});
            job
        };
        scene.submitter.store(waiting, unfit).await?;
        let beside = scene.measure().await?;
        report.keep("cortex", "shapes-waiting", round, &beside)?;
        lines.push((alone, beside));
        // Workers that lose their cluster first would complain.
        scene.crew.dismiss().await?;
        scene.stage.stop().await?;
    }
    let (alone, beside): (Vec<Value>, Vec<Value>) = lines.into_iter().unzip();
    let of = |lines: &[Value], key| median(&figures(lines, key));
    let rows = [
        ("leader, idle", "% of a core", of(&alone, "idle_percent"), Bar::AtMost(10.0, 5.0)),
        ("dispatch, p99", "ms", of(&alone, "p99_ms"), Bar::AtMost(20.0, 10.0)),
        ("leader, idle, jobs waiting", "% of a core", of(&beside, "idle_percent"), Bar::AtMost(10.0, 5.0)),
        ("dispatch, p99, jobs waiting", "ms", of(&beside, "p99_ms"), Bar::AtMost(20.0, 10.0)),
        ("leader's memory, jobs waiting", "MiB", of(&beside, "resident_mib"), Bar::AtMost(300.0, 150.0)),
    ];
    let rows: Vec<_> =
        rows.into_iter().map(|(what, unit, measured, bar)| bar_row(what, unit, measured, bar)).collect();
    report.print("shapes", &format!("{waiting} jobs waiting where some do.\n\n{}", table(&BARS, &rows)))
}

impl Scene {
    /// Starts the cluster and the fleet, and runs a job of each shape.
    async fn set(options: &Options) -> Result<Self, Failure> {
        let stage = Stage::start(ROOMY).await?;
        let shapes = options.size(SHAPES, 50);
        let kinds = (0..options.size(WORKERS, 100)).map(|number| Kind {
            model: model(number % shapes),
            slots: SLOTS,
            heartbeat: HEARTBEAT,
        });
        let crew = Crew::start(&stage.cluster.grpc_endpoints(), kinds)?;
        let submitter = Submitter::new(&stage.leader_url().await?)?;
        submitter.store(shapes, |number| job(&model(number), crew.tally.micros())).await?;
        crew.tally.reached(shapes as u64).await?;
        let seconds = |full, quick| Duration::from_secs(options.size(full, quick));
        Ok(Self { stage, crew, submitter, shapes, idle: seconds(30, 2), dispatched: seconds(20, 2) })
    }

    /// What the leader costs while nothing happens, how soon jobs start, and what it holds.
    async fn measure(&self) -> Result<Value, Failure> {
        let leader = self.stage.leader_pid().await?;
        // What was stored or connected last is settled in the meantime.
        sleep(self.idle / 3).await;
        let before = cpu_seconds(leader)?;
        sleep(self.idle).await;
        let spent = cpu_seconds(leader)? - before;
        let idle_percent = 100.0 * spent / self.idle.as_secs_f64();
        let jobs = self.dispatch().await?;
        let times = self.crew.tally.take_times();
        #[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
        let ms = |percentile| times.value_at_percentile(percentile) as f64 / 1000.0;
        Ok(json!({
            "workload": "shapes", "jobs": jobs, "idle_percent": idle_percent, "p50_ms": ms(50.0),
            "p99_ms": ms(99.0), "max_ms": ms(100.0), "resident_mib": resident_mib(leader)?,
        }))
    }

    /// Submits at a modest rate, each job of another shape, and waits until all have started.
    async fn dispatch(&self) -> Result<u64, Failure> {
        let before = self.crew.tally.handled();
        self.crew.tally.take_times();
        let mut clock = interval(Duration::from_secs(1) / RATE);
        clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let jobs = self.dispatched.as_secs() * u64::from(RATE);
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..jobs {
            clock.tick().await;
            let (submitter, tally) = (self.submitter.clone(), self.crew.tally.clone());
            // A step that has no divisor in common with the number of shapes visits all of them.
            let model = model(usize::try_from(number).unwrap_or(0) * 37 % self.shapes);
            calls.spawn(async move { submitter.single(&job(&model, tally.micros())).await });
        }
        while let Some(call) = calls.join_next().await {
            if call?? == Offered::Refused {
                return Err("a job was refused at a modest rate".into());
            }
        }
        self.crew.tally.reached(before + jobs).await?;
        Ok(jobs)
    }
}

/// The model that jobs and workers of a shape are about.
fn model(number: usize) -> String {
    format!("shape-{number}")
}
