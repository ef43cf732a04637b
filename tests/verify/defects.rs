//! Each defect, planted into a copy of stores that nobody writes to any more, is found and named.

use std::collections::BTreeSet;

use clap::Parser;
use cortex::cli::args::Cli;
use cortex::verify::{CHECKS, Verdict};
use redis::aio::MultiplexedConnection;
use reqwest::Method;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::scene::{Scene, off, verify};
use crate::support::eventually;

/// A statement that plants a defect, and what is found then: all of it, nothing else.
type Planted = (&'static str, &'static [&'static str]);

/// Into PostgreSQL. Jobs are named by their models: `twice` ended with its second attempt, `stays` runs.
const ROWS: [Planted; 29] = [
    ("UPDATE _sqlx_migrations SET checksum = 'x' WHERE version = 5", &["schema_current"]),
    ("DELETE FROM _sqlx_migrations WHERE version = 13", &["schema_current"]),
    ("INSERT INTO _sqlx_migrations SELECT 9999, description, installed_on, success, checksum, execution_time
      FROM _sqlx_migrations WHERE version = 1", &["schema_current"]),
    ("ALTER TABLE jobs DROP CONSTRAINT jobs_priority_in_range", &["constraints_in_force"]),
    ("ALTER TABLE jobs DROP CONSTRAINT jobs_end_is_dated,
          ADD CONSTRAINT jobs_end_is_dated CHECK (completed_at IS NULL OR status <> 'queued') NOT VALID",
     &["constraints_in_force"]),
    ("DELETE FROM leadership", &["leadership_known", "queue_epoch_current"]),
    ("UPDATE job_counters SET completed = completed + 2 WHERE slot = 7", &["counters_match_rows"]),
    ("UPDATE executions SET attempt_number = 1 WHERE job_id = (SELECT id FROM jobs WHERE model_name = 'twice')",
     &["attempts_in_sequence"]),
    ("UPDATE jobs SET retry_count = 0 WHERE model_name = 'twice'", &["attempts_in_sequence"]),
    ("UPDATE jobs SET retry_count = 1 WHERE model_name = 'stays'", &["attempts_in_sequence"]),
    ("DELETE FROM executions WHERE attempt_number = 1 AND job_id = (SELECT id FROM jobs WHERE model_name = 'twice')",
     &["attempts_without_gaps"]),
    ("UPDATE executions SET created_at = (SELECT min(completed_at) - interval '1 microsecond' FROM executions e
          WHERE e.job_id = executions.job_id)
      WHERE attempt_number = 2 AND job_id = (SELECT id FROM jobs WHERE model_name = 'twice')",
     &["one_lease_at_a_time"]),
    ("WITH again AS (
          INSERT INTO executions (id, job_id, worker_id, attempt_number, status, completed_at, created_at)
          SELECT gen_random_uuid(), job_id, worker_id, 3, 'completed', completed_at, completed_at FROM executions
          WHERE status = 'completed' AND job_id = (SELECT id FROM jobs WHERE model_name = 'twice'))
      UPDATE jobs SET retry_count = 2 WHERE model_name = 'twice'", &["completed_once"]),
    ("UPDATE jobs SET status = 'failed' WHERE model_name = 'twice'",
     &["counters_match_rows", "completed_once", "jobs_end_as_their_attempts"]),
    ("DELETE FROM executions WHERE job_id = (SELECT id FROM jobs WHERE model_name = 'twice')",
     &["jobs_end_as_their_attempts"]),
    ("DELETE FROM jobs WHERE model_name = 'twice'", &["counters_match_rows", "executions_have_jobs", "keys_have_jobs"]),
    ("UPDATE executions SET status = 'failed', completed_at = now()
      WHERE job_id = (SELECT id FROM jobs WHERE model_name = 'stays')", &["leases_match_executions"]),
    ("UPDATE executions SET worker_id = (SELECT id FROM workers WHERE port = 1) WHERE status = 'running'",
     &["leases_match_executions"]),
    ("UPDATE jobs SET lease_id = (SELECT id FROM executions WHERE status = 'completed' LIMIT 1)
      WHERE model_name = 'stays'",
     // The execution that is live is held by nobody, and the one that is held has ended.
     &["leases_match_executions", "leases_match_jobs"]),
    ("DELETE FROM leases", &["leases_match_jobs"]),
    ("INSERT INTO leases (job_id, id) SELECT id, gen_random_uuid() FROM jobs WHERE model_name = 'twice'",
     &["leases_match_jobs"]),
    ("DELETE FROM workers WHERE port = 2", &["lease_holders_known"]),
    ("UPDATE workers SET status = 'offline' WHERE port = 2", &["leases_of_lost_workers"]),
    ("UPDATE workers SET last_heartbeat = now() - interval '10 minutes' WHERE port = 2", &["leases_of_lost_workers"]),
    ("UPDATE jobs SET lease_expires_at = now() - interval '1 minute' WHERE model_name = 'stays'", &["leases_expired"]),
    ("UPDATE jobs SET lease_expires_at = now() - interval '1 minute' WHERE model_name = 'driven'", &["leases_expired"]),
    ("UPDATE jobs SET next_retry_at = now() - interval '1 minute' WHERE model_name = 'later'", &["retries_promoted"]),
    ("UPDATE workers SET current_job_count = 9, updated_at = now() - interval '1 minute' WHERE port = 1",
     &["worker_load_matches_leases"]),
    ("UPDATE jobs SET completed_at = started_at - interval '1 minute' WHERE model_name = 'twice'", &["times_in_order"]),
];

/// Into Redis: commands with words parted by spaces. `@` begins a key of the queue, `#a` and `#b` are jobs that are
/// queued with priority 3, `#done` one that has ended, and `#score` is the place of `#a`.
const ENTRIES: [Planted; 14] = [
    ("DEL @generation", &["queue_whole"]),
    ("SET @epoch 999999", &["queue_epoch_current"]),
    ("HINCRBY @depth 3 1", &["queue_depth_matches_entries"]),
    ("ZADD @shapes 9000000000000000 0:0:nobody", &["queue_shapes_found_in_order"]),
    ("ZADD @shapes 1 strange", &["queue_shapes_found_in_order"]),
    ("ZREM @shape:0:0:nobody #a; HSET @claims #a 1_#score_0:0:nobody", &["claims_settled"]),
    ("HSET @claims #done nonsense", &["claims_settled"]),
    ("ZADD @shape:0:0:nobody #score #done; HINCRBY @depth 3 1", &["queue_entries_wait"]),
    ("ZADD @shape:0:0:nobody #score garbage; HINCRBY @depth 3 1", &["queue_entries_wait"]),
    (
        "ZADD @shape:0:0:nobody #score 00000000-0000-7000-8000-000000000000; HINCRBY @depth 3 1",
        &["queue_entries_wait"],
    ),
    (
        "ZREM @shape:0:0:nobody #a; ZADD @shape:1:0:nobody #score #a; ZADD @shapes #score 1:0:nobody",
        &["queue_entries_in_place", "queued_jobs_in_queue"],
    ),
    ("ZINCRBY @shape:0:0:nobody 1000 #b", &["queue_entries_in_place"]),
    ("HSET @claims #a 99999999999999_#score_0:0:nobody; HINCRBY @depth 3 1", &["queue_entries_unclaimed"]),
    ("ZREM @shape:0:0:nobody #a; HINCRBY @depth 3 -1", &["queued_jobs_in_queue"]),
];

/// The same where the registry of sets lacks one.
const HIDDEN: Planted = ("ZREM @shapes 0:0:nobody", &["queue_depth_matches_entries", "queued_jobs_found"]);

/// A key that stands for a job that is not stored.
const KEYS: Planted = (
    "UPDATE idempotency_keys SET created_at = now() - interval '2 minutes', job_ids = ARRAY[gen_random_uuid()]
     WHERE key = (SELECT min(key) FROM idempotency_keys)",
    &["keys_have_jobs"],
);

/// The stores of a replica that has stopped, with jobs in every state.
struct Left {
    scene: Scene,
    redis: MultiplexedConnection,
    admin: PgConnection,
    queued: Vec<String>,
    done: String,
    copies: u32,
}

impl Left {
    async fn behind() -> Self {
        let mut scene = Scene::start().await;
        scene.start_worker(1, &["twice"], 1);
        scene.start_worker(2, &["stays"], 1);
        let soon = json!({"retry_policy": {"initial_delay_seconds": 1}});
        let twice = json!({"input_data": {"fails": 1}, "max_retries": 1, "metadata": soon});
        let done = scene.submit("twice", 1, twice).await.remove(0);
        scene.submit("stays", 1, json!({"input_data": {"stays": true}})).await;
        scene.submit("later", 2, json!({"run_at": "2999-01-01T00:00:00Z"})).await;
        let queued = scene.submit("nobody", 4, json!({"priority": 3})).await;
        let driven = scene.submit("driven", 1, json!({})).await.remove(0);
        scene.ask(Method::PATCH, &format!("/api/v1/jobs/{driven}"), json!({"status": "running"})).await;
        eventually("all is as it should be", async || {
            scene.count("twice", "completed").await == 1
                && scene.count("stays", "running").await == 1
                && scene.verify(0).await.1 == 0
        })
        .await;
        scene.stop().await;
        // As if they were heard for as long as the test takes.
        let heard = "UPDATE workers SET last_heartbeat = now() + interval '1 hour', updated_at = now() + interval '1 hour'";
        sqlx::query(heard).execute(&scene.pool).await.unwrap();
        sqlx::query("UPDATE idempotency_keys SET created_at = now() - interval '2 minutes'")
            .execute(&scene.pool)
            .await
            .unwrap();
        scene.pool.close().await;
        let client = redis::Client::open(scene.stores.redis_url.as_str()).unwrap();
        let redis = client.get_multiplexed_async_connection().await.unwrap();
        let (server, _) = scene.stores.database_url.rsplit_once('/').unwrap();
        let admin = PgConnection::connect(&format!("{server}/postgres")).await.unwrap();
        Self { scene, redis, admin, queued, done, copies: 0 }
    }

    /// A copy of both stores: the database, and the prefix of the queue.
    async fn copy(&mut self) -> (String, String) {
        self.copies += 1;
        let (server, original) = self.scene.stores.database_url.rsplit_once('/').unwrap();
        let (copy, former) = (format!("{original}_{}", self.copies), &self.scene.stores.queue_prefix);
        let prefix = format!("{former}:{}", self.copies);
        let create = format!("CREATE DATABASE {copy} TEMPLATE {original}");
        sqlx::query(AssertSqlSafe(create)).execute(&mut self.admin).await.unwrap();
        let (from, to) = (format!("{former}:{{{former}}}:"), format!("{prefix}:{{{prefix}}}:"));
        let keys: Vec<String> =
            redis::cmd("KEYS").arg(format!("{from}*")).query_async(&mut self.redis).await.unwrap();
        for key in keys {
            let name = key.strip_prefix(&from).unwrap();
            let mut command = redis::cmd("COPY");
            let _: i64 =
                command.arg(&key).arg(format!("{to}{name}")).query_async(&mut self.redis).await.unwrap();
        }
        (format!("{server}/{copy}"), prefix)
    }

    /// Plants a defect by commands to Redis.
    async fn spoil(&mut self, prefix: &str, commands: &str) {
        let set = format!("{prefix}:{{{prefix}}}:shape:0:0:nobody");
        let score: String =
            redis::cmd("ZSCORE").arg(set).arg(&self.queued[0]).query_async(&mut self.redis).await.unwrap();
        for command in commands.split("; ") {
            let mut words = command.split(' ');
            let mut command = redis::cmd(words.next().unwrap());
            for word in words {
                let word = word.replace('_', " ").replace('@', &format!("{prefix}:{{{prefix}}}:"));
                let word = word.replace("#score", &score).replace("#done", &self.done);
                command.arg(word.replace("#a", &self.queued[0]).replace("#b", &self.queued[1]));
            }
            let _: redis::Value = command.query_async(&mut self.redis).await.unwrap();
        }
    }

    /// Looks at a copy, and holds what is found against what was planted. Answers where they differ.
    async fn differs(&self, database: &str, prefix: &str, planted: Planted) -> Option<String> {
        let (what, expected) = planted;
        let keys = [("CORTEX__DATABASE__URL", database), ("CORTEX__QUEUE__QUEUE_PREFIX", prefix)];
        let (report, status) = verify(&self.scene.config, 0, &keys).await;
        let found: BTreeSet<_> = off(&report).into_iter().collect();
        let counts =
            |name: &&str| !["attempts_without_gaps", "times_in_order", "keys_have_jobs"].contains(name);
        let verdict = if expected.iter().any(counts) { Verdict::Off } else { Verdict::Clean };
        let shown = report.findings().all(|(_, finding)| finding.count > 0 && !finding.samples.is_empty());
        let agree = found == expected.iter().copied().collect()
            && (report.verdict, status) == (verdict, i32::from(verdict == Verdict::Off))
            && shown;
        let findings: Vec<_> =
            report.findings().map(|(check, finding)| (&check.name, &finding.samples)).collect();
        (!agree).then(|| format!("{what}: {status}, {:?} with {findings:?}", report.verdict))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_defect_is_found_and_named() {
    let mut left = Left::behind().await;
    let mut wrong = Vec::new();
    let (database, prefix) = left.copy().await;
    wrong.extend(left.differs(&database, &prefix, ("nothing", &[])).await);
    for planted in ROWS.into_iter().chain([KEYS]) {
        let (database, prefix) = left.copy().await;
        let mut connection = PgConnection::connect(&database).await.unwrap();
        let spoiled = sqlx::raw_sql(planted.0).execute(&mut connection).await.unwrap();
        assert!(
            spoiled.rows_affected() > 0 || planted.0.starts_with("ALTER"),
            "{} planted nothing",
            planted.0
        );
        connection.close().await.unwrap();
        wrong.extend(left.differs(&database, &prefix, planted).await);
    }
    for planted in ENTRIES.into_iter().chain([HIDDEN]) {
        let (database, prefix) = left.copy().await;
        left.spoil(&prefix, planted.0).await;
        wrong.extend(left.differs(&database, &prefix, planted).await);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_counters_are_right_after_the_repair_that_is_documented() {
    let page = include_str!("../../docs/VERIFY.md");
    let (_, repair) = page.split_once("```sql\n").unwrap();
    let (repair, _) = repair.split_once("```").unwrap();
    let mut left = Left::behind().await;
    let (database, prefix) = left.copy().await;
    let mut connection = PgConnection::connect(&database).await.unwrap();
    sqlx::raw_sql("UPDATE job_counters SET queued = queued + slot").execute(&mut connection).await.unwrap();
    assert_eq!(left.differs(&database, &prefix, ("wrong", &["counters_match_rows"])).await, None);
    sqlx::raw_sql(repair).execute(&mut connection).await.unwrap();
    assert_eq!(left.differs(&database, &prefix, ("repaired", &[])).await, None);
}

#[test]
fn a_defect_is_planted_for_every_check() {
    let planted =
        ROWS.iter().chain(&ENTRIES).chain([&HIDDEN, &KEYS]).flat_map(|(_, names)| names.iter().copied());
    let planted: BTreeSet<_> = planted.collect();
    let checks: BTreeSet<_> = CHECKS.iter().map(|check| check.name).collect();
    assert_eq!(planted, checks);
}

#[test]
fn repairs_name_commands_that_exist() {
    let mut named = 0;
    for check in &CHECKS {
        for command in
            check.repair.split('`').skip(1).step_by(2).filter(|quoted| quoted.starts_with("cortex "))
        {
            // Another version's command has no arguments here.
            let line = if command == "cortex verify" { "cortex verify --config FILE" } else { command };
            assert!(Cli::try_parse_from(line.split(' ')).is_ok(), "{}: {command}", check.name);
            named += 1;
        }
    }
    assert!(named > CHECKS.len() / 2, "{named} commands");
}
