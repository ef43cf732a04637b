//! What holds over everything that the tests of this binary did. Sorted last by its name, so that it also
//! comes last where tests run one after the other.

use std::collections::BTreeSet;
use std::process::Command;

use cortex::api::rest;
use serde_json::{Value, json};

use crate::group::{Api, REPLICAS, ended, made};
use crate::support::eventually;
use crate::system::served_protocol;

/// Routes that have no request to refuse.
const CANNOT_FAIL: [&str; 13] = [
    "/openapi.json",
    "/docs",
    "/docs/",
    "/api/v1/jobs/stats/summary",
    "/api/v1/queues",
    "/api/v1/workers/stats/summary",
    "/api/v1/cluster",
    "/api/v1/health",
    "/api/v1/health/live",
    "/api/v1/health/ready",
    "/health",
    "/health/live",
    "/health/ready",
];

/// Routes whose success would stop the other tests' jobs, and the tests that show it instead: their text, and what
/// it has.
const SUCCEEDS_ELSEWHERE: [(&str, &str, &str, &str); 3] = [
    ("DELETE", "/api/v1/queues", include_str!("../control/clear.rs"), "DELETE, \"/api/v1/queues\""),
    ("DELETE", "/api/v1/cluster/members/{id}", include_str!("../control/members.rs"), "cluster remove 4"),
    ("POST", "/api/v1/cluster/transfer", include_str!("../control/members.rs"), "/api/v1/cluster/transfer"),
];

/// Statements that find what must never be, over all jobs, executions and workers.
const NEVER: [(&str, &str); 10] = [
    (
        "two live executions, or one on a job that is not held",
        "SELECT j.id::text FROM jobs j JOIN executions e ON e.job_id = j.id
         WHERE e.status IN ('started', 'running') AND (j.lease_id IS DISTINCT FROM e.id
             OR j.status NOT IN ('assigned', 'running') OR j.assigned_worker_id <> e.worker_id)",
    ),
    (
        "a lease without its live execution",
        "SELECT j.id::text FROM jobs j LEFT JOIN executions e ON e.id = j.lease_id
         WHERE j.lease_id IS NOT NULL AND coalesce(e.status, '') NOT IN ('started', 'running')",
    ),
    (
        "a live execution that is missing among the leases, or a lease that is left over",
        "SELECT coalesce(l.id, e.id)::text FROM leases l
             FULL JOIN (SELECT id FROM executions WHERE status IN ('started', 'running')) e ON e.id = l.id
         WHERE l.id IS NULL OR e.id IS NULL",
    ),
    (
        "an attempt number that is not one more than the retries granted before it",
        "SELECT e.id::text FROM (SELECT *, lag(attempt_number, 1, 0)
                 OVER (PARTITION BY job_id ORDER BY created_at, id) AS before FROM executions) e
             JOIN jobs j ON j.id = e.job_id
         WHERE e.attempt_number < e.before OR e.attempt_number > j.retry_count + 1",
    ),
    (
        "a job whose end and whose state disagree",
        "SELECT id::text FROM jobs
         WHERE (status IN ('completed', 'failed', 'cancelled', 'timeout')) <> (completed_at IS NOT NULL)
             OR completed_at < submitted_at",
    ),
    (
        "an execution whose end and whose state disagree",
        "SELECT id::text FROM executions
         WHERE (status IN ('started', 'running')) = (completed_at IS NOT NULL) OR completed_at < created_at",
    ),
    (
        "a job completed by a worker without exactly one completed execution",
        "SELECT j.id::text FROM jobs j WHERE j.status = 'completed' AND j.assigned_at IS NOT NULL
             AND (SELECT count(*) FROM executions e WHERE e.job_id = j.id AND e.status = 'completed') <> 1",
    ),
    (
        "an execution of a completed job that is newer than the completed one",
        "SELECT e.id::text FROM executions e JOIN executions c ON c.job_id = e.job_id AND c.status = 'completed'
         WHERE e.created_at > c.created_at",
    ),
    (
        "a waiting job without a time, or with the traces of a worker",
        "SELECT id::text FROM jobs WHERE status = 'pending'
             AND (next_retry_at IS NULL OR lease_id IS NOT NULL OR assigned_worker_id IS NOT NULL)",
    ),
    (
        "a tally of a worker that its executions do not give",
        "SELECT w.id::text FROM workers w WHERE (total_jobs_completed::bigint, total_jobs_failed::bigint) IS DISTINCT FROM
             (SELECT (count(*) FILTER (WHERE e.status = 'completed'),
                      count(*) FILTER (WHERE e.status IN ('failed', 'timeout')))
              FROM executions e WHERE e.worker_id = w.id)",
    ),
];

#[tokio::test]
async fn when_all_tests_have_ended_every_endpoint_was_used_and_the_books_balance() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| !argument.starts_with('-') && argument.parse::<u32>().is_err()) {
        // Only some of the tests run; there is no whole to speak of.
        return;
    }
    let api = Api::of("whole").await;
    let listed =
        Command::new(std::env::current_exe().unwrap()).args(["--list", "--format", "terse"]).output();
    let listed = String::from_utf8(listed.unwrap().stdout).unwrap();
    let tests = listed.lines().filter(|line| line.ends_with(": test")).count();
    eventually("all other tests have ended", async || ended() + 1 == tests).await;

    every_endpoint_was_used(&api).await;
    nothing_panicked(&api);
    statistics_are_counts(&api).await;
    for (what, statement) in NEVER {
        let found: Vec<String> = sqlx::query_scalar(statement).fetch_all(&api.database).await.unwrap();
        assert!(found.is_empty(), "{what}: {found:?}");
    }
    api.leave().await;
}

async fn every_endpoint_was_used(api: &Api) {
    let made = made();
    let mut missing = BTreeSet::new();
    for (method, pattern, _) in rest::routes() {
        let used = |fine: bool| {
            made.iter().any(|(of, path, status)| {
                *of == method
                    && matches(pattern, path)
                    && (200..300).contains(status) == fine
                    && *status != 405
            })
        };
        let elsewhere = SUCCEEDS_ELSEWHERE
            .iter()
            .any(|(of, path, tests, call)| *of == method && *path == pattern && tests.contains(call));
        if !elsewhere && !used(true) {
            missing.insert(format!("no success of {method} {pattern}"));
        }
        let can_fail = pattern != "/metrics" && !CANNOT_FAIL.contains(&pattern);
        if can_fail && !used(false) {
            missing.insert(format!("no refusal of {method} {pattern}"));
        }
    }
    let mut metrics = String::new();
    for replica in 0..REPLICAS {
        metrics.push_str(api.get(replica, "/metrics").await.expect(200).as_str().unwrap());
    }
    for method in served_protocol(api).await.service.iter().flat_map(|service| &service.method) {
        let counted = |code: &str| {
            metrics.contains(&format!(
                "cortex_grpc_requests_total{{code=\"{code}\",method=\"{}\"}}",
                method.name()
            ))
        };
        let can_fail = method.name() != "GetStats";
        if !counted("OK") || (can_fail && !counted("INVALID_ARGUMENT")) {
            missing.insert(format!("no success or no refusal of {}", method.name()));
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

/// Whether `path` is served by the route with this pattern; a literal route goes before one with a parameter.
fn matches(pattern: &str, path: &str) -> bool {
    let path = path.split('?').next().unwrap_or_default();
    let (wanted, given): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), path.split('/').collect());
    wanted.len() == given.len()
        && wanted.iter().zip(&given).all(|(wanted, given)| wanted == given || wanted.starts_with('{'))
}

fn nothing_panicked(api: &Api) {
    for (replica, log) in api.logs().iter().enumerate() {
        let bad = |line: &&str| line.contains("panicked") || line.contains(" ERROR ");
        let lines: Vec<_> = log.lines().filter(bad).collect();
        assert!(lines.is_empty(), "replica {}: {lines:#?}", replica + 1);
        assert!(!log.is_empty(), "the log is read from where it is written");
    }
}

async fn statistics_are_counts(api: &Api) {
    let counts: Value = sqlx::query_scalar(
        "SELECT jsonb_object_agg(status, jobs) FROM (SELECT status, count(*) AS jobs FROM jobs GROUP BY status) c",
    )
    .fetch_one(&api.database)
    .await
    .unwrap();
    for replica in 0..REPLICAS {
        let stats = api.get(replica, "/api/v1/jobs/stats/summary").await.expect(200);
        for state in
            ["pending", "queued", "assigned", "running", "completed", "failed", "cancelled", "timeout"]
        {
            assert_eq!(stats[state], *counts.get(state).unwrap_or(&json!(0)), "{state} at replica {replica}");
        }
        let total: i64 = counts.as_object().unwrap().values().filter_map(Value::as_i64).sum();
        assert_eq!(stats["total_jobs"], total);
    }
}
