//! Three replicas with stores of their own, and the program `cortex bench` against them.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cortex::dev::{DevCluster, Janitor};
use serde_json::Value;
use tokio::process::Command;

use crate::Failure;

/// The program that is measured, and the one that measures.
const CORTEX: &str = env!("CARGO_BIN_EXE_cortex");
/// Workers of a run of `cortex bench`.
const WORKERS: &str = "8";
/// More jobs than any measurement lets wait.
pub const ROOMY: u32 = 10_000_000;
/// Longest wait for a leader.
const LEADER_WITHIN: Duration = Duration::from_secs(10);
/// Jobs of the first run, which opens connections, prepares statements and grows files, and counts nowhere.
const WARM_UP: &str = "2000";

/// Where a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Submissions go to the leader.
    Leader,
    /// Submissions go to another replica.
    Follower,
    /// The statements alone.
    Database,
}

/// A running cluster without workers.
pub struct Stage {
    pub cluster: DevCluster,
    folder: PathBuf,
    _janitor: Janitor,
}

impl Stage {
    /// Starts a cluster on empty stores, in which so many jobs may wait.
    pub async fn start(room: u32) -> Result<Self, Failure> {
        static STAGES: AtomicU32 = AtomicU32::new(0);
        // One of its own: the janitor of the stage before may still be at work.
        let number = STAGES.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("cortex-compare-{}-{number}", std::process::id()));
        let builder = DevCluster::builder(&folder).replicas(3).workers(0).ports(0, 0, 0).binary(CORTEX);
        let mut cluster = builder.set(format!("queue.max_queue_size={room}")).start().await?;
        let stores =
            [cluster.postgres().map(|postgres| postgres.pid()), cluster.redis().map(|redis| redis.pid())];
        let pids: Vec<u32> = stores.into_iter().flatten().collect();
        let janitor = Janitor::watch(&folder, &pids)?;
        let stage = Self { cluster, folder, _janitor: janitor };
        stage.bench(At::Leader, &["pipeline", "--jobs", WARM_UP]).await?;
        Ok(stage)
    }

    /// Stops everything and removes its data.
    pub async fn stop(self) -> Result<(), Failure> {
        self.cluster.stop().await;
        std::fs::remove_dir_all(&self.folder)?;
        Ok(())
    }

    /// Which replica leads now.
    pub async fn leader(&self) -> Result<usize, Failure> {
        Ok(self.cluster.wait_for_leader(None, LEADER_WITHIN).await?)
    }

    /// The REST address of the leader.
    pub async fn leader_url(&self) -> Result<String, Failure> {
        Ok(format!("http://{}", self.cluster.http(self.leader().await?)))
    }

    /// The leader's process.
    pub async fn leader_pid(&self) -> Result<u32, Failure> {
        let leader = self.leader().await?;
        self.cluster.pid(leader).ok_or_else(|| "the leader does not run".into())
    }

    /// Runs `cortex bench` and answers the lines that it printed.
    pub async fn bench(&self, at: At, arguments: &[&str]) -> Result<Vec<Value>, Failure> {
        let leader = self.leader().await?;
        let first = if at == At::Follower { (leader + 1) % self.cluster.size() } else { leader };
        let others = (0..self.cluster.size()).filter(|index| *index != first);
        let urls: Vec<String> = std::iter::once(first)
            .chain(others)
            .map(|index| format!("http://{}", self.cluster.http(index)))
            .collect();
        let mut command = Command::new(CORTEX);
        command.arg("bench").args(arguments).args(["--workers", WORKERS, "--endpoint", &urls.join(",")]);
        if at == At::Database {
            command.args(["--database-url", self.cluster.database_url()]);
        }
        let output =
            command.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true).output().await?;
        if !output.status.success() {
            return Err(format!("cortex bench {}: {}", arguments.join(" "), output.status).into());
        }
        lines(&output.stdout)
    }

    /// The last line of such a run.
    pub async fn bench_once(&self, at: At, arguments: &[&str]) -> Result<Value, Failure> {
        let mut lines = self.bench(at, arguments).await?;
        lines.pop().ok_or_else(|| format!("cortex bench {} said nothing", arguments.join(" ")).into())
    }
}

/// Reads lines of JSON; what does not begin like an object is not for us.
pub fn lines(output: &[u8]) -> Result<Vec<Value>, Failure> {
    let text = String::from_utf8_lossy(output);
    text.lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).map_err(Into::into))
        .collect()
}
