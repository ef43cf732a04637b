//! Workers die in mid-job and come back.

use std::process::Stdio;
use std::time::Duration;

use cortex::dev::Signal;
use cortex_client::proto::JobCompletion;
use cortex_client::proto::job_service_client::JobServiceClient;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::json;
use tokio::process::{Child, Command};
use uuid::Uuid;

use crate::load::{Tally, accepted};
use crate::scene::{Scene, until};

/// Hangs at its first attempt at a job and does the second one at once.
const HANG_ONCE: &str = "if [ \"$CORTEX_ATTEMPT\" = 1 ]; then exec sleep 600; fi; echo '{}'";

/// How long the second attempt takes: the late reports come in meanwhile.
const SECOND_ATTEMPT: Duration = Duration::from_secs(3);

impl Scene {
    /// Starts a worker process, which is killed with the handle.
    fn worker_process(&self, name: &str, command: &str) -> Child {
        Command::new(env!("CARGO_BIN_EXE_cortex"))
            .args(["worker", "--endpoint", &self.cluster.grpc_endpoints(), "--name", name])
            .args(["--slots", "4", "--exec", command])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    async fn is(&self, job: Uuid, status: &str) {
        until(&format!("the job is {status}"), async || {
            let (_, found) = self.get(0, &format!("/api/v1/jobs/{job}")).await;
            found["status"] == status
        })
        .await;
    }

    /// All that the database says of a job and its attempts.
    async fn rows_of(&self, job: Uuid) -> (String, Vec<String>) {
        let row = sqlx::query_scalar("SELECT jobs::text FROM jobs WHERE id = $1").bind(job);
        let attempts = "SELECT executions::text FROM executions WHERE job_id = $1 ORDER BY created_at";
        let attempts = sqlx::query_scalar(attempts).bind(job);
        (row.fetch_one(&self.pool).await.unwrap(), attempts.fetch_all(&self.pool).await.unwrap())
    }

    /// Error codes and workers of a job's attempts, by attempt.
    async fn attempts_of(&self, job: Uuid) -> Vec<(i32, String, Option<String>, Uuid)> {
        sqlx::query_as(
            "SELECT attempt_number, status, error_code, worker_id FROM executions WHERE job_id = $1
             ORDER BY created_at",
        )
        .bind(job)
        .fetch_all(&self.pool)
        .await
        .unwrap()
    }
}

#[tokio::test]
async fn the_jobs_of_a_dead_worker_follow_their_policy_and_its_late_reports_change_nothing() {
    let scene = Scene::with(|builder, _| builder.set("scheduler.worker_timeout=3")).await;
    let replica = scene.cluster.http(0);
    let soon = json!({"retry_policy": {"strategy": "fixed", "initial_delay_seconds": 1}});
    let retried = accepted(&scene.http, replica, json!({"metadata": soon, "max_retries": 2})).await;
    let given_up = accepted(&scene.http, replica, json!({"max_retries": 0})).await;
    let mut doomed = scene.worker_process("doomed", HANG_ONCE);
    scene.is(retried, "running").await;
    scene.is(given_up, "running").await;
    let (token, worker): (Uuid, Uuid) =
        sqlx::query_as("SELECT lease_id, assigned_worker_id FROM jobs WHERE id = $1")
            .bind(retried)
            .fetch_one(&scene.pool)
            .await
            .unwrap();
    doomed.kill().await.unwrap();
    scene.start_worker(2, 4, SECOND_ATTEMPT);
    scene.is(given_up, "failed").await;
    until("the second attempt runs", async || {
        let attempts = scene.attempts_of(retried).await;
        attempts.get(1).is_some_and(|attempt| attempt.1 == "running")
    })
    .await;
    let endpoint = format!("http://{}", scene.cluster.grpc(1));
    let mut client = JobServiceClient::connect(endpoint).await.unwrap();
    let before = (scene.rows_of(retried).await, scene.rows_of(given_up).await);
    for (job, token) in [(retried, token.to_string()), (retried, String::new()), (given_up, String::new())] {
        let late = JobCompletion {
            job_id: job.to_string(),
            worker_id: worker.to_string(),
            success: true,
            output_data: "{\"late\": true}".into(),
            execution_id: token,
            ..JobCompletion::default()
        };
        let answer = client.complete_job(late).await.unwrap().into_inner();
        assert!(!answer.acknowledged && !answer.message.is_empty(), "{answer:?}");
    }
    assert_eq!(before, (scene.rows_of(retried).await, scene.rows_of(given_up).await));
    scene.is(retried, "completed").await;

    let lost = Some("worker_lost".to_owned());
    let attempts = scene.attempts_of(retried).await;
    assert_eq!((attempts[0].0, attempts[0].1.as_str(), &attempts[0].2), (1, "failed", &lost));
    assert_eq!((attempts[1].0, attempts[1].1.as_str(), &attempts[1].2), (2, "completed", &None));
    assert_eq!(attempts.len(), 2);
    assert_eq!(attempts[0].3, worker);
    assert_ne!(attempts[1].3, worker);
    let attempts = scene.attempts_of(given_up).await;
    assert_eq!((attempts.len(), &attempts[0].2), (1, &lost));
}

#[tokio::test]
async fn a_worker_that_was_given_up_and_speaks_again_on_the_same_session_gets_jobs_again() {
    let scene = Scene::with(|builder, _| builder.set("scheduler.worker_timeout=3")).await;
    let worker = scene.worker_process("paused", "echo '{}'");
    let offline = "SELECT count(*) FROM workers WHERE status = 'offline'";
    until("it has registered", async || scene.count("SELECT count(*) FROM workers").await == 1).await;
    let signal = |signal| kill(Pid::from_raw(worker.id().unwrap().cast_signed()), signal).unwrap();
    signal(Signal::SIGSTOP);
    until("it is given up", async || scene.count(offline).await == 1).await;
    signal(Signal::SIGCONT);
    let job = accepted(&scene.http, scene.cluster.http(0), json!({})).await;
    scene.is(job, "completed").await;
}

#[tokio::test]
async fn a_worker_that_starts_again_under_its_name_loses_its_leases_at_once() {
    // Longer than the test waits for anything.
    let scene = Scene::with(|builder, _| builder.set("scheduler.worker_timeout=600")).await;
    let soon = json!({"retry_policy": {"strategy": "fixed", "initial_delay_seconds": 1}});
    let job = accepted(&scene.http, scene.cluster.http(0), json!({"metadata": soon})).await;
    let name = format!("phoenix-{}", std::process::id());
    let mut first = scene.worker_process(&name, HANG_ONCE);
    scene.is(job, "running").await;
    first.kill().await.unwrap();
    let silent_for = "SELECT extract(epoch FROM now() - min(last_heartbeat))::bigint FROM workers";
    let _second = scene.worker_process(&name, HANG_ONCE);
    scene.is(job, "completed").await;
    assert!(scene.count(silent_for).await < 15, "its silence was waited for");
    let attempts = scene.attempts_of(job).await;
    assert_eq!(attempts.len(), 2, "{attempts:?}");
    assert_eq!(attempts[0].2.as_deref(), Some("worker_lost"));
    assert_eq!(attempts[0].3, attempts[1].3, "it is the same worker");
    let tally = Tally { accepted: vec![job], ..Tally::default() };
    scene.check_with_losses(&tally).await;
}
