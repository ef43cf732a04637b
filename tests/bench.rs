//! `cortex bench` against a real cluster: what it says, what it checks, and what it leaves behind.

mod support;

use std::process::{Output, Stdio};

use cortex::dev::DevCluster;
use cortex::domain::ambient::{Ambient, System};
use cortex::ready_queue::ReadyQueue;
use serde_json::{Value, json};
use sqlx::PgPool;
use support::{Scratch, Stores, eventually};
use tokio::process::Command;

const CORTEX: &str = env!("CARGO_BIN_EXE_cortex");
/// Jobs that wait before anything is measured.
const FOUND: i64 = 3;

struct Scene {
    cluster: DevCluster,
    stores: Stores,
    database: PgPool,
    _scratch: Scratch,
}

impl Scene {
    async fn start() -> Self {
        Self::with_workers(0).await
    }

    async fn with_workers(workers: u16) -> Self {
        let (scratch, stores) = (Scratch::new(), Stores::fresh().await);
        let cluster = DevCluster::builder(scratch.path().join("data"))
            .replicas(1)
            .workers(workers)
            .binary(CORTEX)
            .database_url(Some(stores.database_url.clone()))
            .redis_url(Some(stores.redis_url.clone()))
            .set(format!("queue.queue_prefix={}", stores.queue_prefix))
            .start()
            .await
            .unwrap();
        let database = stores.pool(2).await;
        Self { cluster, stores, database, _scratch: scratch }
    }

    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(CORTEX);
        command.arg("bench").args(line.split_whitespace());
        command.args(["--endpoint", &self.cluster.http_endpoints()]).kill_on_drop(true);
        command.env_remove("CORTEX_TOKEN").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    async fn bench(&self, line: &str) -> Output {
        self.command(line).output().await.unwrap()
    }

    async fn submit(&self, model: &str) {
        let body =
            json!({"name": "found", "model_name": model, "model_version": "1", "input_data": {"a": 1}});
        let url = format!("http://{}/api/v1/jobs", self.cluster.http(0));
        let answer = reqwest::Client::new().post(url).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 201);
    }

    async fn count(&self, which: &'static str) -> i64 {
        let statement = sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {which}"));
        sqlx::query_scalar(statement).fetch_one(&self.database).await.unwrap()
    }
}

fn lines(output: &Output) -> Vec<Value> {
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}: {said}\n{complained}", output.status);
    assert_eq!(complained, "", "nothing is shown where there is no terminal");
    said.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Checks what must be true of any line.
fn check_line(line: &Value, workload: &str, jobs: u64) {
    assert_eq!(line["workload"], workload, "{line}");
    assert_eq!(line["jobs"], jobs, "{line}");
    assert_eq!(line["verified"], jobs, "{line}");
    let number = |key: &str| line[key].as_f64().unwrap_or_else(|| panic!("{key} in {line}"));
    assert!(number("seconds") > 0.0 && number("jobs_per_s") > 0.0, "{line}");
    assert!(number("p50_ms") <= number("p99_ms") && number("p99_ms") <= number("max_ms"), "{line}");
    for key in
        ["cpu_s", "cpu_client_s", "cpu_stolen_s", "refused", "in_flight", "workers", "slots", "payload_bytes"]
    {
        assert!(number(key) >= 0.0, "{key} in {line}");
    }
}

#[tokio::test]
async fn a_run_that_is_broken_off_leaves_the_queue_as_found() {
    let scene = Scene::start().await;
    scene.submit("found").await;
    let running = scene.command("submit --seconds 600 --in-flight 4").spawn().unwrap();
    let stored = "jobs WHERE model_name LIKE 'bench-%'";
    eventually("jobs are stored", async || scene.count(stored).await > 20).await;
    let pid = i32::try_from(running.id().unwrap()).unwrap();
    assert!(Command::new("kill").args(["-INT", &pid.to_string()]).status().await.unwrap().success());
    let ended = running.wait_with_output().await.unwrap();
    let complaint = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!((ended.status.code(), complaint.contains("broken off")), (Some(1), true), "{complaint}");
    assert!(scene.count(stored).await > 20);
    assert_eq!(scene.count("jobs WHERE model_name LIKE 'bench-%' AND status <> 'completed'").await, 0);
    assert_eq!(scene.count("jobs WHERE model_name = 'found' AND status = 'queued'").await, 1);
    scene.cluster.stop().await;
}

#[tokio::test]
async fn every_workload_counts_what_postgresql_counts_and_leaves_the_queue_as_found() {
    let scene = Scene::start().await;
    for _ in 0..FOUND {
        scene.submit("found").await;
    }
    let runs = [
        ("pipeline --jobs 200", "pipeline", 200),
        ("submit --jobs 200 --in-flight 8", "submit", 200),
        ("submit-batch --jobs 250 --batch 100", "submit-batch", 250),
        ("drain --jobs 200", "drain", 200),
        ("latency --jobs 40 --rate 200", "latency", 40),
        ("soak --jobs 40 --rate 200 --workers 3 --slots 2", "soak", 40),
    ];
    for (line, workload, jobs) in runs {
        let said = lines(&scene.bench(line).await);
        assert_eq!(said.len(), 1, "{said:?}");
        check_line(&said[0], workload, jobs);
    }
    let said = lines(&scene.bench("drain --jobs 200 --first 50").await);
    assert_eq!((&said[0]["jobs"], &said[0]["verified"]), (&json!(50), &json!(200)));

    let models = "(SELECT DISTINCT model_name FROM jobs WHERE model_name LIKE 'bench-%') m";
    assert_eq!(scene.count(models).await, 7, "each run has a model of its own");
    assert_eq!(scene.count("jobs WHERE model_name LIKE 'bench-%' AND status <> 'completed'").await, 0);
    assert_eq!(scene.count("jobs WHERE model_name = 'found' AND status = 'queued'").await, FOUND);
    let queue = ReadyQueue::connect(&scene.stores.redis_url, &scene.stores.queue_prefix).unwrap();
    let found = u64::try_from(FOUND).unwrap();
    eventually("Redis holds what was found", async || queue.total().await.is_ok_and(|jobs| jobs == found))
        .await;
    let gone = "workers WHERE status IN ('idle', 'busy')";
    eventually("the workers are gone", async || scene.count(gone).await == 0).await;
    scene.cluster.stop().await;
}

#[tokio::test]
async fn the_limit_is_measured_in_a_database_of_its_own_which_is_dropped() {
    let stores = Stores::fresh().await;
    let mut command = Command::new(CORTEX);
    command.args(["bench", "limit", "--jobs", "1000", "--database-url", &stores.database_url]);
    let said = lines(&command.output().await.unwrap());
    assert_eq!(said.len(), 2);
    // Whole batches on each connection.
    for (line, workload) in said.iter().zip(["limit", "limit-queued"]) {
        let jobs = line["jobs"].as_u64().unwrap();
        assert!(jobs >= 1_000 && jobs % 500 == 0, "{line}");
        check_line(line, workload, jobs);
    }
    let pool = stores.pool(1).await;
    let statement = "SELECT count(*) FROM pg_database WHERE datname LIKE 'cortex_bench_%'";
    let left: i64 = sqlx::query_scalar(statement).fetch_one(&pool).await.unwrap();
    assert_eq!(left, 0);
}

#[tokio::test]
async fn a_run_fails_when_postgresql_holds_another_number() {
    let scene = Scene::start().await;
    let run = scene.command("submit --jobs 2000 --in-flight 2").spawn().unwrap();
    let model = "SELECT model_name FROM jobs WHERE model_name LIKE 'bench-%' LIMIT 1";
    let mut found: Option<String> = None;
    eventually("the first job is stored", async || {
        found = sqlx::query_scalar(model).fetch_optional(&scene.database).await.unwrap();
        found.is_some()
    })
    .await;
    let stranger = "INSERT INTO jobs (id, name, model_name, model_version, status, input_data, completed_at)
        VALUES ($1, 'stranger', $2, '1', 'completed', '{}', now())";
    sqlx::query(stranger).bind(System.uuid()).bind(found).execute(&scene.database).await.unwrap();
    let output = run.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty(), "a run that failed has no figures");
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(complained.contains("2000 jobs were counted and 2001 are in PostgreSQL"), "{complained}");
    scene.cluster.stop().await;
}

#[tokio::test]
async fn a_wrong_usage_exits_with_2_and_a_cluster_that_does_not_answer_with_1() {
    let run = async |line: &str| {
        let output = Command::new(CORTEX).arg("bench").args(line.split_whitespace()).output().await.unwrap();
        assert!(output.stdout.is_empty(), "{line}");
        let complained = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), complained)
    };
    for line in ["limit", "sprint", "drain --jobs 0", "submit --endpoint http://127.0.0.1:1/x"] {
        let (code, complained) = run(line).await;
        assert_eq!(code, Some(2), "{line}: {complained}");
    }
    let unreachable = "--endpoint http://127.0.0.1:1 --worker-endpoint http://127.0.0.1:1";
    let (code, complained) = run(&format!("submit --jobs 5 {unreachable}")).await;
    assert_eq!(code, Some(1), "{complained}");
    assert!(complained.contains("no replica could be reached"), "{complained}");
}

#[tokio::test]
async fn workers_that_take_any_job_leave_those_of_a_run_alone() {
    let scene = Scene::with_workers(1).await;
    for (line, workload) in [("submit --jobs 100", "submit"), ("pipeline --jobs 100", "pipeline")] {
        let said = lines(&scene.bench(line).await);
        check_line(&said[0], workload, 100);
    }
    let others = "executions e JOIN workers w ON w.id = e.worker_id WHERE w.name LIKE 'demo%'";
    assert_eq!(scene.count(others).await, 0);
}
