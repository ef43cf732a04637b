//! What a cluster costs that has nothing to do. Run with
//! `cargo test --release -p cortex-cluster --test idle -- --ignored --nocapture`.

mod common;

use std::time::Duration;

use common::{Ground, all_joined, leader_of};

#[tokio::test]
#[ignore = "measures, and takes its time for it"]
async fn an_idle_replica_needs_little_of_a_core() {
    let mut ground = Ground::new(&[1, 2, 3]);
    let replicas = ground.start_all().await;
    let before = leader_of(&replicas).await;
    all_joined(&replicas, &[1, 2, 3]).await;
    let started = cpu_seconds();
    let window = Duration::from_secs(20);
    tokio::time::sleep(window).await;
    let share = (cpu_seconds() - started) / window.as_secs_f64() / 3.0 * 100.0;
    println!("an idle replica needs {share:.2} % of a core");
    assert_eq!(leader_of(&replicas).await, before, "no election happened meanwhile");
}

/// CPU time of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks = |index: usize| fields[index].parse::<f64>().unwrap();
    (ticks(11) + ticks(12)) / 100.0
}
