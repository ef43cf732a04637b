//! A child process that never outlives its parent.
//!
//! Each child has a thread of its own that starts it and waits for it. The kernel ties the signal at
//! parent death (`PR_SET_PDEATHSIG`) to the *thread* that forked, so the thread must live as long as the
//! child; and waiting there makes a child independent of any runtime, so tests can share it.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::{self, Signal};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getppid};
use tokio::sync::watch;

use super::account::Account;
use super::error::DevError;

/// How a child is started.
pub(super) struct Launch {
    /// Shown in messages, for example `replica 1`.
    pub(super) name: String,
    /// Program, arguments and environment.
    pub(super) command: Command,
    /// Takes standard output and standard error, appended.
    pub(super) log: PathBuf,
    /// Runs it under this account.
    pub(super) account: Option<Account>,
    /// What it gets when it is abandoned: when its handle is dropped or this process dies.
    pub(super) abandon: Signal,
}

/// A running or ended child. Dropping it abandons the child.
pub(super) struct Child {
    name: String,
    log: PathBuf,
    pid: Pid,
    abandon: Signal,
    exit: watch::Receiver<Option<ExitStatus>>,
    /// Whether the process id has been given back to the kernel; held while signalling.
    reaped: Arc<Mutex<bool>>,
}

impl Launch {
    /// Starts the child in a process group of its own, so that Ctrl-C on the terminal does not reach it.
    pub(super) fn start(self) -> Result<Child, DevError> {
        let Self { name, mut command, log, account, abandon } = self;
        let failed = |name: &str| DevError::io(format!("start {name}"));
        let output = OpenOptions::new().create(true).append(true).open(&log).map_err(failed(&name))?;
        let errors = output.try_clone().map_err(failed(&name))?;
        command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0);
        if let Some(account) = account {
            command.uid(account.uid).gid(account.gid);
        }
        die_with_parent(&mut command, abandon);
        let (started, start) = mpsc::channel();
        let (exited, exit) = watch::channel(None);
        let reaped = Arc::new(Mutex::new(false));
        let reap_flag = Arc::clone(&reaped);
        std::thread::Builder::new()
            .name(format!("wait {name}"))
            .spawn(move || run(command, &started, &exited, &reap_flag))
            .map_err(failed(&name))?;
        let pid = start
            .recv()
            .unwrap_or_else(|_| Err(io::Error::other("its thread ended")))
            .map_err(failed(&name))?;
        Ok(Child { name, log, pid, abandon, exit, reaped })
    }

    /// Runs the child to its end, which must be a success.
    pub(super) async fn run(self) -> Result<(), DevError> {
        let child = self.start()?;
        let status = child.exited().await;
        if status.success() {
            return Ok(());
        }
        Err(DevError::child(format!("{} failed ({status})", child.name), &child.log))
    }
}

impl Child {
    pub(super) fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    pub(super) fn is_running(&self) -> bool {
        self.exit.borrow().is_none()
    }

    /// Waits for the end. Cancellation safe.
    pub(super) fn exited(&self) -> impl Future<Output = ExitStatus> + Send + use<> {
        let mut exit = self.exit.clone();
        async move {
            match exit.wait_for(Option::is_some).await {
                Ok(status) => (*status).unwrap_or_default(),
                // The waiting thread always sends before it ends.
                Err(_) => ExitStatus::default(),
            }
        }
    }

    /// Sends a signal; answers whether the process was still there to take it.
    pub(super) fn signal(&self, signal: Signal) -> bool {
        let reaped = self.reaped.lock().unwrap_or_else(PoisonError::into_inner);
        !*reaped && signal::kill(self.pid, signal).is_ok()
    }

    /// Asks it to end, also when it is stopped, and kills it after `grace`.
    pub(super) async fn stop(&self, ask: Signal, grace: Duration) {
        if !self.signal(ask) {
            return;
        }
        self.signal(Signal::SIGCONT);
        if tokio::time::timeout(grace, self.exited()).await.is_err() {
            self.signal(Signal::SIGKILL);
            self.exited().await;
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.signal(self.abandon) {
            self.signal(Signal::SIGCONT);
        }
    }
}

fn run(
    mut command: Command,
    started: &mpsc::Sender<io::Result<Pid>>,
    exited: &watch::Sender<Option<ExitStatus>>,
    reaped: &Mutex<bool>,
) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(error) => {
            let _ = started.send(Err(error));
            return;
        }
    };
    let pid = Pid::from_raw(child.id().cast_signed());
    let _ = started.send(Ok(pid));
    // Wait without reaping: until the lock is taken, the process id must not be given to another process.
    while let Err(nix::Error::EINTR) = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {}
    let mut reaped = reaped.lock().unwrap_or_else(PoisonError::into_inner);
    let status = child.wait().unwrap_or_default();
    *reaped = true;
    exited.send_replace(Some(status));
}

/// Has the kernel signal the child when the thread that starts it ends.
#[expect(unsafe_code, reason = "the kernel takes this setting from the child itself, between fork and exec")]
fn die_with_parent(command: &mut Command, signal: Signal) {
    let parent = Pid::this();
    // SAFETY: after fork only async-signal-safe calls are made (prctl and getppid), and nothing is allocated.
    // The standard library changes the account before this runs, which would clear the setting.
    unsafe {
        command.pre_exec(move || {
            prctl::set_pdeathsig(signal)?;
            if getppid() == parent { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(script: &str) -> (Child, PathBuf) {
        let log = std::env::temp_dir().join(format!("cortex-process-{:p}.log", script.as_ptr()));
        let _ = std::fs::remove_file(&log);
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        let name = "a shell".to_owned();
        let launch = Launch { name, command, log: log.clone(), account: None, abandon: Signal::SIGKILL };
        (launch.start().unwrap(), log)
    }

    #[tokio::test]
    async fn a_child_that_ignores_the_request_is_killed_after_the_grace() {
        let (child, log) = launch("trap '' TERM; while :; do read _ < /dev/zero; done");
        child.stop(Signal::SIGTERM, Duration::from_millis(50)).await;
        assert!(!child.is_running());
        assert!(!child.signal(Signal::SIGTERM), "a reaped process is never signalled");
        let _ = std::fs::remove_file(log);
    }

    #[tokio::test]
    async fn the_child_outlives_the_thread_that_asked_for_it_and_ends_with_its_handle() {
        let (child, log) = std::thread::spawn(|| launch("exec sleep 600")).join().unwrap();
        assert!(child.is_running());
        let exited = child.exited();
        assert!(tokio::time::timeout(Duration::from_millis(100), child.exited()).await.is_err());
        drop(child);
        assert!(!exited.await.success());
        let _ = std::fs::remove_file(log);
    }

    #[tokio::test]
    async fn output_goes_to_the_log_which_an_error_quotes() {
        let (child, log) = launch("echo out; echo err >&2; exit 3");
        assert_eq!(child.exited().await.code(), Some(3));
        let error = DevError::child("it failed", &log).to_string();
        assert!(error.contains("it failed") && error.contains("out\nerr"), "{error}");
        let _ = std::fs::remove_file(log);
    }

    #[test]
    fn a_program_that_cannot_be_started_is_an_error() {
        let launch = Launch {
            name: "nothing".to_owned(),
            command: Command::new("/nonexistent/program"),
            log: PathBuf::from("/dev/null"),
            account: None,
            abandon: Signal::SIGKILL,
        };
        assert!(launch.start().err().unwrap().to_string().contains("cannot start nothing"));
    }
}
