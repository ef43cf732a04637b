//! A private Redis.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep, timeout};

use super::binaries;
use super::error::DevError;
use super::orphan;
use super::process::{Child, Launch};

/// Longest wait for an answer after the start; loading the data is part of it.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// Longest wait for a clean stop.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// How to start a [`Redis`].
#[derive(Debug, Clone)]
pub struct RedisOptions {
    /// Folder of the append-only files; created with everything above it.
    pub data_dir: PathBuf,
    /// Where Redis' output goes, appended.
    pub log: PathBuf,
    /// Port on 127.0.0.1.
    pub port: u16,
}

/// A running Redis that keeps its data in append-only files, synced every second.
pub struct Redis {
    options: RedisOptions,
    server: Child,
}

impl Redis {
    /// Starts Redis on its data and waits until it answers.
    ///
    /// The caller must be the only one who uses the data directory: a Redis that an earlier run left behind
    /// there is ended.
    ///
    /// # Errors
    /// When Redis is not installed, the port is taken, or it does not start; the log is quoted.
    pub async fn start(options: RedisOptions) -> Result<Self, DevError> {
        let server = launch(&options).await?;
        Ok(Self { options, server })
    }

    /// Starts it again on the same data and port after it has ended or was killed.
    ///
    /// # Errors
    /// As [`Redis::start`].
    pub async fn restart(&mut self) -> Result<(), DevError> {
        self.stop().await;
        self.server = launch(&self.options).await?;
        Ok(())
    }

    /// Stops it cleanly: what it holds is written.
    pub async fn stop(&self) {
        self.server.stop(Signal::SIGTERM, STOP_WITHIN).await;
    }

    /// Its URL.
    pub fn url(&self) -> String {
        url(self.options.port)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.server.pid()
    }

    /// Sends a signal; answers whether it was there to take it.
    pub fn signal(&self, signal: Signal) -> bool {
        self.server.signal(signal)
    }

    /// What [`Redis::url`] will be on a port.
    pub(super) fn url_on(port: u16) -> String {
        url(port)
    }

    pub(super) fn server(&self) -> &Child {
        &self.server
    }
}

fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}")
}

async fn launch(options: &RedisOptions) -> Result<Child, DevError> {
    let program = binaries::redis_server()?;
    let failed = || DevError::io(format!("create {}", options.data_dir.display()));
    fs::create_dir_all(&options.data_dir).map_err(failed())?;
    let home = options.data_dir.canonicalize().map_err(failed())?;
    let pid_file = home.join("redis.pid");
    let name = program.file_name().and_then(|name| name.to_str()).unwrap_or("redis-server");
    orphan::end(&pid_file, name, &home, Signal::SIGTERM).await;

    let mut command = Command::new(&program);
    command.args(["--bind", "127.0.0.1", "--port", &options.port.to_string(), "--daemonize", "no"]);
    command.args(["--appendonly", "yes", "--appendfsync", "everysec", "--save", ""]);
    command.arg("--dir").arg(&home).arg("--pidfile").arg(&pid_file).current_dir(&home);
    let log = options.log.clone();
    let server =
        Launch { name: "Redis".into(), command, log, account: None, abandon: Signal::SIGTERM }.start()?;
    wait_until_ready(&server, options.port, &options.log).await?;
    Ok(server)
}

async fn wait_until_ready(server: &Child, port: u16, log: &Path) -> Result<(), DevError> {
    let deadline = Instant::now() + READY_WITHIN;
    loop {
        if !server.is_running() {
            let status = server.exited().await;
            return Err(DevError::child(format!("Redis ended ({status})"), log));
        }
        if matches!(timeout(Duration::from_secs(2), ping(port)).await, Ok(Ok(()))) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let what = format!("Redis did not answer within {} s", READY_WITHIN.as_secs());
            return Err(DevError::child(what, log));
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Fails while Redis still loads its data.
async fn ping(port: u16) -> redis::RedisResult<()> {
    let mut connection = redis::Client::open(url(port))?.get_multiplexed_async_connection().await?;
    redis::cmd("PING").query_async(&mut connection).await
}
