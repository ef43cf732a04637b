//! Jobs of the past, put straight into the tables with their executions.

use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::Failure;

/// Jobs of one statement.
const PORTION: i64 = 50_000;

/// A worker of the past.
const WORKER: &str = "INSERT INTO workers (id, name, hostname, ip_address, port, status)
    VALUES ('0190a000-0000-7000-8000-000000000001', 'past', 'past', '127.0.0.1', 1, 'offline')
    ON CONFLICT DO NOTHING";

/// Jobs $1 to $2 of $3, 20 ms apart, the last one $4 ago; ids are of version 7, of their time. 97 % are completed, 2 %
/// failed, 1 % cancelled or timed out. Of 500 models and 200 creators the nth is asked for about 1/n times as often as
/// the first; a tenth has no creator. Six of ten have the default priority, one of 200 the highest. Seven of ten have
/// tags: 40 % are of one environment, 1.4 % of each team, 70 in a million of each run.
const JOBS: &str = "WITH past AS MATERIALIZED (
        SELECT n, at, (head || '7' || substr(noise, 1, 3) || '8' || substr(noise, 4, 15))::uuid AS id,
            (head || '7' || substr(noise, 18, 3) || '9' || substr(noise, 5, 15))::uuid AS lease, u
        FROM (SELECT n, at, md5(n::text || random()) AS noise,
                  lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0') AS head,
                  ARRAY(SELECT abs(hashint8(n + 10000000 * kind)::bigint) % 1000000 / 1e6::float8
                        FROM generate_series(1, 5) kind) AS u
              FROM (SELECT n, now() - $4::text::interval - make_interval(secs => ($3 - n) * 0.02) AS at
                    FROM generate_series($1::bigint, $2::bigint) n) moments) parts
    ), shaped AS (
        SELECT n, at, id, lease,
            CASE WHEN u[1] < 0.97 THEN 'completed' WHEN u[1] < 0.99 THEN 'failed'
                WHEN u[1] < 0.995 THEN 'cancelled' ELSE 'timeout' END AS status,
            CASE WHEN u[2] < 0.6 THEN 5 WHEN u[2] < 0.995 THEN 1 + floor(u[2] * 1000)::int % 9 ELSE 10 END AS priority,
            'model-' || floor(exp(u[3] * ln(501)))::int - 1 AS model,
            CASE WHEN u[4] > 0.1 THEN 'creator-' || floor(exp((u[4] - 0.1) / 0.9 * ln(201)))::int - 1 END AS creator,
            CASE WHEN u[5] < 0.7 THEN jsonb_build_object('env', CASE WHEN u[5] < 0.4 THEN 'prod' ELSE 'dev' END,
                'team', 'team-' || n % 50, 'run', 'run-' || n % 10000) ELSE '{}' END AS tags
        FROM past
    ), stored AS (
        INSERT INTO jobs (id, name, model_name, model_version, status, priority, max_retries, input_data,
            output_data, assigned_worker_id, assigned_at, submitted_at, queued_at, started_at, completed_at,
            execution_duration_ms, queue_wait_time_ms, tags, created_by, created_at, updated_at)
        SELECT id, 'past', model, '1', status, priority, 3,
            jsonb_build_object('t', lpad(n::text, 16, '0'), 'payload', repeat('x', 166)),
            '{\"ok\": true, \"n\": 1}', '0190a000-0000-7000-8000-000000000001', at + interval '3 ms', at, at,
            at + interval '5 ms', at + interval '9 ms', 4, 3, tags, creator, at, at + interval '9 ms'
        FROM shaped
    )
    INSERT INTO executions (id, job_id, worker_id, attempt_number, status, started_at, completed_at, duration_ms,
        output_data, lease_expires_at, created_at)
    SELECT lease, id, '0190a000-0000-7000-8000-000000000001', 1, status, at + interval '5 ms',
        at + interval '9 ms', 4, '{\"ok\": true, \"n\": 1}', at + interval '1 hour', at + interval '3 ms'
    FROM shaped";

/// Rows $1 of the queue's metrics, a second apart, the last one $2 ago.
const METRICS: &str =
    "INSERT INTO queue_metrics (queue_depth, pending_jobs, running_jobs, total_workers, idle_workers,
        busy_workers, recorded_at)
    SELECT 0, 0, 0, 1, 1, 0, now() - $2::text::interval - make_interval(secs => n)
    FROM generate_series(1, $1::bigint) n";

/// Puts finished jobs into the tables, the last of which ended `ago`, and leaves these as a database that has had
/// time to look after them: statistics taken, pages written, and known to be visible to all.
pub async fn plant(url: &str, jobs: i64, ago: &str) -> Result<(), Failure> {
    let mut database = PgConnection::connect(url).await?;
    sqlx::query(WORKER).execute(&mut database).await?;
    let mut from = 1;
    while from <= jobs {
        let to = (from + PORTION - 1).min(jobs);
        sqlx::query(JOBS).bind(from).bind(to).bind(jobs).bind(ago).execute(&mut database).await?;
        from = to + 1;
    }
    for status in ["completed", "failed", "cancelled", "timeout"] {
        // As the transactions would have counted them.
        let counted = format!(
            "UPDATE job_counters SET {status} = {status} +
                 (SELECT count(*) FROM jobs WHERE name = 'past' AND status = '{status}') WHERE slot = 31"
        );
        sqlx::query(AssertSqlSafe(counted)).execute(&mut database).await?;
    }
    for upkeep in
        ["VACUUM (ANALYZE) jobs", "VACUUM (ANALYZE) job_tags", "VACUUM (ANALYZE) executions", "CHECKPOINT"]
    {
        sqlx::query(upkeep).execute(&mut database).await?;
    }
    let stored = left(&mut database).await?;
    database.close().await?;
    if stored == jobs { Ok(()) } else { Err(format!("{stored} of {jobs} jobs were stored").into()) }
}

/// Puts rows of the queue's metrics into their table, the newest of which is from `ago`.
pub async fn plant_metrics(url: &str, rows: i64, ago: &str) -> Result<(), Failure> {
    let mut database = PgConnection::connect(url).await?;
    sqlx::query(METRICS).bind(rows).bind(ago).execute(&mut database).await?;
    Ok(database.close().await?)
}

/// How many of the jobs are still there.
pub async fn left(database: &mut PgConnection) -> Result<i64, Failure> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM jobs WHERE name = 'past'").fetch_one(database).await?)
}
