use proptest::prelude::*;

use super::*;

const ID: &str = "0190a5c0-0000-7000-8000-000000000001";

fn fields<T: std::fmt::Debug>(parsed: Parsed<T>) -> Vec<String> {
    parsed.unwrap_err().into_iter().map(|error| error.field).collect()
}

fn worker() -> WorkerRegistration {
    WorkerRegistration {
        name: "w".to_owned(),
        hostname: "h".to_owned(),
        port: 8000,
        ..WorkerRegistration::default()
    }
}

fn update(status: &str) -> JobStatusUpdate {
    JobStatusUpdate {
        job_id: ID.to_owned(),
        worker_id: ID.to_owned(),
        status: status.to_owned(),
        ..JobStatusUpdate::default()
    }
}

fn done(success: bool) -> JobCompletion {
    JobCompletion { job_id: ID.to_owned(), worker_id: ID.to_owned(), success, ..JobCompletion::default() }
}

#[test]
fn a_registration_of_the_original_protocol_gets_the_defaults() {
    let peer = Some("::ffff:10.0.0.7".parse().unwrap());
    let draft = registration(worker(), peer).unwrap();
    assert_eq!(draft.ip_address, "10.0.0.7");
    assert_eq!((draft.max_concurrent_jobs, draft.heartbeat_interval_seconds), (1, 30));
    assert_eq!(draft.version, None);
}

#[test]
fn a_bad_registration_names_capabilities_and_fields_together() {
    let message = WorkerRegistration {
        ip_address: "here".to_owned(),
        port: -1,
        capabilities: [("gpu".to_owned(), "maybe".to_owned())].into(),
        ..worker()
    };
    assert_eq!(fields(registration(message, None)), ["capabilities.gpu", "ip_address", "port"]);
}

#[test]
fn without_an_address_or_a_peer_the_address_is_missing() {
    let draft = registration(worker(), None).unwrap();
    let errors = draft.check(WorkerId(uuid::Uuid::nil())).unwrap_err();
    assert_eq!(errors[0].field, "ip_address");
}

#[test]
fn a_heartbeat_names_all_that_is_wrong() {
    let message = HeartbeatRequest {
        worker_id: "x".to_owned(),
        status: "asleep".to_owned(),
        current_job_count: -1,
        current_jobs: vec![ID.to_owned(), "x".to_owned()],
        ..HeartbeatRequest::default()
    };
    assert_eq!(fields(heartbeat(&message)), ["worker_id", "status", "current_job_count", "current_jobs"]);
    let many = HeartbeatRequest {
        worker_id: ID.to_owned(),
        current_jobs: vec![ID.to_owned(); convert::MAX_LISTED_JOBS + 1],
        ..HeartbeatRequest::default()
    };
    assert_eq!(fields(heartbeat(&many)), ["current_jobs"]);
}

#[test]
fn a_heartbeat_without_a_status_is_idle() {
    let message = HeartbeatRequest { worker_id: ID.to_owned(), ..HeartbeatRequest::default() };
    assert_eq!(heartbeat(&message).unwrap().status, WorkerStatus::Idle);
}

#[test]
fn usage_is_clamped_or_dropped_and_never_refused() {
    let metrics = [
        ("cpu_usage_percent", 250.0),
        ("memory_usage_mb", -5.0),
        ("gpu_usage_percent", f64::NAN),
        ("fan_speed", f64::INFINITY),
    ]
    .map(|(name, value)| (name.to_owned(), value));
    let expected =
        Usage { cpu_usage_percent: Some(100.0), memory_usage_mb: Some(0.0), gpu_usage_percent: None };
    assert_eq!(usage(&metrics.into()), expected);
}

#[test]
fn a_poll_waits_thirty_seconds_at_most() {
    let wait = |wait_ms| poll(&PollJobRequest { worker_id: ID.to_owned(), wait_ms });
    assert_eq!(wait(0).unwrap().1, Duration::ZERO);
    assert_eq!(wait(i32::MAX).unwrap().1, Duration::from_secs(30));
    assert_eq!(fields(wait(-1)), ["wait_ms"]);
}

#[test]
fn a_status_update_becomes_the_event_it_names() {
    let event = |status| status_update(&update(status), None).unwrap().1;
    assert!(matches!(event("running"), JobEvent::Started { .. }));
    assert!(matches!(event("rejected"), JobEvent::Rejected { .. }));
    assert!(matches!(event("failed"), JobEvent::Failed { .. }));
    for status in ["", "Running", "completed", "pending"] {
        assert_eq!(fields(status_update(&update(status), None)), ["status"]);
    }
    assert_eq!(
        fields(status_update(
            &JobStatusUpdate { execution_id: "x".to_owned(), ..JobStatusUpdate::default() },
            None
        )),
        ["job_id", "worker_id", "execution_id", "status"]
    );
}

#[test]
fn success_takes_an_object_or_nothing() {
    let (_, event) =
        completion(&JobCompletion { output_data: r#"{"a":1}"#.into(), ..done(true) }, None).unwrap();
    assert!(matches!(event, JobEvent::Completed { output: Some(_), duration_ms: None, .. }));
    let (_, event) = completion(&JobCompletion { duration_ms: 5, ..done(true) }, None).unwrap();
    assert!(matches!(event, JobEvent::Completed { output: None, duration_ms: Some(5), .. }));
    for output in [&b"[]"[..], b"{", b"\xff", b"{\"a\":\"\\u0000\"}", b" "] {
        let message = JobCompletion { output_data: output.into(), duration_ms: -1, ..done(true) };
        assert_eq!(fields(completion(&message, None)), ["duration_ms", "output_data"], "{output:?}");
    }
}

#[test]
fn a_failure_is_made_storable_and_its_code_is_bounded() {
    let message = JobCompletion {
        error_message: "a\0b".to_owned(),
        error_stack: "s".to_owned(),
        error_code: "oom".to_owned(),
        output_data: b"not json"[..].into(),
        ..done(false)
    };
    let (_, event) = completion(&message, None).unwrap();
    let JobEvent::Failed { failure, .. } = event else { panic!("{event:?}") };
    assert_eq!(failure.message, "a\u{fffd}b");
    assert_eq!((failure.stack.as_deref(), failure.code.as_deref()), (Some("s"), Some("oom")));
    let long = JobCompletion { error_code: "x".repeat(51), ..done(false) };
    assert_eq!(fields(completion(&long, None)), ["error_code"]);
    let silent = completion(&done(false), None).unwrap().1;
    assert!(matches!(silent, JobEvent::Failed { failure, .. } if !failure.message.is_empty()));
}

proptest! {
    #[test]
    fn no_message_makes_parsing_panic(
        id in prop_oneof![Just(ID.to_owned()), any::<String>()],
        text in any::<String>(),
        bytes in any::<Vec<u8>>(),
        number in any::<i32>(),
        duration_ms in any::<i64>(),
        value in any::<f64>(),
        success in any::<bool>(),
    ) {
        let metrics: HashMap<_, _> = [("cpu_usage_percent".to_owned(), value)].into();
        let _ = registration(WorkerRegistration {
            name: text.clone(), hostname: text.clone(), ip_address: text.clone(), port: number,
            capabilities: [("models".to_owned(), text.clone()), ("memory_gb".to_owned(), value.to_string())].into(),
            max_concurrent_jobs: number, version: text.clone(), heartbeat_interval_seconds: number,
        }, None).map(|draft| draft.check(WorkerId(uuid::Uuid::nil())));
        let _ = heartbeat(&HeartbeatRequest {
            worker_id: id.clone(), status: text.clone(), current_job_count: number,
            current_jobs: vec![text.clone()], metrics: metrics.clone(), loaded_models: vec![text.clone()],
        });
        let _ = poll(&PollJobRequest { worker_id: id.clone(), wait_ms: number });
        let _ = status_update(&JobStatusUpdate { message: text.clone(), execution_id: text.clone(), ..update("failed") }, None);
        let _ = completion(&JobCompletion {
            job_id: id.clone(), worker_id: id, success, output_data: bytes.into(), error_message: text.clone(),
            duration_ms, metrics, execution_id: String::new(), attempt_number: number,
            error_code: text.clone(), error_stack: text,
        }, None);
    }
}
