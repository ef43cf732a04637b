//! Other queues on the same machine, through their harness: a folder with `run.sh PEER WORKLOAD`, which prints
//! a line of JSON, `services.sh start|stop`, and one folder for each peer with its `peer.toml`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::timeout;

use crate::report::say;
use crate::stage::lines;
use crate::{Failure, Options};

/// Longest time for one run.
const RUN_WITHIN: Duration = Duration::from_secs(400);
/// Peers whose default settings poll too rarely for some workloads, and the variant that is told at once.
const VARIANTS: [(&str, &str); 1] = [("pg-boss", "pg-boss@notify")];
/// Workloads that a variant is for.
const VARIANT_WORKLOADS: [&str; 3] = ["W3", "W4", "W5"];

/// The harness.
pub struct Peers {
    folder: PathBuf,
    names: Vec<String>,
    backends: HashMap<String, String>,
}

impl Peers {
    /// The peers in the folder that was given, as far as they are wanted; says so where there are none.
    pub fn find(options: &Options) -> Result<Option<Self>, Failure> {
        let Some(folder) = &options.peers else {
            say("no peers: neither --peers nor CORTEX_PEERS names their folder");
            return Ok(None);
        };
        if !folder.join("run.sh").is_file() {
            say(&format!("no peers: there is no run.sh in {}", folder.display()));
            return Ok(None);
        }
        let folder = folder.canonicalize()?;
        let mut backends = HashMap::new();
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if let Some(backend) = backend_of(&path) {
                backends.insert(name, backend);
            }
        }
        // Brokers that are stores of their own keep nothing of a job; they are no choice for the same use.
        backends.retain(|_, backend| backend == "postgres" || backend == "redis");
        for (name, variant) in VARIANTS {
            if let Some(backend) = backends.get(name).cloned() {
                backends.insert(variant.to_owned(), backend);
            }
        }
        let mut names: Vec<String> = backends.keys().cloned().collect();
        names.sort();
        Ok(Some(Self { folder, names, backends }))
    }

    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether the peer keeps its jobs in PostgreSQL.
    pub fn on_postgres(&self, name: &str) -> bool {
        self.backends.get(name).is_some_and(|backend| backend == "postgres")
    }

    /// Whether this workload makes sense for the peer.
    pub fn runs(&self, name: &str, workload: &str) -> bool {
        !name.contains('@') || VARIANT_WORKLOADS.contains(&workload)
    }

    /// One run. That it failed is a result, too.
    pub async fn run(&self, name: &str, workload: &str, quick: bool) -> Value {
        match self.try_run(name, workload, quick).await {
            Ok(line) => line,
            Err(error) => json!({"peer": name, "failed": true, "notes": error.to_string()}),
        }
    }

    /// Stops the stores that the runs have started.
    pub async fn stop(&self) -> Result<(), Failure> {
        let stopped = Command::new(self.folder.join("services.sh")).arg("stop").status().await?;
        if stopped.success() { Ok(()) } else { Err(format!("services.sh stop: {stopped}").into()) }
    }

    async fn try_run(&self, name: &str, workload: &str, quick: bool) -> Result<Value, Failure> {
        let mut command = Command::new(self.folder.join("run.sh"));
        command.args([name, workload]).stdin(Stdio::null()).kill_on_drop(true);
        if quick {
            let jobs = if workload == "W3" { "100" } else { "2000" };
            command.env("BENCH_W4_S", "2");
            if workload.starts_with("W1") || workload.starts_with("W2") || workload == "W3" {
                command.env("BENCH_N", jobs);
            }
        }
        let output = timeout(RUN_WITHIN, command.output()).await??;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().last().unwrap_or_default();
            return Err(format!("{}: {last}", output.status).into());
        }
        lines(&output.stdout)?.pop().ok_or_else(|| "it printed nothing".into())
    }
}

/// What a `peer.toml` says about its store.
fn backend_of(folder: &Path) -> Option<String> {
    let text = fs::read_to_string(folder.join("peer.toml")).ok()?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("backend"))?;
    Some(line.trim_start_matches([' ', '=']).trim().trim_matches('"').to_owned())
}
