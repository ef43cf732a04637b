//! `retention`: dispatch while a million old jobs, their executions and old rows of the queue's metrics are pruned.

use cortex::domain::ambient::{Ambient, System};
use reqwest::StatusCode;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use crate::past::{left, plant, plant_metrics};
use crate::report::{Report, figure, figures, median, say, spread, table};
use crate::stage::{At, ROOMY, Stage};
use crate::{Failure, Options};

/// Finished jobs that are older than `retention.finished_jobs`.
const OLD: i64 = 1_000_000;
/// Rows that are older than `retention.queue_metrics`.
const OLD_METRICS: i64 = 100_000;
/// Submissions a second meanwhile.
const RATE: &str = "300";
/// More runs than pruning should take.
const MOST_RUNS: u32 = 120;

pub async fn run(options: &Options, report: &mut Report) -> Result<(), Failure> {
    let (old, metrics) = (options.size(OLD, 20_000), options.size(OLD_METRICS, 2_000));
    let stage = Stage::start(ROOMY).await?;
    say(&format!("{old} old jobs and {metrics} old rows of metrics are being stored"));
    plant(stage.cluster.database_url(), old, "40 days").await?;
    plant_metrics(stage.cluster.database_url(), metrics, "40 days").await?;
    let mut before = Vec::new();
    for round in 1..=options.runs() {
        before.push(latency(options, report, &stage, "before", round).await?);
    }
    let mut database = PgConnection::connect(stage.cluster.database_url()).await?;
    if left(&mut database).await? < old {
        return Err("pruning began too early: storing took longer than its period".into());
    }
    // A new leader begins with a sweep.
    hand_over(&stage).await?;
    let (began, mut during) = (System.instant(), Vec::new());
    let (mut seconds, mut remaining) = (0.0, old);
    while remaining > 0 && during.len() < MOST_RUNS as usize {
        let round = u32::try_from(during.len()).unwrap_or(u32::MAX) + 1;
        during.push(latency(options, report, &stage, "during", round).await?);
        seconds = (System.instant() - began).as_secs_f64();
        remaining = left(&mut database).await?;
        say(&format!("{remaining} old jobs are left after {} s", figure(seconds)));
    }
    let executions = count(
        &mut database,
        "SELECT count(*) FROM executions WHERE worker_id = '0190a000-0000-7000-8000-000000000001'",
    )
    .await?;
    let rows = count(
        &mut database,
        "SELECT count(*) FROM queue_metrics WHERE recorded_at < now() - interval '7 days'",
    )
    .await?;
    database.close().await?;
    stage.stop().await?;
    let gone = old - remaining;
    #[expect(clippy::cast_precision_loss, reason = "a count of rows")]
    let rate = gone as f64 / seconds;
    report.keep(
        "cortex",
        "pruned",
        1,
        &json!({"jobs": gone, "seconds": seconds, "jobs_per_s": rate,
        "left": remaining, "executions_left": executions, "queue_metrics_left": rows}),
    )?;
    let row = |name: &str, lines: &[Value]| {
        vec![name.to_owned(), spread(&figures(lines, "p50_ms")), spread(&figures(lines, "p99_ms"))]
    };
    let during_name = format!("during, {gone} jobs in {} s: {} a second", figure(seconds), figure(rate));
    let head = ["pruning", "p50, ms", "p99, ms"];
    let left = format!(
        "Left afterwards: {remaining} old jobs, {executions} of their executions, {rows} old rows of `queue_metrics`.",
    );
    report.print(
        "retention",
        &format!("{}\n{left}", table(&head, &[row("before", &before), row(&during_name, &during)])),
    )?;
    let p99 = |lines: &[Value]| median(&figures(lines, "p99_ms")).map_or_else(String::new, figure);
    say(&format!("p99 before {} ms, during {} ms", p99(&before), p99(&during)));
    Ok(())
}

async fn latency(
    options: &Options,
    report: &mut Report,
    stage: &Stage,
    case: &str,
    round: u32,
) -> Result<Value, Failure> {
    let seconds = options.size("20", "2");
    let line = stage.bench_once(At::Follower, &["latency", "--rate", RATE, "--seconds", seconds]).await?;
    report.keep("cortex", case, round, &line)?;
    Ok(line)
}

async fn count(database: &mut PgConnection, query: &'static str) -> Result<i64, Failure> {
    Ok(sqlx::query_scalar(query).fetch_one(database).await?)
}

/// Lets another replica lead.
async fn hand_over(stage: &Stage) -> Result<(), Failure> {
    let former = stage.leader().await?;
    let url = format!("http://{}/api/v1/cluster/transfer", stage.cluster.http(former));
    let answer = reqwest::Client::new().post(url).json(&json!({})).send().await?;
    if answer.status() != StatusCode::OK && answer.status() != StatusCode::NO_CONTENT {
        return Err(format!("the transfer was answered {}: {}", answer.status(), answer.text().await?).into());
    }
    Ok(())
}
