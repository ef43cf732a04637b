use serde_json::json;
use uuid::Uuid;

use super::*;

fn check(body: &Value) -> Result<NewJob, Vec<FieldError>> {
    let draft: JobDraft = serde_json::from_str(&body.to_string()).unwrap();
    let defaults = JobDefaults { retry: RetryPolicy::default(), timeout_seconds: 3600 };
    draft.check(JobId(Uuid::nil()), &defaults)
}

fn minimal() -> Value {
    json!({"name": "n", "model_name": "m", "model_version": "1", "input_data": {"a": 1}})
}

#[test]
fn fills_in_the_defaults() {
    let job = check(&minimal()).unwrap();
    assert_eq!((job.priority, job.max_retries, job.timeout_seconds), (5, 3, 3600));
    assert_eq!(job.tags.as_str(), "{}");
}

#[test]
fn names_every_bad_field_at_once() {
    let errors = check(&json!({"name": "", "model_name": 1, "input_data": {}, "priority": 11,
        "max_retries": -1, "timeout_seconds": 86401, "tags": {"a": 1}, "metadata": [],
        "created_by": "x".repeat(256), "run_at": "tomorrow"}))
    .unwrap_err();
    let fields: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
    assert_eq!(
        fields,
        [
            "name",
            "model_name",
            "model_version",
            "input_data",
            "priority",
            "max_retries",
            "timeout_seconds",
            "tags",
            "metadata",
            "created_by",
            "run_at"
        ]
    );
}

#[test]
fn run_at_is_a_time_with_its_offset() {
    let run_at = |text: Value| {
        let mut body = minimal();
        body["run_at"] = text;
        check(&body).map(|job| job.run_at.map(|time| time.to_rfc3339()))
    };
    assert_eq!(run_at(Value::Null).unwrap(), None);
    let time = run_at(json!("2030-01-01T02:00:00.1234567+02:00")).unwrap();
    assert_eq!(time.as_deref(), Some("2030-01-01T00:00:00.123456+00:00"));
    let last = "9999-12-31T23:59:59.999999Z";
    assert!(run_at(json!(last)).is_ok() && run_at(json!("0000-01-01T00:00:00Z")).is_ok());
    let beyond = json!("9999-12-31T23:59:59-01:00");
    assert_eq!(
        run_at(json!("2030-12-31T23:59:60Z")).unwrap(),
        run_at(json!("2031-01-01T00:00:00Z")).unwrap()
    );
    assert_eq!(run_at(json!("9999-12-31T23:59:60Z")).unwrap_err()[0].field, "run_at");
    for bad in [json!("2030-01-01"), json!("2030-01-01T00:00:00"), beyond, json!(1), json!("")] {
        assert_eq!(run_at(bad.clone()).unwrap_err()[0].field, "run_at", "{bad}");
    }
}

#[test]
fn the_job_s_own_bound_on_retries_wins_over_its_policy_s() {
    let mut body = minimal();
    body["metadata"] = json!({"retry_policy": {"max_retries": 7}});
    assert_eq!(check(&body).unwrap().max_retries, 7);
    body["max_retries"] = json!(2);
    assert_eq!(check(&body).unwrap().max_retries, 2);
}

#[test]
fn a_bad_retry_policy_is_refused_at_submission() {
    let mut body = minimal();
    body["metadata"] = json!({"retry_policy": {"strategy": "hope"}, "requires_gpu": "yes"});
    let fields: Vec<_> = check(&body).unwrap_err().into_iter().map(|error| error.field).collect();
    assert_eq!(fields, ["metadata.retry_policy.strategy", "metadata.requires_gpu"]);
}

#[test]
fn only_an_explicit_retry_leaves_a_terminal_state() {
    for status in JobStatus::ALL.into_iter().filter(|status| status.is_terminal()) {
        for next in JobStatus::ALL {
            let retried = next == JobStatus::Pending && status != JobStatus::Completed;
            assert_eq!(status.may_become(next), retried, "{status} to {next}");
        }
    }
}
