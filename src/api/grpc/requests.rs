//! From clients' messages to use cases: everything that a client can get wrong is found here, or by the same checks
//! that REST uses.

use std::time::Duration;

use axum::http::HeaderMap;
use chrono::DateTime;
use cortex_client::proto::{JobSubmission, ListJobsRequest};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::api::convert::{self, MAX_PAGE, MAX_PAGE_SIZE, MAX_TAGS_OF_FILTER};
use crate::domain::changes::Cursor;
use crate::domain::idempotency::KeyDraft;
use crate::domain::ids::JobId;
use crate::domain::job::{JobDraft, JobFilter};
use crate::domain::validate::{FieldError, Validator, check_text};

type Parsed<T> = Result<T, Vec<FieldError>>;

/// A page of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) filter: JobFilter,
    /// From 1.
    pub(super) page: i64,
    /// 1 to 100.
    pub(super) page_size: i64,
}

/// An idempotency key; empty is the same as absent.
pub(super) fn key(text: String) -> Option<KeyDraft> {
    (!text.is_empty()).then(|| KeyDraft { field: "idempotency_key", scope: convert::key_scope(), text })
}

/// The job that a request names.
pub(super) fn job_id(text: &str) -> Parsed<JobId> {
    let mut v = Validator::default();
    let id = convert::id(&mut v, "job_id", text);
    v.finish(id)
}

/// The job that is to be followed, and after what.
pub(super) fn watch(job: &str, after: &str) -> Parsed<(JobId, Option<Cursor>)> {
    let mut v = Validator::default();
    let job = convert::id(&mut v, "job_id", job);
    let after = match after {
        "" => None,
        text => text.parse().map_err(|message: String| v.reject("after", message)).ok(),
    };
    v.finish(job.map(|job| (job, after)))
}

/// Which jobs to list.
pub(super) fn page(request: ListJobsRequest) -> Parsed<Page> {
    let mut v = Validator::default();
    let status = match request.status.as_str() {
        "" => None,
        text => text.parse().map_err(|message: String| v.reject("status", message)).ok(),
    };
    let within = |v: &mut Validator, field: &str, value: i64, max: i64| {
        if !(1..=max).contains(&value) {
            v.reject(field, format!("must be a whole number from 1 to {max}"));
        }
        value
    };
    let priority = request.priority.map(|priority| within(&mut v, "priority", priority.into(), 10));
    let text = |v: &mut Validator, field: &str, text: String| {
        if let Err(message) = check_text(&text, 0, 255) {
            v.reject(field, message);
        }
        (!text.is_empty()).then_some(text)
    };
    let model_name = text(&mut v, "model_name", request.model_name);
    let created_by = text(&mut v, "created_by", request.created_by);
    if request.tags.len() > MAX_TAGS_OF_FILTER {
        v.reject("tags", format!("may be at most {MAX_TAGS_OF_FILTER}"));
    }
    for (key, tag) in &request.tags {
        if let Err(message) = check_text(key, 1, 255).and_then(|()| check_text(tag, 0, 4096)) {
            v.reject("tags", message);
        }
    }
    let or = |value: i32, default: i64| if value == 0 { default } else { i64::from(value) };
    let page = within(&mut v, "page", or(request.page, 1), MAX_PAGE);
    let page_size = within(&mut v, "page_size", or(request.page_size, 50), MAX_PAGE_SIZE);
    let priority = priority.and_then(|priority| u8::try_from(priority).ok());
    let tags = request.tags.into_iter().collect();
    let filter = JobFilter { status, priority, model_name, created_by, tags };
    v.finish(Some(Page { filter, page, page_size }))
}

/// How long the caller waits, by its `grpc-timeout`.
pub(in crate::api) fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = number.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number.saturating_mul(3_600))),
        "M" => Some(Duration::from_secs(number.saturating_mul(60))),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// The same draft that the JSON body of REST would be read into, so that the same checks hold. What cannot be
/// read is noted in `wrong`, and left out.
pub(super) fn draft(job: JobSubmission, wrong: &mut Vec<FieldError>) -> JobDraft {
    let text = |text: String| (!text.is_empty()).then_some(Value::String(text));
    let tags: Map<_, _> = job.tags.into_iter().map(|(key, tag)| (key, Value::String(tag))).collect();
    JobDraft {
        name: text(job.name),
        model_name: text(job.model_name),
        model_version: text(job.model_version),
        input_data: json(wrong, "input_data", &job.input_data),
        priority: job.priority.map(Value::from),
        max_retries: job.max_retries.map(Value::from),
        timeout_seconds: job.timeout_seconds.map(Value::from),
        tags: (!tags.is_empty()).then_some(Value::Object(tags)),
        metadata: json(wrong, "metadata", &job.metadata),
        created_by: text(job.created_by),
        run_at: job.run_at_ms.and_then(|ms| time(wrong, "run_at_ms", ms)),
    }
}

fn time(wrong: &mut Vec<FieldError>, field: &str, ms: i64) -> Option<Value> {
    let time = Some(ms).filter(|ms| *ms >= 0).and_then(DateTime::from_timestamp_millis);
    if time.is_none() {
        wrong.push(FieldError::new(field, "must be milliseconds since 1970-01-01T00:00:00Z"));
    }
    time.map(|time| Value::String(time.to_rfc3339()))
}

fn json(wrong: &mut Vec<FieldError>, field: &str, bytes: &[u8]) -> Option<Box<RawValue>> {
    if bytes.is_empty() {
        return None;
    }
    serde_json::from_slice(bytes)
        .map_err(|error| wrong.push(FieldError::new(field, format!("must be JSON in UTF-8: {error}"))))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields<T: std::fmt::Debug>(parsed: Parsed<T>) -> Vec<String> {
        parsed.unwrap_err().into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn an_empty_request_lists_the_first_fifty_jobs() {
        let first = Page { filter: JobFilter::default(), page: 1, page_size: 50 };
        assert_eq!(page(ListJobsRequest::default()), Ok(first));
    }

    #[test]
    fn every_bad_field_is_named_at_once() {
        let bad = ListJobsRequest {
            status: "done".to_owned(),
            priority: Some(0),
            model_name: "\0".to_owned(),
            created_by: "x".repeat(256),
            tags: [(String::new(), String::new())].into(),
            page: -1,
            page_size: 101,
            without_payloads: false,
        };
        let expected = ["status", "priority", "model_name", "created_by", "tags", "page", "page_size"];
        assert_eq!(fields(page(bad)), expected);
        assert_eq!(fields(watch("x", "y")), ["job_id", "after"]);
    }

    #[test]
    fn a_deadline_is_read_in_every_unit() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().unwrap());
            deadline(&headers)
        };
        for (text, ms) in
            [("1H", 3_600_000), ("2M", 120_000), ("3S", 3_000), ("4m", 4), ("5000u", 5), ("6000000n", 6)]
        {
            assert_eq!(read(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "S", "1", "1x", "-1S", "1.5S"] {
            assert_eq!(read(bad), None, "{bad}");
        }
        assert_eq!(deadline(&HeaderMap::new()), None);
    }
}
