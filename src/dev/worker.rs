//! One demo worker of a development cluster.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use super::error::DevError;
use super::process::{Child, Launch};

/// Jobs at a time.
const SLOTS: u32 = 4;
/// How long a demo job takes, in milliseconds.
const SLEEP_MS: u32 = 200;

/// A worker process that answers every job with its input.
pub(super) struct DemoWorker {
    pub(super) name: String,
    pub(super) process: Child,
}

impl DemoWorker {
    /// Starts worker `number` (from 1) for the replicas at `endpoints`, a comma-separated list of URLs.
    pub(super) fn start(
        number: u16,
        binary: &Path,
        endpoints: &str,
        data_dir: &Path,
        environment: &BTreeMap<String, String>,
    ) -> Result<Self, DevError> {
        let name = format!("demo-{number}");
        let log = data_dir.join(format!("worker-{name}.log"));
        let _ = fs::remove_file(&log);
        let mut command = Command::new(binary);
        command.args(["worker", "--endpoint", endpoints, "--name", &name]);
        command.args(["--slots", &SLOTS.to_string(), "--sleep-ms", &SLEEP_MS.to_string()]);
        command.envs(environment);
        let title = format!("worker {name}");
        let process =
            Launch { name: title, command, log, account: None, abandon: Signal::SIGKILL }.start()?;
        Ok(Self { name, process })
    }
}
