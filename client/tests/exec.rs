//! Commands that behave, and commands that do not.

use std::{path::Path, time::Duration};

use cortex_client::{AssignedJob, CancellationToken, ExecHandler, Handler, JobFailure};
use nix::{errno::Errno, sys::signal::kill, unistd::Pid};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(20);

fn job(input: impl Into<String>) -> AssignedJob {
    AssignedJob {
        id: "job-1".to_owned(),
        name: "test".to_owned(),
        model_name: "model".to_owned(),
        model_version: "v2".to_owned(),
        input_data: input.into().into(),
        timeout: None,
        execution_id: "lease-1".to_owned(),
        attempt: 3,
        traceparent: String::new(),
        tracestate: String::new(),
    }
}

async fn exec(handler: ExecHandler, input: &str) -> Result<Value, JobFailure> {
    let never = CancellationToken::new();
    timeout(PATIENCE, handler.run(job(input), never)).await.expect("the command hangs")
}

async fn sh(command: &str) -> Result<Value, JobFailure> {
    exec(ExecHandler::new(command), "{}").await
}

/// A failure's code and message.
fn parts(result: Result<Value, JobFailure>) -> (String, String) {
    let failure = result.expect_err("the job must fail");
    (failure.code.unwrap_or_default(), failure.message)
}

/// Waits for a command to write its process id.
async fn pid_in(file: &Path) -> Pid {
    let read = async {
        loop {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            if let Some(pid) = text.strip_suffix('\n') {
                return Pid::from_raw(pid.parse().unwrap());
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, read).await.expect("the command never started")
}

/// Waits until a process is gone; a zombie counts as gone only when reaped.
async fn gone(pid: Pid) {
    let wait = async {
        while !is_gone(pid) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, wait).await.expect("the process still lives");
}

/// Whether a process has ended. An orphan is init's to reap, which is slow or
/// never in some containers, so a zombie that is not ours is gone, too.
fn is_gone(pid: Pid) -> bool {
    if kill(pid, None) == Err(Errno::ESRCH) {
        return true;
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let mut fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ');
    let state = fields.next().unwrap_or_default();
    let parent = fields.next().unwrap_or_default();
    state == "Z" && parent != std::process::id().to_string()
}

#[tokio::test]
async fn the_output_is_what_the_command_makes_of_its_input() {
    let handler = ExecHandler::new(
        r#"printf '{"in":%s,"env":"%s %s %s %s"}' "$(cat)" \
           "$CORTEX_JOB_ID" "$CORTEX_MODEL_NAME" "$CORTEX_MODEL_VERSION" "$CORTEX_ATTEMPT""#,
    );
    let output = exec(handler, r#"{"x":1}"#).await.unwrap();
    assert_eq!(output, json!({"in": {"x": 1}, "env": "job-1 model v2 3"}));
}

#[tokio::test]
async fn no_output_is_an_empty_object() {
    assert_eq!(sh("true").await, Ok(json!({})));
    assert_eq!(sh("echo").await, Ok(json!({})));
}

#[tokio::test]
async fn a_failure_carries_the_end_of_standard_error() {
    let (code, message) = parts(sh("seq 100000 >&2; echo the reason >&2; exit 3").await);
    assert_eq!(code, "exit_3");
    assert!(message.ends_with("\n100000\nthe reason"));
    assert!(message.len() <= 2048 && message.len() > 2000);
}

#[tokio::test]
async fn a_silent_failure_says_how_it_ended() {
    let expected = |code: &str, text: &str| (code.to_owned(), text.to_owned());
    assert_eq!(parts(sh("exit 7").await), expected("exit_7", "exited with status 7"));
    assert_eq!(parts(sh("kill -9 $$").await), expected("signal_9", "killed by signal 9"));
}

#[tokio::test]
async fn output_that_is_no_json_object_fails_the_job() {
    assert_eq!(parts(sh("echo hello").await).0, "bad_output");
    assert_eq!(parts(sh("echo [1]").await).0, "bad_output");
    assert_eq!(parts(sh("echo '{} {}'").await).0, "bad_output");
}

#[tokio::test]
async fn large_input_and_output_pass_at_the_same_time() {
    let text = "x".repeat(600_000);
    let input = json!({ "text": text }).to_string();
    // Also fills standard error, far beyond a pipe's buffer.
    let handler = ExecHandler::new("head -c 300000 /dev/zero >&2; cat");
    assert_eq!(exec(handler, &input).await, Ok(json!({ "text": text })));
}

#[tokio::test]
async fn a_command_may_leave_its_input_unread() {
    let input = json!({ "text": "x".repeat(600_000) }).to_string();
    let output = exec(ExecHandler::new("echo '{\"ok\":true}'"), &input).await;
    assert_eq!(output, Ok(json!({"ok": true})));
}

#[tokio::test]
async fn too_much_output_stops_the_command() {
    let handler = ExecHandler { max_output: 1000, ..ExecHandler::new("yes; sleep 1000") };
    assert_eq!(parts(exec(handler, "{}").await).0, "output_too_large");
    let exact = ExecHandler { max_output: 2, ..ExecHandler::new("printf '{}'") };
    assert_eq!(exec(exact, "{}").await, Ok(json!({})));
}

#[tokio::test]
async fn what_a_command_leaves_running_is_killed_with_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let command = format!("sleep 1000 & echo $! > {}; echo '{{\"a\":1}}'", file.display());
    let started = Instant::now();
    assert_eq!(sh(&command).await, Ok(json!({"a": 1})));
    assert!(started.elapsed() < Duration::from_secs(10));
    gone(pid_in(&file).await).await;
}

#[tokio::test]
async fn output_that_never_ends_is_not_taken_for_complete() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    // The shell stays until the other one has left its group.
    let command = format!(
        "echo '{{}}'; setsid sh -c 'echo $$ > {0}; sleep 1000' & until [ -s {0} ]; do sleep 0.02; done",
        file.display()
    );
    assert_eq!(parts(sh(&command).await).0, "bad_output");
    let escaped = pid_in(&file).await;
    nix::sys::signal::killpg(escaped, nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_cancelled_command_ends_with_its_grandchildren() {
    let dir = tempfile::tempdir().unwrap();
    let (child, grandchild) = (dir.path().join("child"), dir.path().join("grandchild"));
    let handler = ExecHandler::new(format!(
        "sh -c 'echo $$ > {}; sleep 1000; true' & echo $$ > {}; wait",
        grandchild.display(),
        child.display(),
    ));
    let cancel = CancellationToken::new();
    let run = tokio::spawn({
        let cancel = cancel.clone();
        async move { handler.run(job("{}"), cancel).await }
    });
    let (child, grandchild) = (pid_in(&child).await, pid_in(&grandchild).await);
    cancel.cancel();
    let (code, _) = parts(timeout(PATIENCE, run).await.unwrap().unwrap());
    assert_eq!(code, "cancelled");
    assert_eq!(kill(child, None), Err(Errno::ESRCH), "the shell is reaped at once");
    gone(grandchild).await;
}

#[tokio::test]
async fn a_command_gets_its_grace_and_not_more() {
    let grace = Duration::from_secs(3);
    let dir = tempfile::tempdir().unwrap();
    let (file, note) = (dir.path().join("pid"), dir.path().join("note"));
    let stubborn = ExecHandler {
        grace,
        ..ExecHandler::new(format!(
            "trap 'echo asked > {}' TERM; echo $$ > {}; while :; do sleep 0.05; done",
            note.display(),
            file.display()
        ))
    };
    let cancel = CancellationToken::new();
    let run = tokio::spawn({
        let cancel = cancel.clone();
        async move { stubborn.run(job("{}"), cancel).await }
    });
    let pid = pid_in(&file).await;
    let cancelled_at = Instant::now();
    cancel.cancel();
    timeout(PATIENCE, run).await.unwrap().unwrap().unwrap_err();
    assert!(cancelled_at.elapsed() >= grace);
    assert_eq!(std::fs::read_to_string(note).unwrap(), "asked\n");
    assert_eq!(kill(pid, None), Err(Errno::ESRCH));
}

#[tokio::test]
async fn a_dropped_run_kills_the_process_group() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let handler = ExecHandler::new(format!("sleep 1000 & echo $! > {}; wait", file.display()));
    let run = tokio::spawn(async move { handler.run(job("{}"), CancellationToken::new()).await });
    let pid = pid_in(&file).await;
    run.abort();
    gone(pid).await;
}
