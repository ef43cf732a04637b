//! Traces: from a submission at a follower over the leader to a worker and back, as a collector sees them.

use std::process::Stdio;
use std::time::Duration;

use cortex::dev::Signal;
use cortex_client::proto::client_service_client::ClientServiceClient;
use cortex_client::proto::{JobSubmission, SubmitJobRequest};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::process::{Child, Command};

use crate::collector::{Collector, Seen};
use crate::scene::{Scene, until};

/// Answers where it was run.
const TELL: &str = r#"printf '{"traceparent": "%s", "tracestate": "%s"}' "$TRACEPARENT" "$TRACESTATE""#;

/// A trace that somebody has begun, and the span in it from which a request comes.
struct Caller {
    trace: String,
    span: &'static str,
}

impl Caller {
    fn new(number: u8) -> Self {
        Self { trace: format!("4bf92f3577b34da6a3ce929d0e0e47{number:02x}"), span: "00f067aa0ba902b7" }
    }

    fn traceparent(&self) -> String {
        format!("00-{}-{}-01", self.trace, self.span)
    }
}

/// `cortex worker`, as a process.
fn start_worker(scene: &Scene, replica: usize, collector: Option<&Collector>, command: &str) -> Child {
    let mut worker = Command::new(env!("CARGO_BIN_EXE_cortex"));
    worker.args(["worker", "--endpoint", &format!("http://{}", scene.cluster.grpc(replica))]);
    worker.args(["--name", "traced", "--exec", command]);
    worker.env_remove("OTEL_EXPORTER_OTLP_ENDPOINT").env_remove("OTEL_SERVICE_NAME");
    // That of whoever started the worker is not that of its jobs.
    worker.env("TRACEPARENT", "00-11111111111111111111111111111111-2222222222222222-01");
    if let Some(collector) = collector {
        worker.args(["--otlp-endpoint", &collector.endpoint]);
    }
    worker.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true).spawn().unwrap()
}

/// Submits over REST, with these headers.
async fn submit(scene: &Scene, replica: usize, headers: &[(&str, &str)], fields: Value) -> String {
    let mut job = json!({"name": "traced", "model_name": "m", "model_version": "1", "input_data": {"n": 1}});
    job.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let url = format!("http://{}/api/v1/jobs", scene.cluster.http(replica));
    let mut request = scene.http.post(url).json(&job);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 201);
    let job: Value = answer.json().await.unwrap();
    assert!(job.get("trace_context").is_none(), "{job}");
    job["id"].as_str().unwrap().to_owned()
}

async fn submit_grpc(scene: &Scene, replica: usize, traceparent: &str, tracestate: &str) -> String {
    let endpoint = format!("http://{}", scene.cluster.grpc(replica));
    let mut client = ClientServiceClient::connect(endpoint).await.unwrap();
    let job = JobSubmission {
        name: "traced".to_owned(),
        model_name: "m".to_owned(),
        model_version: "1".to_owned(),
        input_data: br#"{"n": 1}"#.to_vec().into(),
        ..JobSubmission::default()
    };
    let mut request = tonic::Request::new(SubmitJobRequest { job: Some(job), ..SubmitJobRequest::default() });
    request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    request.metadata_mut().insert("tracestate", tracestate.parse().unwrap());
    client.submit_job(request).await.unwrap().into_inner().job.unwrap().id
}

/// Waits for the end of a job and answers what came out.
async fn output(scene: &Scene, replica: usize, job: &str) -> Value {
    let mut output = Value::Null;
    until("the job is completed", async || {
        let (_, job) = scene.get(replica, &format!("/api/v1/jobs/{job}")).await;
        output = job["output_data"].clone();
        job["status"] == "completed"
    })
    .await;
    output
}

/// Waits until as many spans of this name have arrived, and answers the trace.
async fn arrived(collector: &Collector, trace: &str, name: &str, spans: usize) -> Vec<Seen> {
    until(&format!("{spans} × {name} of {trace} has arrived"), async || {
        let seen = collector.trace(trace);
        seen.iter().filter(|span| span.name() == name).count() == spans
    })
    .await;
    collector.trace(trace)
}

fn all<'a>(trace: &'a [Seen], name: &str) -> Vec<&'a Seen> {
    trace.iter().filter(|span| span.name() == name).collect()
}

fn one<'a>(trace: &'a [Seen], name: &str) -> &'a Seen {
    match all(trace, name)[..] {
        [span] => span,
        ref spans => panic!("{} × {name} in {trace:#?}", spans.len()),
    }
}

/// A replica's name in traces.
fn replica(index: usize) -> (String, String) {
    ("cortex-test".to_owned(), (index + 1).to_string())
}

fn traced(collector: &Collector) -> [String; 4] {
    [
        format!("observability.otlp_endpoint={}", collector.endpoint),
        "observability.service_name=cortex-test".to_owned(),
        "observability.service_version=7.6.5".to_owned(),
        "observability.environment=proving-ground".to_owned(),
    ]
}

#[tokio::test]
async fn one_trace_runs_from_a_submission_at_a_follower_over_the_leader_to_the_worker_and_back() {
    let collector = Collector::start().await;
    let scene = Scene::with(|builder, _| {
        traced(&collector).into_iter().fold(builder, |builder, setting| builder.set(setting))
    })
    .await;
    let leader = scene.leader().await;
    let (entry, exit) = (scene.others(leader)[0], scene.others(leader)[1]);
    let _worker = start_worker(&scene, exit, Some(&collector), TELL);

    let (rest, grpc) = (Caller::new(1), Caller::new(2));
    let headers = [("traceparent", &*rest.traceparent()), ("tracestate", "vendor=1")];
    let jobs = [
        (submit(&scene, entry, &headers, json!({})).await, &rest, "rest.job.submit"),
        (submit_grpc(&scene, entry, &grpc.traceparent(), "vendor=1").await, &grpc, "grpc.job.submit"),
    ];
    for (job, caller, request) in jobs {
        let output = output(&scene, entry, &job).await;
        arrived(&collector, &caller.trace, "leader.job.complete", 1).await;
        arrived(&collector, &caller.trace, request, 1).await;
        let trace = arrived(&collector, &caller.trace, "worker.job.run", 1).await;
        let way = [
            (request, caller.span.to_owned(), replica(entry)),
            ("forward.command.carry", one(&trace, request).id(), replica(entry)),
            ("leader.job.store", one(&trace, "forward.command.carry").id(), replica(leader)),
            ("scheduler.job.assign", one(&trace, "leader.job.store").id(), replica(leader)),
            (
                "worker.job.run",
                one(&trace, "scheduler.job.assign").id(),
                ("cortex-worker".to_owned(), "traced".to_owned()),
            ),
            ("leader.job.complete", one(&trace, "scheduler.job.assign").id(), replica(leader)),
        ];
        for (name, parent, origin) in way {
            let span = one(&trace, name);
            assert_eq!((span.parent(), &span.origin), (parent, &origin), "{name}");
            assert_eq!((span.failure(), span.state()), (None, "vendor=1"), "{name}");
            if name != "worker.job.run" {
                let process =
                    ["service.version", "deployment.environment.name"].map(|key| span.resource(key));
                assert_eq!(process, ["7.6.5", "proving-ground"], "{name}");
            }
            if name.contains(".job.") && !name.ends_with("submit") {
                assert_eq!(span.attribute("cortex.job.id"), job, "{name}");
            }
        }
        assert_eq!(one(&trace, "scheduler.job.assign").attribute("cortex.job.attempt"), "1");
        let run = one(&trace, "worker.job.run");
        let traceparent = format!("00-{}-{}-01", caller.trace, run.id());
        assert_eq!(output, json!({"traceparent": traceparent, "tracestate": "vendor=1"}));
    }

    // A submission without a caller's trace begins one.
    let job = submit(&scene, leader, &[], json!({"tags": {"mine": "yes"}})).await;
    let output = output(&scene, leader, &job).await;
    let begun = &output["traceparent"].as_str().unwrap()[3..35];
    let trace = arrived(&collector, begun, "rest.job.submit", 1).await;
    assert_eq!(one(&trace, "rest.job.submit").parent(), "");
}

#[tokio::test]
async fn a_trace_goes_on_under_the_next_leader_and_holds_every_attempt() {
    let collector = Collector::start().await;
    let scene = Scene::with(|builder, _| {
        traced(&collector).into_iter().fold(builder, |builder, setting| builder.set(setting))
    })
    .await;
    let former = scene.leader().await;
    let caller = Caller::new(3);
    let entry = scene.others(former)[0];
    let job = submit(&scene, entry, &[("traceparent", &caller.traceparent())], json!({})).await;
    // What a process that is killed has not sent is lost.
    let stored = arrived(&collector, &caller.trace, "leader.job.store", 1).await;
    scene.kill(former).await;
    let leader = scene.leader_other_than(former).await;
    let command = format!("sleep 1; test $CORTEX_ATTEMPT = 2 && {TELL}");
    let _worker = start_worker(&scene, entry, Some(&collector), &command);

    let output = output(&scene, entry, &job).await;
    arrived(&collector, &caller.trace, "leader.job.complete", 1).await;
    let trace = arrived(&collector, &caller.trace, "worker.job.run", 2).await;
    let store = one(&stored, "leader.job.store");
    let mut attempts = all(&trace, "scheduler.job.assign");
    attempts.sort_by_key(|span| span.attribute("cortex.job.attempt"));
    let [first, second] = attempts[..] else { panic!("{trace:#?}") };
    for attempt in [first, second] {
        assert_eq!((attempt.parent(), &attempt.origin), (store.id(), &replica(leader)));
    }
    assert!(first.lasted_ms() >= 1, "the job has waited for its worker: {first:?}");
    let runs = |attempt: &Seen| {
        let id = attempt.id();
        let run = trace.iter().find(|span| span.name() == "worker.job.run" && span.parent() == id);
        run.unwrap_or_else(|| panic!("no run of {attempt:?}")).clone()
    };
    assert_eq!(runs(first).failure().as_deref(), Some("exit_1"));
    let retry = one(&trace, "leader.job.retry");
    assert_eq!((retry.parent(), retry.failure().as_deref()), (first.id(), Some("exit_1")));
    assert_eq!(runs(second).failure(), None);
    assert_eq!(one(&trace, "leader.job.complete").parent(), second.id());
    let starts: Vec<String> = all(&trace, "leader.job.start").iter().map(|span| span.parent()).collect();
    assert_eq!(starts, [first.id(), second.id()], "in the order in which they were sent");
    assert_eq!(output["traceparent"], format!("00-{}-{}-01", caller.trace, runs(second).id()));
}

#[tokio::test]
async fn a_callers_trace_reaches_the_worker_where_no_spans_are_sent_and_a_malformed_one_is_ignored() {
    let scene = Scene::start().await;
    let leader = scene.leader().await;
    let follower = scene.others(leader)[0];
    let caller = Caller::new(4);
    let (good, bad) = (caller.traceparent(), format!("{}-more", caller.traceparent()));
    let unsampled = good.replace("-01", "-00");
    let long = format!("a={}", "x".repeat(511));
    let cases = [
        (vec![("traceparent", &*good), ("tracestate", "vendor=1")], &*good, "vendor=1"),
        (vec![("traceparent", &*unsampled)], &*unsampled, ""),
        (vec![("traceparent", &*good), ("tracestate", &*long)], &*good, ""),
        (vec![("traceparent", &*bad), ("tracestate", "vendor=1")], "", ""),
        (vec![("tracestate", "vendor=1")], "", ""),
        (vec![], "", ""),
    ];
    let mut jobs = Vec::new();
    // One before there is a worker, which is assigned by the scheduler; the others as they come.
    for (index, case) in cases.iter().enumerate() {
        jobs.push((submit(&scene, [leader, follower][index % 2], &case.0, json!({})).await, case));
    }
    let _worker = start_worker(&scene, follower, None, TELL);
    for (_, case) in jobs.clone() {
        jobs.push((submit(&scene, follower, &case.0, json!({})).await, case));
    }
    for (job, (headers, traceparent, tracestate)) in jobs {
        let output = output(&scene, follower, &job).await;
        assert_eq!(output, json!({"traceparent": traceparent, "tracestate": tracestate}), "{headers:?}");
    }
    let untraced = "SELECT count(*) FROM jobs WHERE trace_context IS NULL";
    assert_eq!(scene.count(untraced).await, 6, "what is not traced costs nothing");
    assert_eq!(scene.metric(leader, "cortex_trace_spans_total{result=\"exported\"}").await, 0.0);
}

#[tokio::test]
async fn a_collector_that_is_away_or_hangs_holds_up_neither_submissions_nor_the_end() {
    // Takes connections and says nothing.
    let hangs = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let away = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for address in [hangs.local_addr().unwrap(), away] {
        let scene = Scene::with(|builder, _| {
            builder.replicas(1).set(format!("observability.otlp_endpoint=http://{address}"))
        })
        .await;
        scene.start_worker(1, 4, Duration::ZERO);
        for _ in 0..100 {
            submit(&scene, 0, &[], json!({})).await;
        }
        scene.quiet().await;
        until("spans are given up", async || {
            scene.metric(0, "cortex_trace_spans_total{result=\"failed\"}").await > 0.0
        })
        .await;
        submit(&scene, 0, &[], json!({})).await;
        assert_eq!(scene.metric(0, "cortex_trace_spans_total{result=\"exported\"}").await, 0.0);
        assert!(scene.cluster.kill(0, Signal::SIGTERM));
        let ended = scene.cluster.wait_for_exit(0).await.unwrap();
        assert!(ended.success(), "{ended}");
        let log = std::fs::read_to_string(scene.cluster.log(0)).unwrap();
        assert_eq!(log.matches("The collector does not take spans").count(), 1, "{log}");
    }
}
