//! Sessions: one stream per worker, spoken by hand.

use cortex_client::proto::session_report::Report;
use cortex_client::proto::{
    HeldLease, JobCompletion, SessionOpening, SessionReport, SessionRequest, WorkerRegistration,
};
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic::Code;

use crate::group::{Api, REPLICAS};
use crate::hand::connect;
use crate::support::eventually;
use crate::talk::{SOON, Talk, completion, done, held, registration, update};

const NOBODY: &str = "0190a5c0-0000-7000-8000-000000000001";
#[tokio::test]
async fn a_worker_registers_by_opening_and_gets_as_many_jobs_as_it_grants_credits() {
    let api = Api::of("session-flow").await;
    for replica in 0..REPLICAS {
        let mut talk = Talk::register(&api, replica, 5, 2).await;
        let mut waiting = Vec::new();
        for number in 0..3 {
            waiting
                .push(api.submit((replica + number) % REPLICAS, &json!({"name": number.to_string()})).await);
        }
        let (first, second) = (talk.job().await, talk.job().await);
        assert_eq!((first.attempt_number, first.model_name.as_str()), (1, api.name.as_str()));
        assert_eq!(serde_json::from_slice::<Value>(&first.input_data).unwrap(), json!({"prompt": "test"}));
        for job in [&first, &second] {
            assert!(waiting.contains(&job.job_id));
            waiting.retain(|id| *id != job.job_id);
        }
        // Two reports and a credit in one message; the third job waits for that credit.
        let third = waiting.pop().unwrap();
        assert_ne!(api.job(0, &third).await["status"], "assigned");
        talk.say(SessionRequest {
            credits: 1,
            reports: vec![
                SessionReport { id: 1, report: Some(update(&first, "running")) },
                SessionReport { id: 2, report: Some(done(&second)) },
            ],
            ..SessionRequest::default()
        });
        talk.acknowledged(1).await;
        talk.acknowledged(2).await;
        let last = talk.job().await;
        assert_eq!(last.job_id, third);
        assert_eq!(api.reaches(&first.job_id, "running").await["executions"].as_array().unwrap().len(), 1);
        for (id, job) in [(3, &first), (4, &last)] {
            talk.report(id, done(job));
            talk.acknowledged(id).await;
            assert_eq!(api.job(0, &job.job_id).await["output_data"], json!({"done": true}));
        }
        // It takes no more, so that the next one gets the next jobs.
        talk.beat("offline");
    }
    api.leave().await;
}

#[tokio::test]
async fn a_lease_that_ends_without_its_worker_is_said_to_have_ended() {
    let api = Api::of("session-ended").await;
    let mut talk = Talk::register(&api, api.follower().await, 2, 2).await;
    let id = api.submit(0, &json!({})).await;
    let job = talk.job().await;
    talk.report(1, update(&job, "running"));
    talk.acknowledged(1).await;
    api.cancel(1, &id).await.expect(204);
    talk.ended(&job).await;
    talk.report(2, done(&job));
    assert_eq!(talk.refused(2).await.0, Code::FailedPrecondition);
    assert_eq!(api.job(2, &id).await["status"], "cancelled");
    api.leave().await;
}

#[tokio::test]
async fn a_worker_goes_on_at_another_replica_with_what_it_holds_and_gets_again_what_it_lacks() {
    let api = Api::of("session-resume").await;
    let mut first = Talk::register(&api, 0, 3, 3).await;
    for _ in 0..3 {
        api.submit(0, &json!({})).await;
    }
    let jobs = [first.job().await, first.job().await, first.job().await];
    first.report(1, update(&jobs[0], "running"));
    first.acknowledged(1).await;
    first.report(2, done(&jobs[1]));
    first.acknowledged(2).await;

    // It holds one, has ended another and not heard of that, and the third was lost on the way.
    let mut second = Talk::resume(&api, 1, &first.worker_id, &[&jobs[0], &jobs[1]]).await;
    assert_eq!(second.worker_id, first.worker_id);
    second.credits(1);
    assert_eq!(first.end().await, Err(Code::Aborted));
    second.ended(&jobs[1]).await;
    assert_eq!(held(&second.job().await), held(&jobs[2]));
    for (id, job) in [(2, &jobs[1]), (3, &jobs[0]), (4, &jobs[2])] {
        second.report(id, done(job));
        second.acknowledged(id).await;
        assert_eq!(api.executions(2, &job.job_id).await.len(), 1);
    }
    // The same report on yet another stream gets the same answer.
    let mut third = Talk::resume(&api, 2, &second.worker_id, &[]).await;
    third.report(4, done(&jobs[2]));
    third.acknowledged(4).await;
    assert_eq!(second.end().await, Err(Code::Aborted));
    api.leave().await;
}

#[tokio::test]
async fn of_two_streams_at_one_replica_the_newer_counts_and_a_stream_that_ends_leaves_the_leases() {
    let api = Api::of("session-two").await;
    let replica = api.follower().await;
    let mut first = Talk::register(&api, replica, 1, 1).await;
    let id = api.submit(0, &json!({})).await;
    let job = first.job().await;
    let second = Talk::resume(&api, replica, &first.worker_id, &[&job]).await;
    assert_eq!(first.end().await, Err(Code::Aborted));
    let worker_id = second.worker_id.clone();
    let Talk { out, messages, .. } = second;
    drop(out);
    let mut messages = messages;
    while timeout(SOON, messages.message()).await.expect("the stream ends").unwrap().is_some() {}
    assert_eq!(api.job(1, &id).await["status"], "assigned");
    let mut third = Talk::resume(&api, (replica + 1) % REPLICAS, &worker_id, &[&job]).await;
    third.report(1, done(&job));
    third.acknowledged(1).await;
    api.leave().await;
}

#[tokio::test]
async fn reports_that_are_stale_or_malformed_are_refused_and_the_stream_goes_on() {
    let api = Api::of("session-refusals").await;
    let mut talk = Talk::register(&api, api.follower().await, 1, 1).await;
    api.submit(0, &json!({})).await;
    let job = talk.job().await;
    let changed = |change: fn(&mut JobCompletion)| {
        let mut completion = completion(&job);
        change(&mut completion);
        Report::Completion(completion)
    };
    let mut reports = vec![
        (Code::FailedPrecondition, Some(changed(|done| done.execution_id = NOBODY.to_owned()))),
        (Code::NotFound, Some(changed(|done| done.job_id = NOBODY.to_owned()))),
        (Code::InvalidArgument, Some(changed(|done| done.job_id = "x".to_owned()))),
        (Code::InvalidArgument, Some(changed(|done| done.execution_id = "x".to_owned()))),
        (Code::InvalidArgument, Some(changed(|done| done.worker_id = NOBODY.to_owned()))),
        (Code::InvalidArgument, Some(changed(|done| done.output_data = b"[]"[..].into()))),
        (Code::InvalidArgument, Some(changed(|done| done.duration_ms = -1))),
        (Code::InvalidArgument, Some(update(&job, "asleep"))),
        (Code::InvalidArgument, None),
    ];
    let numbered = |reports: &[(Code, Option<Report>)]| {
        let report = |(at, (_, report)): (usize, &(Code, Option<Report>))| SessionReport {
            id: at as u64 + 1,
            report: report.clone(),
        };
        reports.iter().enumerate().map(report).collect::<Vec<_>>()
    };
    talk.say(SessionRequest { reports: numbered(&reports), ..SessionRequest::default() });
    for (id, (code, report)) in (1..).zip(&reports) {
        let (refused, message) = talk.refused(id).await;
        assert_eq!(refused, *code, "{report:?}: {message}");
        assert!(!message.is_empty());
    }
    talk.report(0, done(&job));
    assert_eq!(talk.refused(0).await.0, Code::InvalidArgument, "a report needs a name");
    // More than a message may hold: what is beyond is refused, what is within is taken.
    reports = vec![(Code::InvalidArgument, None); 1_000];
    reports.push((Code::InvalidArgument, Some(done(&job))));
    talk.say(SessionRequest { reports: numbered(&reports), ..SessionRequest::default() });
    assert!(talk.refused(1_001).await.1.contains("1000"));
    talk.report(2_000, done(&job));
    talk.acknowledged(2_000).await;
    api.leave().await;
}

#[tokio::test]
async fn an_opening_that_cannot_be_read_or_names_nobody_opens_nothing() {
    let api = Api::of("session-openings").await;
    let resume = |worker_id: &str, held: Vec<HeldLease>| SessionOpening {
        worker_id: worker_id.to_owned(),
        held,
        ..SessionOpening::default()
    };
    let lease = |job_id: &str, execution_id: &str| HeldLease {
        job_id: job_id.to_owned(),
        execution_id: execution_id.to_owned(),
    };
    let both = SessionOpening {
        registration: Some(registration(&api, 1)),
        worker_id: NOBODY.to_owned(),
        held: vec![],
    };
    let bad = SessionOpening {
        registration: Some(WorkerRegistration { port: -1, ..registration(&api, 1) }),
        ..SessionOpening::default()
    };
    for (opening, code, named) in [
        (None, Code::InvalidArgument, "opening"),
        (Some(SessionOpening::default()), Code::InvalidArgument, "opening"),
        (Some(both), Code::InvalidArgument, "opening"),
        (Some(bad), Code::InvalidArgument, "port"),
        (Some(resume("x", vec![])), Code::InvalidArgument, "opening.worker_id"),
        (Some(resume(NOBODY, vec![lease("x", NOBODY)])), Code::InvalidArgument, "opening.held"),
        (Some(resume(NOBODY, vec![lease(NOBODY, "")])), Code::InvalidArgument, "opening.held"),
        (Some(resume(NOBODY, vec![lease(NOBODY, NOBODY); 1_001])), Code::InvalidArgument, "opening.held"),
        (Some(resume(NOBODY, vec![lease(NOBODY, NOBODY)])), Code::NotFound, NOBODY),
    ] {
        for replica in 0..REPLICAS {
            let first = SessionRequest { opening: opening.clone(), ..SessionRequest::default() };
            let status = Talk::open(&api, replica, first).await.err().expect("it is refused");
            assert_eq!(status.code(), code, "{opening:?}: {status:?}");
            assert!(status.message().contains(named), "{opening:?}: {status:?}");
        }
    }
    let nothing = futures::stream::empty::<SessionRequest>();
    let status = connect(&api, 0).await.session(nothing).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    api.leave().await;
}

#[tokio::test]
async fn a_lease_that_is_not_live_is_said_to_have_ended_when_its_worker_comes_back() {
    let api = Api::of("session-stale").await;
    let mut talk = Talk::register(&api, 0, 1, 1).await;
    let id = api.submit(0, &json!({})).await;
    let job = talk.job().await;
    let worker_id = talk.worker_id.clone();
    drop(talk);
    api.cancel(0, &id).await.expect(204);
    let mut again = Talk::resume(&api, 1, &worker_id, &[&job]).await;
    again.ended(&job).await;
    api.leave().await;
}

#[tokio::test]
async fn a_worker_that_leaves_or_is_unwell_gets_nothing_new_until_it_is_well() {
    let api = Api::of("session-leaving").await;
    let mut talk = Talk::register(&api, api.follower().await, 2, 2).await;
    let shown = async |status: &str| {
        eventually(&format!("the worker is {status}"), async || {
            api.get(0, &format!("/api/v1/workers/{}", talk.worker_id)).await.expect(200)["status"] == status
        })
        .await;
    };
    for status in ["unhealthy", "offline"] {
        talk.beat(status);
        shown(status).await;
    }
    let id = api.submit(0, &json!({})).await;
    eventually("the job is ready", async || api.ready().await.contains(&id)).await;
    talk.beat("idle");
    assert_eq!(talk.job().await.job_id, id);
    api.leave().await;
}

#[tokio::test]
async fn a_worker_that_registers_again_loses_its_stream_and_its_jobs() {
    let api = Api::of("session-again").await;
    let registration = registration(&api, 1);
    let first = || SessionRequest {
        opening: Some(SessionOpening {
            registration: Some(registration.clone()),
            ..SessionOpening::default()
        }),
        credits: 1,
        ..SessionRequest::default()
    };
    let mut before = Talk::open(&api, 0, first()).await.unwrap();
    let id = api.submit(0, &json!({})).await;
    let job = before.job().await;
    let mut after = Talk::open(&api, 1, first()).await.unwrap();
    assert_eq!(after.worker_id, before.worker_id);
    assert_eq!(before.end().await, Err(Code::Aborted));
    // It never said that the job runs, so no attempt is spent.
    let again = after.job().await;
    assert_eq!((again.job_id.as_str(), again.attempt_number), (id.as_str(), 1));
    assert_ne!(again.execution_id, job.execution_id);
    after.report(1, done(&job));
    assert_eq!(after.refused(1).await.0, Code::FailedPrecondition);
    after.report(2, done(&again));
    after.acknowledged(2).await;
    api.leave().await;
}
