//! A cancellation reaches the running worker within a second, whichever replica it comes to.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout};

use crate::group::{Api, REPLICAS};
use crate::hand::Hand;
use crate::support::{Scratch, eventually};
use crate::talk::{Talk, update};

/// How long it takes from the answer to the cancellation where nothing holds up the machine: the quickest of several times.
const PROMISED: Duration = Duration::from_secs(1);
/// How long it may take on a busy one.
const WITHIN: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_session_at_any_replica_hears_of_a_cancellation_at_any_other_within_a_second() {
    let api = Api::of("cancel-session").await;
    let mut times = Vec::new();
    for home in 0..REPLICAS {
        let mut talk = Talk::register(&api, home, 1, 1).await;
        for at in 0..REPLICAS {
            let id = api.submit(at, &json!({})).await;
            let job = talk.job().await;
            assert_eq!(job.job_id, id);
            let report = u64::try_from(at).unwrap() + 1;
            talk.report(report, update(&job, "running"));
            talk.acknowledged(report).await;
            api.cancel(at, &id).await.expect(204);
            let cancelled = Instant::now();
            timeout(WITHIN, talk.ended(&job))
                .await
                .unwrap_or_else(|_| panic!("from {at} to {home}: too late"));
            times.push(cancelled.elapsed());
            talk.credits(1);
        }
        talk.beat("offline");
    }
    assert!(times.iter().min() < Some(&PROMISED), "{times:?}");
    api.leave().await;
}

#[tokio::test]
async fn the_next_heartbeat_of_a_worker_without_a_session_names_the_cancelled_job() {
    let api = Api::of("cancel-unary").await;
    for home in 0..REPLICAS {
        let hand = Hand::new(&api, home, 1).await;
        for at in 0..REPLICAS {
            let id = api.submit(at, &json!({})).await;
            let job = hand.job().await;
            assert!(hand.status(&job, "running").await.acknowledged);
            assert!(hand.heartbeat(&[&job]).await.unwrap().cancelled_jobs.is_empty());
            api.cancel(at, &id).await.expect(204);
            let answer = timeout(WITHIN, hand.heartbeat(&[&job])).await.expect("no answer");
            assert_eq!(answer.unwrap().cancelled_jobs, [id], "from {at} to {home}");
            assert!(!hand.status(&job, "running").await.acknowledged);
        }
        let path = format!("/api/v1/workers/{}", hand.id);
        api.send(home, reqwest::Method::DELETE, &path, None).await.expect(204);
    }
    api.leave().await;
}

/// A worker process whose jobs start a child, write down its process id behind their own, and go on for ten minutes.
fn worker_process(api: &Api, replica: usize, folder: &Path) -> Child {
    let command =
        format!("sleep 600 & echo $$ $! > {0}/new; mv {0}/new {0}/$CORTEX_JOB_ID; wait", folder.display());
    Command::new(env!("CARGO_BIN_EXE_cortex"))
        .args(["worker", "--endpoint", &api.grpc(replica), "--name", &format!("{}-{replica}", api.name)])
        .args(["--models", &api.name, "--exec", &command])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// Whether a process does anything. One that has ended stays listed until somebody has asked how.
fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, fields)| !fields.starts_with(['Z', 'X']))
}

#[tokio::test]
async fn the_process_of_a_cancelled_job_is_gone_with_its_children_within_a_second_wherever_its_worker_is() {
    let api = Api::of("cancel-exec").await;
    let folder = Scratch::new();
    let mut homes = vec![api.follower().await];
    for replica in 0..REPLICAS {
        if api.leads(replica).await {
            homes.push(replica);
        }
    }
    assert_eq!(homes.len(), 2, "a follower and the leader");
    let mut times = Vec::new();
    for home in homes {
        let mut worker = worker_process(&api, home, folder.path());
        for at in 0..REPLICAS {
            let id = api.submit(at, &json!({})).await;
            eventually("the process runs", async || folder.path().join(&id).exists()).await;
            let pids = std::fs::read_to_string(folder.path().join(&id)).unwrap();
            let processes: Vec<_> = pids.split_whitespace().collect();
            assert!(processes.len() == 2 && processes.iter().all(|pid| lives(pid)), "{pids}");
            api.reaches(&id, "running").await;
            api.cancel(at, &id).await.expect(204);
            let cancelled = Instant::now();
            eventually("the process and its child are gone", async || {
                !processes.iter().any(|pid| lives(pid))
            })
            .await;
            let took = cancelled.elapsed();
            assert!(took < WITHIN, "cancelled at {at}, run at {home}: {took:?}");
            times.push(took);
        }
        let pid = i32::try_from(worker.id().unwrap()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        worker.wait().await.unwrap();
    }
    assert!(times.iter().min() < Some(&PROMISED), "{times:?}");
    api.leave().await;
}
