//! Starts of `cortex::dev::DevCluster` that must fail, and what they leave behind: nothing.

mod support;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cortex::dev::{DevCluster, DevClusterBuilder, DevEvent, PortBlock};
use support::{Scratch, Stores};

/// A program in place of `cortex`: its migrations succeed, and `serve` runs this shell script.
fn program(folder: &Path, serve: &str) -> PathBuf {
    let path = folder.join("program");
    fs::write(&path, format!("#!/bin/sh\n[ \"$1\" = migrate ] && exit 0\n{serve}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A cluster without workers on the stores of this test process.
async fn on_shared_stores(folder: &Path) -> DevClusterBuilder {
    let stores = Stores::fresh().await;
    DevCluster::builder(folder.join("data"))
        .workers(0)
        .database_url(Some(stores.database_url))
        .redis_url(Some(stores.redis_url))
}

async fn refusal(builder: DevClusterBuilder) -> String {
    builder.start().await.err().expect("it started").to_string()
}

#[tokio::test]
async fn a_replica_that_ends_at_once_fails_the_start_with_the_end_of_its_log() {
    let scratch = Scratch::new();
    let events = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&events);
    let builder = DevCluster::builder(scratch.path().join("data"))
        .workers(0)
        .binary(program(scratch.path(), "echo 'the sky fell' >&2; exit 7"))
        .on_event(move |event| sink.lock().unwrap().push(event));
    let error = refusal(builder).await;
    assert!(error.contains("ended (exit status: 7)") && error.contains("the sky fell"), "{error}");
    let ready = DevEvent::Progress("PostgreSQL is ready".to_owned());
    assert!(events.lock().unwrap().contains(&ready));

    // Its own PostgreSQL is gone too, so another run can have the data.
    let pid_file = scratch.path().join("data/postgres/data/postmaster.pid");
    let gone = async {
        while let Ok(text) = fs::read_to_string(&pid_file) {
            let pid = text.lines().next().unwrap_or_default().to_owned();
            let state = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if state.is_empty() || state.contains(") Z ") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.expect("PostgreSQL still runs");
    assert!(!scratch.path().join("data/cluster.json").exists());
}

#[tokio::test]
async fn a_replica_whose_data_cannot_be_kept_says_so_and_does_not_panic() {
    let scratch = Scratch::new();
    let builder = on_shared_stores(scratch.path()).await.binary(env!("CARGO_BIN_EXE_cortex"));
    let error = refusal(builder.set("cluster.data_dir=/proc/cortex")).await;
    assert!(error.contains("/proc/cortex") && !error.contains("panicked"), "{error}");
}

#[tokio::test]
async fn a_taken_port_is_named_before_anything_starts() {
    let scratch = Scratch::new();
    let block = PortBlock::reserve(9).unwrap();
    let first = block.first();
    let _taken = TcpListener::bind(("127.0.0.1", first + 4)).unwrap();
    let builder = on_shared_stores(scratch.path()).await.ports(first, first + 3, first + 6);
    let error = refusal(builder.binary("/nonexistent")).await;
    let expected = format!("port {} (gRPC of replica 2) is taken", first + 4);
    assert!(error.contains(&expected) && error.contains("--grpc-port"), "{error}");
}

#[tokio::test]
async fn ports_that_overlap_and_keys_that_do_not_exist_are_refused() {
    let scratch = Scratch::new();
    let block = PortBlock::reserve(9).unwrap();
    let first = block.first();
    let builder = on_shared_stores(scratch.path()).await.ports(first, first + 1, 0);
    assert!(refusal(builder).await.contains("must lie further apart"));
    let builder = on_shared_stores(scratch.path()).await.set("scheduler.speed=9");
    assert!(refusal(builder).await.contains("scheduler.speed: is not a known key"));
    let builder = on_shared_stores(scratch.path()).await.replicas(0);
    assert!(refusal(builder).await.contains("--replicas must be from 1"));
}

#[tokio::test]
async fn a_data_directory_in_use_is_refused_and_free_again_afterwards() {
    let scratch = Scratch::new();
    let hanging = program(scratch.path(), "exec sleep 600");
    let builder = on_shared_stores(scratch.path()).await.binary(&hanging);
    let log = scratch.path().join("data/replica-1.log");
    let first = tokio::spawn(async move { builder.start().await.map(drop) });
    let started = async {
        while !log.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), started).await.unwrap();

    let builder = || async { on_shared_stores(scratch.path()).await.binary("/nonexistent") };
    let error = refusal(builder().await).await;
    assert!(error.contains("is in use by another `cortex dev`"), "{error}");
    assert!(error.contains(&std::process::id().to_string()), "{error}");
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let error = refusal(builder().await).await;
    assert!(error.contains("cannot start cortex migrate"), "{error}");
}

/// In a build with the feature a wrong name stops the start (`tests/faults/planted.rs`).
#[cfg(not(feature = "planted-defects"))]
#[test]
fn a_build_without_planted_defects_does_not_look_for_one() {
    let serve = std::process::Command::new(env!("CARGO_BIN_EXE_cortex"))
        .args(["serve", "--config", "/nowhere/cortex.yaml"])
        .env("CORTEX_PLANT", "nonsense")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&serve.stderr).into_owned();
    assert!(said.contains("/nowhere/cortex.yaml") && !said.contains("nonsense"), "{said}");
}
