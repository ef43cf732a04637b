//! How fast single submissions are stored: `cargo bench --bench submit -- [JOBS] [IN_FLIGHT]`.
//!
//! Starts three replicas with stores of their own and no workers, submits over REST at the leader and
//! then at a follower, and prints one JSON line for each: jobs per second, latency percentiles in
//! milliseconds, and the median size of the insert batches by the leader's own histogram.

use std::time::{Duration, Instant};

use cortex::dev::DevCluster;
use futures::stream::{FuturesUnordered, StreamExt};

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let numbers: Vec<usize> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let jobs = numbers.first().copied().unwrap_or(20_000);
    let in_flight = numbers.get(1).copied().unwrap_or(64);
    let folder = std::env::temp_dir().join(format!("cortex-bench-{}", std::process::id()));
    let cluster = DevCluster::builder(&folder)
        .replicas(3)
        .workers(0)
        .ports(0, 0, 0)
        .set("queue.max_queue_size=10000000")
        .binary(env!("CARGO_BIN_EXE_cortex"))
        .start()
        .await?;
    let leader = cluster.wait_for_leader(None, Duration::from_secs(10)).await?;
    for (name, index) in [("leader", leader), ("follower", (leader + 1) % 3)] {
        run(name, &cluster, index, leader, jobs, in_flight).await?;
    }
    cluster.stop().await;
    std::fs::remove_dir_all(folder)?;
    Ok(())
}

async fn run(
    name: &str,
    cluster: &DevCluster,
    index: usize,
    leader: usize,
    jobs: usize,
    in_flight: usize,
) -> Result<(), Failure> {
    let client = reqwest::Client::builder().pool_max_idle_per_host(in_flight).tcp_nodelay(true).build()?;
    let url = format!("http://{}/api/v1/jobs", cluster.http(index));
    let metrics = format!("http://{}/metrics", cluster.http(leader));
    let body = format!(
        r#"{{"name":"bench","model_name":"bench-{name}","model_version":"1","input_data":{{"payload":"{}"}}}}"#,
        "x".repeat(180)
    );
    let submit = || async {
        let began = now();
        let request = client.post(&url).header("content-type", "application/json").body(body.clone());
        let response = request.send().await?;
        let status = response.status();
        response.bytes().await?;
        if status.as_u16() != 201 {
            return Err(Failure::from(format!("a submission was answered {status}")));
        }
        Ok(began.elapsed())
    };
    let before = batches(&client.get(&metrics).send().await?.text().await?);
    let began = now();
    let mut open = FuturesUnordered::new();
    let mut took = Vec::with_capacity(jobs);
    for _ in 0..jobs {
        if open.len() == in_flight
            && let Some(done) = open.next().await
        {
            took.push(done?);
        }
        open.push(submit());
    }
    while let Some(done) = open.next().await {
        took.push(done?);
    }
    let seconds = began.elapsed().as_secs_f64();
    let after = batches(&client.get(&metrics).send().await?.text().await?);
    took.sort_unstable();
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let rate = jobs as f64 / seconds;
    let percentile = |p: usize| took[(took.len() - 1) * p / 100].as_secs_f64() * 1000.0;
    println!(
        r#"{{"workload":"submit","at":"{name}","in_flight":{in_flight},"jobs":{jobs},"seconds":{seconds:.2},"jobs_per_s":{:.0},"p50_ms":{:.2},"p99_ms":{:.2},"max_ms":{:.2},"median_batch":"{}"}}"#,
        rate,
        percentile(50),
        percentile(99),
        percentile(100),
        median_batch(&before, &after),
    );
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures")]
fn now() -> Instant {
    Instant::now()
}

/// The cumulative histogram of insert batches: upper bound and count.
fn batches(metrics: &str) -> Vec<(String, f64)> {
    let lines = metrics.lines().filter(|line| {
        line.starts_with("cortex_batch_size_bucket") && line.contains(r#"batcher="submission""#)
    });
    lines
        .filter_map(|line| {
            let bound = line.split(r#"le=""#).nth(1)?.split('"').next()?.to_owned();
            Some((bound, line.rsplit(' ').next()?.parse().ok()?))
        })
        .collect()
}

/// The bucket in which the median batch lies.
fn median_batch(before: &[(String, f64)], after: &[(String, f64)]) -> String {
    let grown: Vec<f64> = after
        .iter()
        .enumerate()
        .map(|(index, (_, count))| count - before.get(index).map_or(0.0, |(_, before)| *before))
        .collect();
    let half = grown.last().copied().unwrap_or(0.0) / 2.0;
    let index = grown.iter().position(|count| *count >= half).unwrap_or(0);
    let lower = index.checked_sub(1).and_then(|index| after.get(index)).map_or("0", |(bound, _)| bound);
    after.get(index).map_or_else(String::new, |(bound, _)| format!("{lower}-{bound}"))
}
