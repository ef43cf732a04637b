//! From messages to commands: everything that a worker can get wrong is found here.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use cortex_client::proto::{
    HeartbeatRequest, JobCompletion, JobStatusUpdate, PollJobRequest, WorkerRegistration,
};
use serde_json::Map;

use crate::api::convert::{self, MAX_DURATION_MS, MAX_WAIT, storable_text};
use crate::domain::execution::Usage;
use crate::domain::ids::{JobId, LeaseId, WorkerId};
use crate::domain::matching::capabilities_from_strings;
use crate::domain::payload::Payload;
use crate::domain::transition::{Failure, JobEvent, Reporter};
use crate::domain::validate::{FieldError, Validator, check_text};
use crate::domain::worker::{WorkerDraft, WorkerStatus};
use crate::services::command::Heartbeat;

type Parsed<T> = Result<T, Vec<FieldError>>;

/// Seconds between heartbeats of a worker that does not say.
const DEFAULT_HEARTBEAT_SECONDS: i64 = 30;
/// Longest error code, in characters.
const MAX_ERROR_CODE: usize = 50;

/// Reads a registration; `peer` is where the call came from.
pub(super) fn registration(message: WorkerRegistration, peer: Option<IpAddr>) -> Parsed<WorkerDraft> {
    let mut v = Validator::default();
    let strings = message.capabilities.iter().map(|(key, text)| (key.as_str(), text.as_str()));
    let capabilities = v.absorb(capabilities_from_strings(strings)).unwrap_or_default();
    let ip_address = match peer {
        Some(peer) if message.ip_address.is_empty() => peer.to_canonical().to_string(),
        _ => message.ip_address,
    };
    let or = |value: i32, default: i64| if value == 0 { default } else { i64::from(value) };
    let draft = WorkerDraft {
        name: message.name,
        hostname: message.hostname,
        ip_address,
        port: i64::from(message.port),
        capabilities,
        max_concurrent_jobs: or(message.max_concurrent_jobs, 1),
        heartbeat_interval_seconds: or(message.heartbeat_interval_seconds, DEFAULT_HEARTBEAT_SECONDS),
        version: Some(message.version).filter(|version| !version.is_empty()),
        metadata: Map::new(),
    };
    convert::checked_draft(v, draft)
}

/// Reads a sign of life.
pub(super) fn heartbeat(message: &HeartbeatRequest) -> Parsed<Heartbeat> {
    let mut v = Validator::default();
    let worker_id = convert::id(&mut v, "worker_id", &message.worker_id);
    let status = match message.status.as_str() {
        "" => Some(WorkerStatus::Idle),
        text => text.parse().map_err(|allowed: String| v.reject("status", allowed)).ok(),
    };
    let current_job_count = u32::try_from(message.current_job_count).ok();
    if current_job_count.is_none() {
        v.reject("current_job_count", "must not be negative");
    }
    let current_jobs = convert::listed_jobs(&mut v, &message.current_jobs);
    let loaded_models = convert::loaded_models(&mut v, message.loaded_models.clone());
    let usage = usage(&message.metrics);
    let heartbeat = (|| {
        Some(Heartbeat {
            worker_id: worker_id?,
            status: status?,
            current_job_count: current_job_count?,
            current_jobs: current_jobs?,
            usage,
            loaded_models: loaded_models?,
            metadata: None,
        })
    })();
    v.finish(heartbeat)
}

/// Reads who asks for a job, and how long it waits for one.
pub(super) fn poll(message: &PollJobRequest) -> Parsed<(WorkerId, Duration)> {
    let mut v = Validator::default();
    let worker_id = convert::id(&mut v, "worker_id", &message.worker_id);
    let wait = u64::try_from(message.wait_ms).map(Duration::from_millis);
    if wait.is_err() {
        v.reject("wait_ms", "must not be negative");
    }
    v.finish(worker_id.zip(wait.ok()).map(|(id, wait)| (id, wait.min(MAX_WAIT))))
}

/// Reads a report about a job that has not ended well. On a session the worker need not name itself.
pub(super) fn status_update(message: &JobStatusUpdate, who: Option<WorkerId>) -> Parsed<(JobId, JobEvent)> {
    let mut v = Validator::default();
    let ids = [&message.job_id, &message.worker_id, &message.execution_id].map(String::as_str);
    let ids = reported(&mut v, who, ids, message.attempt_number);
    if !matches!(message.status.as_str(), "running" | "rejected" | "failed") {
        v.reject("status", "must be one of running, rejected, failed");
    }
    let (job, by) = v.finish(ids)?;
    let (usage, text) = (usage(&message.metrics), storable_text(&message.message));
    let event = match message.status.as_str() {
        "running" => JobEvent::Started { by, usage },
        "rejected" => JobEvent::Rejected { by, message: text },
        _ => JobEvent::Failed { by, failure: failure(text, "", ""), duration_ms: None, usage },
    };
    Ok((job, event))
}

/// Reads the report that ends a job. On a session the worker need not name itself.
pub(super) fn completion(message: &JobCompletion, who: Option<WorkerId>) -> Parsed<(JobId, JobEvent)> {
    let mut v = Validator::default();
    let ids = [&message.job_id, &message.worker_id, &message.execution_id].map(String::as_str);
    let ids = reported(&mut v, who, ids, message.attempt_number);
    if !(0..=MAX_DURATION_MS).contains(&message.duration_ms) {
        v.reject("duration_ms", format!("must be a whole number from 0 to {MAX_DURATION_MS}"));
    }
    let duration_ms = Some(message.duration_ms).filter(|duration| *duration > 0);
    let usage = usage(&message.metrics);
    if !message.success {
        if let Err(allowed) = check_text(&message.error_code, 0, MAX_ERROR_CODE) {
            v.reject("error_code", allowed);
        }
        let (job, by) = v.finish(ids)?;
        let failure =
            failure(storable_text(&message.error_message), &message.error_stack, &message.error_code);
        return Ok((job, JobEvent::Failed { by, failure, duration_ms, usage }));
    }
    let output = (!message.output_data.is_empty())
        .then(|| {
            Payload::from_utf8(&message.output_data).map_err(|wrong| v.reject("output_data", wrong)).ok()
        })
        .flatten();
    let (job, by) = v.finish(ids)?;
    Ok((job, JobEvent::Completed { by, output, duration_ms, usage }))
}

/// Which job a report is about, and who sends it.
fn reported(
    v: &mut Validator,
    who: Option<WorkerId>,
    [job, worker, lease]: [&str; 3],
    attempt_number: i32,
) -> Option<(JobId, Reporter)> {
    let job = convert::id(v, "job_id", job);
    let worker_id = match who {
        Some(who) if worker.is_empty() => Some(who),
        _ => convert::id(v, "worker_id", worker),
    };
    if who.is_some() && worker_id.is_some_and(|worker_id| Some(worker_id) != who) {
        v.reject("worker_id", "must be the worker of this session");
    }
    let lease: Option<LeaseId> = if lease.is_empty() { None } else { convert::id(v, "execution_id", lease) };
    let attempt_number = u32::try_from(attempt_number);
    if attempt_number.is_err() {
        v.reject("attempt_number", "must not be negative");
    }
    // A token says it all.
    let attempt_number = attempt_number.ok().filter(|number| *number > 0 && lease.is_none());
    Some((job?, Reporter { worker_id: worker_id?, lease, attempt_number }))
}

fn failure(mut message: String, stack: &str, code: &str) -> Failure {
    if message.is_empty() {
        message.push_str("the worker gave no reason");
    }
    Failure {
        message,
        stack: (!stack.is_empty()).then(|| storable_text(stack)),
        code: (!code.is_empty()).then(|| code.to_owned()),
    }
}

/// Resource use is worth showing and never worth refusing a report for: what is out of range is clamped,
/// what is no number is dropped.
pub(super) fn usage(metrics: &HashMap<String, f64>) -> Usage {
    let within = |name, max| {
        metrics.get(name).copied().filter(|value: &f64| value.is_finite()).map(|value| value.clamp(0.0, max))
    };
    Usage {
        cpu_usage_percent: within("cpu_usage_percent", 100.0),
        memory_usage_mb: within("memory_usage_mb", f64::from(i32::MAX)),
        gpu_usage_percent: within("gpu_usage_percent", 100.0),
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
