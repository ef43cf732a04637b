//! Query parameters: decoded strictly, and all bad ones named at once.

use std::fmt::Display;
use std::str::FromStr;

use chrono::{DateTime, Datelike, Utc};

use crate::api::convert::{MAX_PAGE, MAX_PAGE_SIZE, MAX_TAGS_OF_FILTER};
use crate::domain::job::JobFilter;
use crate::domain::validate::{FieldError, Validator, check_text};
use crate::domain::worker::WorkerStatus;

/// Jobs that a look into the queue shows, unless it asks for another number.
const PEEK: i64 = 10;
/// Most jobs that a look into the queue shows.
const MAX_PEEK: i64 = 100;
/// Rows of the series of metrics, unless another number is asked for.
const METRICS: i64 = 100;
/// Most rows of the series of metrics.
const MAX_METRICS: i64 = 1_000;

/// What a call may be asked only once.
const SINGLE: [&str; 9] = [
    "status",
    "status_filter",
    "priority",
    "model_name",
    "created_by",
    "page",
    "page_size",
    "limit",
    "since",
];
/// Most parameters of a call: tags, and some that are not known.
const MAX_PARAMETERS: usize = 100;

/// Which jobs to list, and which part of them.
#[derive(Debug)]
pub(super) struct JobsQuery {
    pub(super) filter: JobFilter,
    /// From 1.
    pub(super) page: i64,
    /// 1 to 100.
    pub(super) page_size: i64,
}

/// Reads the parameters of a job listing. Unknown ones are ignored.
pub(super) fn jobs(query: &str) -> Result<JobsQuery, Vec<FieldError>> {
    let mut v = Validator::default();
    let mut wanted = JobsQuery { filter: JobFilter::default(), page: 1, page_size: 50 };
    for (name, value) in once(&mut v, query) {
        let filter = &mut wanted.filter;
        match name.as_str() {
            "status" | "status_filter" => filter.status = choice(&mut v, &name, value),
            "priority" => filter.priority = of_priority(&mut v, &name, value),
            "model_name" => filter.model_name = text(&mut v, &name, value),
            "created_by" => filter.created_by = text(&mut v, &name, value),
            "tag" => tag(&mut v, filter, value),
            "page" => wanted.page = whole(&mut v, &name, value, 1, MAX_PAGE).unwrap_or(1),
            "page_size" => wanted.page_size = whole(&mut v, &name, value, 1, MAX_PAGE_SIZE).unwrap_or(1),
            _ => {}
        }
    }
    v.finish(Some(wanted))
}

/// Reads the parameters of a worker listing.
pub(super) fn worker_status(query: &str) -> Result<Option<WorkerStatus>, Vec<FieldError>> {
    let mut v = Validator::default();
    let mut status = None;
    for (name, value) in once(&mut v, query) {
        if name == "status" {
            status = choice(&mut v, &name, value);
        }
    }
    v.finish(Some(status))
}

/// Which of the jobs that wait to show.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct PeekQuery {
    /// 1 to 100.
    pub(super) limit: usize,
    /// 1 to 10, or all.
    pub(super) priority: Option<u8>,
}

/// Which rows of the series of metrics to show.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MetricsQuery {
    /// From when on; without it the newest.
    pub(super) since: Option<DateTime<Utc>>,
    /// 1 to 1000.
    pub(super) limit: i64,
}

/// Reads the parameter `priority`.
pub(super) fn depth(query: &str) -> Result<Option<u8>, Vec<FieldError>> {
    let mut v = Validator::default();
    let mut priority = None;
    for (name, value) in once(&mut v, query) {
        if name == "priority" {
            priority = of_priority(&mut v, &name, value);
        }
    }
    v.finish(Some(priority))
}

/// Reads the parameter `priority`, of a call that does more without it: there must be nothing else.
pub(super) fn priority(query: &str) -> Result<Option<u8>, Vec<FieldError>> {
    let mut v = Validator::default();
    let priority = alone(&mut v, query, "priority").and_then(|value| of_priority(&mut v, "priority", value));
    v.finish(Some(priority))
}

/// Reads the parameters of a look into the queue.
pub(super) fn peek(query: &str) -> Result<PeekQuery, Vec<FieldError>> {
    let mut v = Validator::default();
    let (mut limit, mut priority) = (PEEK, None);
    for (name, value) in once(&mut v, query) {
        match name.as_str() {
            "limit" => limit = whole(&mut v, &name, value, 1, MAX_PEEK).unwrap_or(PEEK),
            "priority" => priority = of_priority(&mut v, &name, value),
            _ => {}
        }
    }
    v.finish(usize::try_from(limit).ok().map(|limit| PeekQuery { limit, priority }))
}

/// Reads the parameter `model_name`, of a call that does more without it: there must be nothing else.
pub(super) fn model(query: &str) -> Result<Option<String>, Vec<FieldError>> {
    let mut v = Validator::default();
    let model = alone(&mut v, query, "model_name").and_then(|value| text(&mut v, "model_name", value));
    v.finish(Some(model))
}

/// Reads the parameters of the series of metrics.
pub(super) fn metrics(query: &str) -> Result<MetricsQuery, Vec<FieldError>> {
    let mut v = Validator::default();
    let mut wanted = MetricsQuery { since: None, limit: METRICS };
    for (name, value) in once(&mut v, query) {
        match name.as_str() {
            "since" => wanted.since = moment(&mut v, &name, value),
            "limit" => wanted.limit = whole(&mut v, &name, value, 1, MAX_METRICS).unwrap_or(METRICS),
            _ => {}
        }
    }
    v.finish(Some(wanted))
}

/// A parameter's decoded name, and its decoded value unless it cannot be decoded.
type Pair = (String, Option<String>);

fn pairs(query: &str) -> impl Iterator<Item = Pair> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        // As it is, no parameter is called like that.
        (decode(name).unwrap_or_else(|| name.to_owned()), decode(value))
    })
}

/// The parameters, none of which may be given twice but tags and unknown ones.
fn once(v: &mut Validator, query: &str) -> Vec<Pair> {
    let mut given: Vec<Pair> = Vec::new();
    for (number, (name, value)) in pairs(query).enumerate() {
        if number == MAX_PARAMETERS {
            v.reject("query", format!("may have at most {MAX_PARAMETERS} parameters"));
            break;
        }
        let again = given.iter().any(|(other, _)| meant(other) == meant(&name));
        if !again || !SINGLE.contains(&name.as_str()) {
            given.push((name, value));
        } else if !v.has(&name) {
            v.reject(name, "may be given only once");
        }
    }
    given
}

/// `status_filter` is another name of `status`.
fn meant(name: &str) -> &str {
    if name == "status_filter" { "status" } else { name }
}

/// The value of the only parameter that there may be.
fn alone(v: &mut Validator, query: &str, known: &str) -> Option<Option<String>> {
    let mut only = None;
    for (name, value) in once(v, query) {
        if name == known {
            only = Some(value);
        } else {
            v.reject(format!("{name:.64}"), format!("is not known here; {known} is"));
        }
    }
    only
}

/// Undoes form encoding; `None` if a `%` is not followed by two hexadecimal digits or the bytes are not
/// UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'+' => b' ',
            b'%' => hex(bytes.next()?)? << 4 | hex(bytes.next()?)?,
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn decoded(v: &mut Validator, name: &str, value: Option<String>) -> Option<String> {
    if value.is_none() {
        v.reject(name, "must be percent-encoded UTF-8");
    }
    value
}

fn choice<T: FromStr<Err: Display>>(v: &mut Validator, name: &str, value: Option<String>) -> Option<T> {
    match decoded(v, name, value)?.parse() {
        Ok(value) => Some(value),
        Err(message) => {
            v.reject(name, message.to_string());
            None
        }
    }
}

fn whole(v: &mut Validator, name: &str, value: Option<String>, min: i64, max: i64) -> Option<i64> {
    let number = decoded(v, name, value)?.parse().ok().filter(|number| (min..=max).contains(number));
    if number.is_none() {
        v.reject(name, format!("must be a whole number from {min} to {max}"));
    }
    number
}

fn of_priority(v: &mut Validator, name: &str, value: Option<String>) -> Option<u8> {
    whole(v, name, value, 1, 10).and_then(|n| u8::try_from(n).ok())
}

/// A time that PostgreSQL can hold.
fn moment(v: &mut Validator, name: &str, value: Option<String>) -> Option<DateTime<Utc>> {
    // A plus sign that was not encoded has become a space.
    let text = decoded(v, name, value)?.replace(' ', "+");
    let moment = DateTime::parse_from_rfc3339(&text).ok().filter(|moment| moment.year() >= 0);
    if moment.is_none() {
        v.reject(name, "must be an RFC 3339 time, such as 2026-01-31T12:00:00Z");
    }
    moment.map(|moment| moment.to_utc())
}

fn text(v: &mut Validator, name: &str, value: Option<String>) -> Option<String> {
    let value = decoded(v, name, value)?;
    match check_text(&value, 1, 255) {
        Ok(()) => Some(value),
        Err(message) => {
            v.reject(name, message);
            None
        }
    }
}

/// Adds `key:value`; a key that is given twice must have the same value, or no job could match.
fn tag(v: &mut Validator, filter: &mut JobFilter, value: Option<String>) {
    let Some(value) = decoded(v, "tag", value) else { return };
    let Some((key, value)) = value.split_once(':') else {
        return v.reject("tag", "must be key:value");
    };
    if let Err(message) = check_text(key, 1, 255).and_then(|()| check_text(value, 0, 4096)) {
        return v.reject("tag", message);
    }
    if filter.tags.get(key).is_some_and(|known| known != value) {
        return v.reject("tag", format!("gives {key:.64} two values"));
    }
    filter.tags.insert(key.to_owned(), value.to_owned());
    if filter.tags.len() > MAX_TAGS_OF_FILTER && !v.has("tag") {
        v.reject("tag", format!("may be given at most {MAX_TAGS_OF_FILTER} times"));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::job::JobStatus;

    fn fields(query: &str) -> Vec<String> {
        jobs(query).unwrap_err().into_iter().map(|error| error.field).collect()
    }

    #[test]
    fn without_parameters_the_first_fifty_jobs_are_listed() {
        let wanted = jobs("").unwrap();
        assert_eq!((wanted.page, wanted.page_size, wanted.filter.status), (1, 50, None));
    }

    #[test]
    fn reads_every_filter() {
        let query = "status_filter=queued&priority=7&model_name=a%2Fb+c&created_by=%C3%A9&tag=env:prod&tag=k:a:b\
            &page=2&page_size=100&unknown=1&tag=env:prod";
        let wanted = jobs(query).unwrap();
        assert_eq!((wanted.page, wanted.page_size), (2, 100));
        assert_eq!((wanted.filter.status, wanted.filter.priority), (Some(JobStatus::Queued), Some(7)));
        assert_eq!(wanted.filter.model_name.as_deref(), Some("a/b c"));
        assert_eq!(wanted.filter.created_by.as_deref(), Some("é"));
        let tags: Vec<_> = wanted.filter.tags.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(tags, [("env", "prod"), ("k", "a:b")]);
        assert_eq!(jobs("status=failed").unwrap().filter.status, Some(JobStatus::Failed));
    }

    #[test]
    fn names_every_bad_parameter_at_once() {
        let query = "status=done&priority=11&model_name=%00&created_by=&tag=novalue&page=0&page_size=101";
        assert_eq!(
            fields(query),
            ["status", "priority", "model_name", "created_by", "tag", "page", "page_size"]
        );
    }

    #[test]
    fn undecodable_and_extreme_values_are_refused() {
        for query in [
            "model_name=%ff",
            "model_name=%zz",
            "model_name=%2",
            "page=9223372036854775807",
            "page=1e3",
            "page=%20",
            "page_size=-1",
            "page_size=",
            "priority=5.0",
            "tag=:v",
            "tag=a%00:v",
            "tag=a:b&tag=a:c",
            "status",
        ] {
            assert_eq!(fields(query).len(), 1, "{query}");
        }
        let many: String = (0..=MAX_TAGS_OF_FILTER).map(|n| format!("&tag=k{n}:v")).collect();
        assert_eq!(fields(&many), ["tag"]);
        let unknown: String = (0..10_000).map(|n| format!("&x{n}=1")).collect();
        assert_eq!(fields(&unknown), ["query"]);
        assert_eq!(priority(&unknown).unwrap_err().len(), MAX_PARAMETERS + 1);
    }

    #[test]
    fn the_queue_is_asked_for_by_priority_model_and_time() {
        assert_eq!((depth(""), depth("priority=10&limit=0&x=y")), (Ok(None), Ok(Some(10))));
        assert_eq!((priority(""), priority("priority=10")), (Ok(None), Ok(Some(10))));
        assert!(priority("priority=0").is_err() && priority("priority=11").is_err());
        assert_eq!(peek(""), Ok(PeekQuery { limit: 10, priority: None }));
        assert_eq!(peek("limit=100&priority=1"), Ok(PeekQuery { limit: 100, priority: Some(1) }));
        let wrong = peek("limit=101&priority=x").unwrap_err();
        assert_eq!(wrong.into_iter().map(|error| error.field).collect::<Vec<_>>(), ["limit", "priority"]);
        assert_eq!((model("").unwrap(), model("model_name=a%20b").unwrap()), (None, Some("a b".to_owned())));
        assert!(model("model_name=").is_err() && model("model_name=%00").is_err());
    }

    #[test]
    fn what_does_more_without_a_parameter_takes_no_other_one() {
        for query in ["prio=10", "priority=10&x=y", "%zz=1", "x"] {
            assert!(priority(query).is_err(), "{query}");
        }
        assert_eq!(model("model=foo").unwrap_err()[0].field, "model");
    }

    #[test]
    fn what_is_given_twice_is_refused_but_for_tags() {
        for (query, field) in [
            ("priority=5&priority=9", "priority"),
            ("status=failed&status_filter=failed", "status_filter"),
            ("page=1&page=1&page=1", "page"),
        ] {
            assert_eq!(fields(query), [field], "{query}");
        }
        assert!(jobs("tag=a:b&tag=c:d&x=1&x=2").is_ok());
        assert!(worker_status("status=idle&status=busy").is_err() && peek("limit=1&limit=2").is_err());
        assert!(metrics("limit=1&limit=2").is_err() && priority("priority=1&priority=2").is_err());
    }

    #[test]
    fn the_series_of_metrics_begins_at_a_time_with_any_offset() {
        assert_eq!(metrics(""), Ok(MetricsQuery { since: None, limit: 100 }));
        let utc = metrics("since=2026-01-31T12:00:00Z&limit=1000").unwrap();
        for other in ["2026-01-31T13:00:00%2B01:00", "2026-01-31T13:00:00+01:00"] {
            assert_eq!(metrics(&format!("limit=1000&since={other}")).unwrap(), utc);
        }
        let wrong = metrics("since=today&limit=0").unwrap_err();
        assert_eq!(wrong.into_iter().map(|error| error.field).collect::<Vec<_>>(), ["since", "limit"]);
        assert!(metrics("since=").is_err() && metrics("limit=1001").is_err());
    }

    #[test]
    fn workers_are_filtered_by_state() {
        assert_eq!(worker_status("status=idle"), Ok(Some(WorkerStatus::Idle)));
        assert_eq!(worker_status("x=y"), Ok(None));
        assert!(worker_status("status=sleeping").is_err());
    }

    proptest! {
        #[test]
        fn no_query_makes_reading_panic(name in "status|priority|tag|page|model_name", value in any::<String>()) {
            let _ = jobs(&format!("{name}={value}"));
            let _ = worker_status(&value);
        }
    }
}
