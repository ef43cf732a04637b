//! `history`: what finished jobs cost. The pipeline on empty stores, and again beside so many of them.

use serde_json::Value;
use sqlx::{Connection, PgConnection};

use crate::report::{BARS, Bar, Report, bar_row, figures, median, ratio, say, spread, table};
use crate::stage::{At, ROOMY, Stage};
use crate::{Failure, Options};

/// Finished jobs.
const FINISHED: i64 = 2_000_000;
/// Jobs of one statement, or of one drain.
const PORTION: i64 = 50_000;

/// A worker of the past.
const WORKER: &str =
    "INSERT INTO workers (id, name, hostname, ip_address, port, status, total_jobs_completed)
    VALUES ('0190a000-0000-7000-8000-000000000001', 'past', 'past', '127.0.0.1', 1, 'offline', 0)
    ON CONFLICT DO NOTHING";

/// Jobs $1 to $2 of $3, 20 ms apart, the last one a day ago. Their ids are of version 7, of their time.
const JOBS: &str = "WITH past AS MATERIALIZED (
        SELECT n, at, (head || '7' || substr(noise, 1, 3) || '8' || substr(noise, 4, 15))::uuid AS id,
            (head || '7' || substr(noise, 18, 3) || '9' || substr(noise, 5, 15))::uuid AS lease
        FROM (SELECT n, at, md5(n::text || random()) AS noise,
                  lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') AS head
              FROM (SELECT n, now() - interval '1 day' - make_interval(secs => ($3 - n) * 0.02) AS at
                    FROM generate_series($1::bigint, $2::bigint) n) moments) parts
    ), stored AS (
        INSERT INTO jobs (id, name, model_name, model_version, status, max_retries, input_data, output_data,
            assigned_worker_id, assigned_at, submitted_at, queued_at, started_at, completed_at,
            execution_duration_ms, queue_wait_time_ms, created_at, updated_at)
        SELECT id, 'past', 'past-' || n % 50, '1', 'completed', 3,
            jsonb_build_object('t', lpad(n::text, 16, '0'), 'payload', repeat('x', 166)),
            '{\"ok\": true, \"n\": 1}', '0190a000-0000-7000-8000-000000000001', at + interval '3 ms', at, at,
            at + interval '5 ms', at + interval '9 ms', 4, 3, at, at + interval '9 ms'
        FROM past
    )
    INSERT INTO executions (id, job_id, worker_id, attempt_number, status, started_at, completed_at, duration_ms,
        output_data, lease_expires_at, created_at)
    SELECT lease, id, '0190a000-0000-7000-8000-000000000001', 1, 'completed', at + interval '5 ms',
        at + interval '9 ms', 4, '{\"ok\": true, \"n\": 1}', at + interval '1 hour', at + interval '3 ms'
    FROM past";

/// As the transactions would have counted them.
const COUNTED: &str = "WITH counted AS (
        UPDATE job_counters SET completed = completed + $1, executions = executions + $1,
            execution_ms = execution_ms + 4 * $1, waits = waits + $1, wait_ms = wait_ms + 3 * $1
        WHERE slot = 31
    )
    UPDATE workers SET total_jobs_completed = $1, executions = $1, execution_ms = 4 * $1, average_execution_time_ms = 4
    WHERE hostname = 'past'";

pub async fn run(options: &Options, report: &mut Report) -> Result<(), Failure> {
    let finished = options.size(FINISHED, 20_000);
    let stage = Stage::start(ROOMY).await?;
    let fresh = pipelines(options, report, &stage, "pipeline-fresh").await?;
    say(&format!("{finished} jobs are being finished"));
    if options.through_cortex {
        let portion = PORTION.min(finished);
        for _ in 0..finished / portion {
            stage.bench(At::Leader, &["drain", "--jobs", &portion.to_string()]).await?;
        }
    } else {
        insert(stage.cluster.database_url(), finished).await?;
    }
    let aged = pipelines(options, report, &stage, "pipeline-aged").await?;
    stage.stop().await?;
    let [fresh, aged] = [fresh, aged].map(|lines| figures(&lines, "jobs_per_s"));
    let rows = [vec!["0".to_owned(), spread(&fresh)], vec![finished.to_string(), spread(&aged)]];
    let part = ratio(median(&aged), median(&fresh));
    let bar = bar_row("pipeline after finished jobs ÷ at the start", "", part, Bar::AtLeast(0.9, 0.97));
    let head = ["finished jobs before", "pipeline, jobs/s"];
    report.print("history", &format!("{}\n{}", table(&head, &rows), table(&BARS, &[bar])))
}

async fn pipelines(
    options: &Options,
    report: &mut Report,
    stage: &Stage,
    case: &str,
) -> Result<Vec<Value>, Failure> {
    let seconds = options.size("20", "1");
    let mut lines = Vec::new();
    for round in 1..=options.runs() {
        let line = stage.bench_once(At::Leader, &["pipeline", "--seconds", seconds]).await?;
        report.keep("cortex", case, round, &line)?;
        lines.push(line);
    }
    Ok(lines)
}

/// Puts finished jobs straight into the tables, and leaves these as a database that has had time to look after
/// them: dead rows removed, statistics taken, pages written.
async fn insert(url: &str, finished: i64) -> Result<(), Failure> {
    let mut database = PgConnection::connect(url).await?;
    sqlx::query(WORKER).execute(&mut database).await?;
    let mut from = 1;
    while from <= finished {
        let to = (from + PORTION - 1).min(finished);
        sqlx::query(JOBS).bind(from).bind(to).bind(finished).execute(&mut database).await?;
        from = to + 1;
    }
    sqlx::query(COUNTED).bind(finished).execute(&mut database).await?;
    for upkeep in ["VACUUM (ANALYZE) jobs", "VACUUM (ANALYZE) executions", "CHECKPOINT"] {
        sqlx::query(upkeep).execute(&mut database).await?;
    }
    let stored: i64 =
        sqlx::query_scalar("SELECT count(*) FROM jobs WHERE name = 'past' AND status = 'completed'")
            .fetch_one(&mut database)
            .await?;
    database.close().await?;
    if stored == finished { Ok(()) } else { Err(format!("{stored} of {finished} jobs were stored").into()) }
}
