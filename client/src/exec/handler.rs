//! [`ExecHandler`].

use std::{
    os::unix::process::ExitStatusExt,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use serde_json::{Map, Value};
use tokio::process::{Child, Command};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{
    group::ProcessGroup,
    pipes::{self, TooLarge},
};
use crate::worker::{AssignedJob, Handler, JobFailure};

const STDERR_TAIL: usize = 2 * 1024;

/// After the command has ended its pipes are at their end, too, unless a process
/// left the group and took them along: nobody waits longer than this for it.
const PIPES_LINGER: Duration = Duration::from_secs(1);

/// Runs `sh -c COMMAND` once per job.
///
/// | what | how |
/// | --- | --- |
/// | input | JSON on standard input, which is then closed |
/// | output | a JSON object on standard output; nothing means `{}` |
/// | failure | exit status other than 0: the end of standard error is the message, `exit_N` the code (`signal_N` after a signal) |
/// | bad output | code `bad_output`; more than [`max_output`](Self::max_output): `output_too_large` |
/// | environment | `CORTEX_JOB_ID`, `CORTEX_MODEL_NAME`, `CORTEX_MODEL_VERSION`, `CORTEX_ATTEMPT`; `TRACEPARENT` and `TRACESTATE` (W3C) of a job that is traced |
/// | cancel, timeout | SIGTERM to the process group, SIGKILL after [`grace`](Self::grace) |
///
/// What the command leaves running in its process group is killed when it ends.
#[derive(Debug, Clone)]
pub struct ExecHandler {
    /// What `sh -c` gets.
    pub command: String,
    /// Between SIGTERM and SIGKILL, by default 5 s.
    pub grace: Duration,
    /// How many bytes the command may answer, by default 1 MiB.
    pub max_output: usize,
}

/// How a command came to its end.
enum End {
    Exited(ExitStatus),
    Cancelled,
    TooLarge,
}

impl ExecHandler {
    /// A handler with the default grace and output limit.
    pub fn new(command: impl Into<String>) -> Self {
        Self { command: command.into(), grace: Duration::from_secs(5), max_output: 1024 * 1024 }
    }

    fn spawn(&self, job: &AssignedJob) -> Result<Child, JobFailure> {
        let mut command = Command::new("sh");
        // Only the job's: the worker itself may have been started within a trace.
        for (name, value) in [("TRACEPARENT", &job.traceparent), ("TRACESTATE", &job.tracestate)] {
            if value.is_empty() {
                command.env_remove(name)
            } else {
                command.env(name, value)
            };
        }
        command
            .arg("-c")
            .arg(&self.command)
            .env("CORTEX_JOB_ID", &job.id)
            .env("CORTEX_MODEL_NAME", &job.model_name)
            .env("CORTEX_MODEL_VERSION", &job.model_version)
            .env("CORTEX_ATTEMPT", job.attempt.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            // Hands the shell to the runtime's reaper if this future is dropped.
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failure("spawn_failed", format!("the shell could not be started: {e}")))
    }
}

impl Handler for ExecHandler {
    async fn run(&self, job: AssignedJob, cancel: CancellationToken) -> Result<Value, JobFailure> {
        let mut child = self.spawn(&job)?;
        let group = child.id().and_then(ProcessGroup::led_by);
        let (Some(group), Some(stdin), Some(stdout), Some(stderr)) =
            (group, child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(failure("spawn_failed", "the shell was started without its pipes"));
        };
        let _feed = background(pipes::feed(stdin, job.input_data));
        let mut stdout = background(pipes::read_bounded(stdout, self.max_output));
        let stderr = background(pipes::read_tail(stderr, STDERR_TAIL));

        let mut output = None;
        let end = loop {
            tokio::select! {
                status = child.wait() => match status {
                    Ok(status) => break End::Exited(status),
                    Err(e) => return Err(failure("wait_failed", e.to_string())),
                },
                read = &mut stdout, if output.is_none() => match read.unwrap_or(Err(TooLarge)) {
                    Ok(bytes) => output = Some(bytes),
                    Err(TooLarge) => break End::TooLarge,
                },
                () = cancel.cancelled() => break End::Cancelled,
            }
        };
        match end {
            End::Exited(status) => {
                // Whatever the command left running would keep the pipes open.
                group.kill();
                let output = match output {
                    Some(bytes) => Ok(bytes),
                    None => linger(stdout).await.ok_or_else(kept_open)?,
                };
                conclude(status, output, stderr).await
            }
            End::TooLarge => {
                group.kill();
                let _ = child.wait().await;
                Err(too_large())
            }
            End::Cancelled => {
                // The shell is reaped meanwhile: a zombie keeps its group alive.
                let end_group = async {
                    group.terminate(self.grace).await;
                    group.kill();
                };
                let (_, ()) = tokio::join!(child.wait(), end_group);
                Err(failure("cancelled", "the command was stopped"))
            }
        }
    }

    /// The grace, and time to notice that it has passed.
    fn wind_up_time(&self) -> Duration {
        self.grace + Duration::from_secs(2)
    }
}

/// The result of a command that ended by itself.
async fn conclude(
    status: ExitStatus,
    output: Result<Vec<u8>, TooLarge>,
    stderr: AbortOnDropHandle<Vec<u8>>,
) -> Result<Value, JobFailure> {
    if !status.success() {
        let tail = linger(stderr).await.unwrap_or_default();
        return Err(exit_failure(status, &pipes::tail_text(&tail)));
    }
    let bytes = output.map_err(|TooLarge| too_large())?;
    if bytes.trim_ascii().is_empty() {
        return Ok(Value::Object(Map::new()));
    }
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(object)) => Ok(Value::Object(object)),
        Ok(_) => Err(failure("bad_output", "the output is JSON but not an object")),
        Err(e) => Err(failure("bad_output", format!("the output is not JSON: {e}"))),
    }
}

fn exit_failure(status: ExitStatus, stderr: &str) -> JobFailure {
    let (code, fallback) = match (status.code(), status.signal()) {
        (Some(code), _) => (format!("exit_{code}"), format!("exited with status {code}")),
        (None, Some(signal)) => (format!("signal_{signal}"), format!("killed by signal {signal}")),
        (None, None) => ("exit_unknown".to_owned(), status.to_string()),
    };
    let message = if stderr.is_empty() { fallback } else { stderr.to_owned() };
    failure(&code, message)
}

fn kept_open() -> JobFailure {
    failure("bad_output", "a process that left the command's process group keeps its standard output open")
}

fn too_large() -> JobFailure {
    failure("output_too_large", "the output is larger than allowed")
}

fn failure(code: &str, message: impl Into<String>) -> JobFailure {
    JobFailure::new(message).with_code(code)
}

fn background<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> AbortOnDropHandle<T> {
    AbortOnDropHandle::new(tokio::spawn(task))
}

async fn linger<T>(task: AbortOnDropHandle<T>) -> Option<T> {
    tokio::time::timeout(PIPES_LINGER, task).await.ok()?.ok()
}
