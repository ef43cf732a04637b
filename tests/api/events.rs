//! Server-Sent Events of jobs' changes, at whichever replica.

use std::time::Duration;

use reqwest::Response;
use serde_json::{Value, json};

use crate::group::{Api, REPLICAS};
use crate::hand::Hand;
use crate::reply::Reply;

const ALL: &str = "/api/v1/events";

#[derive(Debug, Clone, PartialEq)]
struct Event {
    id: String,
    kind: String,
    data: Value,
}

/// An open stream.
struct Events {
    response: Response,
    buffer: String,
}

impl Events {
    async fn open(api: &Api, replica: usize, path: &str, after: Option<&str>) -> Self {
        let response = api.open(replica, path, after).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, buffer: String::new() }
    }

    async fn of_job(api: &Api, replica: usize, job: &str) -> Self {
        Self::open(api, replica, &path(job), None).await
    }

    /// The next event; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((block, rest)) = self.buffer.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.buffer = rest;
                let field = |name: &str| {
                    let mut lines = block.lines();
                    lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
                };
                // A comment is no event.
                let Some(data) = field("data") else { continue };
                let data = serde_json::from_str(&data).unwrap();
                return Some(Event { id: field("id").unwrap(), kind: field("event").unwrap(), data });
            }
            let chunk = tokio::time::timeout(Duration::from_secs(30), self.response.chunk()).await;
            let chunk = chunk.expect("nothing came in half a minute").unwrap()?;
            self.buffer.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }

    /// The state that the next event tells.
    async fn state(&mut self) -> Value {
        let event = self.next().await.expect("the stream has ended");
        assert_eq!(event.kind, "status", "{event:?}");
        event.data["status"].clone()
    }

    /// The next event about one of these jobs; other tests have jobs, too.
    async fn about(&mut self, jobs: &[String]) -> Event {
        loop {
            let event = self.next().await.expect("the stream has ended");
            if event.kind != "status" || jobs.iter().any(|job| event.data["job_id"] == **job) {
                return event;
            }
        }
    }
}

fn path(job: &str) -> String {
    format!("/api/v1/jobs/{job}/events")
}

#[tokio::test]
async fn a_job_is_followed_to_its_end_at_every_replica() {
    let api = Api::of("events-life").await;
    let job = api.submit(0, &json!({})).await;
    api.reaches(&job, "queued").await;
    let mut streams = Vec::new();
    for replica in 0..REPLICAS {
        let mut events = Events::of_job(&api, replica, &job).await;
        assert_eq!(events.state().await, "queued", "the present state comes first");
        streams.push(events);
    }
    let hand = Hand::new(&api, 1, 1).await;
    let given = hand.job().await;
    hand.status(&given, "running").await;
    hand.report(&hand.success(&given, &json!({}))).await;
    for mut events in streams {
        for state in ["assigned", "running", "completed"] {
            let event = events.next().await.unwrap();
            assert_eq!((&event.data["status"], &event.data["job_id"]), (&json!(state), &json!(job)));
            assert_eq!(event.data["worker_id"], json!(hand.id));
        }
        assert_eq!(events.next().await, None, "the stream ends with the job");
    }
    api.leave().await;
}

#[tokio::test]
async fn who_comes_back_goes_on_at_another_replica_where_it_was() {
    let api = Api::of("events-resume").await;
    // Somebody follows all the time.
    let _other = Events::open(&api, 0, ALL, None).await;
    let job = api.submit(0, &json!({})).await;
    api.reaches(&job, "queued").await;
    let mut events = Events::of_job(&api, 0, &job).await;
    let first = events.next().await.unwrap();
    drop(events);
    api.patch(1, &job, &json!({"status": "running"})).await.expect(200);
    for replica in 0..REPLICAS {
        let mut events = Events::open(&api, replica, &path(&job), Some(&first.id)).await;
        assert_eq!(events.state().await, "running", "what was known is not told again");
    }
    api.patch(2, &job, &json!({"status": "completed"})).await.expect(200);
    for replica in 0..REPLICAS {
        let mut events = Events::open(&api, replica, &path(&job), Some(&first.id)).await;
        assert_eq!(events.state().await, "running");
        let last = events.next().await.unwrap();
        assert_eq!(last.data["status"], "completed");
        assert_eq!(events.next().await, None);
        // An `EventSource` that comes again is to stay away.
        assert_eq!(api.open(replica, &path(&job), Some(&last.id)).await.status(), 204);
    }
    api.leave().await;
}

#[tokio::test]
async fn who_comes_back_from_an_unknown_place_is_told_and_shown_the_present_state() {
    let api = Api::of("events-reset").await;
    let job = api.submit(1, &json!({})).await;
    api.reaches(&job, "queued").await;
    for replica in 0..REPLICAS {
        for unknown in ["1-1", "1-0", "9999-5"] {
            let mut events = Events::open(&api, replica, &path(&job), Some(unknown)).await;
            let reset = events.next().await.unwrap();
            assert_eq!((reset.kind.as_str(), &reset.data), ("reset", &json!({})));
            assert_eq!(events.state().await, "queued");
            let mut all = Events::open(&api, replica, ALL, Some(unknown)).await;
            assert_eq!(all.next().await.unwrap().kind, "reset");
        }
    }
    api.leave().await;
}

#[tokio::test]
async fn the_changes_of_all_jobs_are_told_alike_everywhere_and_can_be_resumed() {
    let api = Api::of("events-all").await;
    let mut streams = Vec::new();
    for replica in 0..REPLICAS {
        let mut events = Events::open(&api, replica, ALL, None).await;
        assert_eq!(events.next().await.unwrap().kind, "start");
        streams.push(events);
    }
    let mut jobs = Vec::new();
    for replica in 0..REPLICAS {
        jobs.push(api.submit(replica, &json!({"priority": replica + 1})).await);
    }
    for job in &jobs {
        api.cancel(0, job).await.expect(204);
    }
    let mut seen: Vec<Vec<Event>> = Vec::new();
    for events in &mut streams {
        let mut told = Vec::new();
        for _ in 0..2 * jobs.len() {
            told.push(events.about(&jobs).await);
        }
        seen.push(told);
    }
    assert!(seen.iter().all(|told| *told == seen[0]), "one order and one numbering: {seen:#?}");
    for job in &jobs {
        let of_job = seen[0].iter().filter(|event| event.data["job_id"] == **job);
        let states: Vec<_> = of_job.map(|event| event.data["status"].clone()).collect();
        assert_eq!(states, ["queued", "cancelled"]);
    }
    // From the middle on, at another replica.
    let mut resumed = Events::open(&api, 1, ALL, Some(&seen[0][2].id)).await;
    for expected in &seen[0][3..] {
        assert_eq!(resumed.about(&jobs).await, *expected);
    }
    api.leave().await;
}

#[tokio::test]
async fn a_retry_is_told_and_an_ended_job_is_shown_once() {
    let api = Api::of("events-retry").await;
    let job = api
        .submit(
            0,
            &json!({"max_retries": 1, "metadata": {"retry_policy":
        {"strategy": "fixed", "initial_delay_seconds": 1, "jitter": false}}}),
        )
        .await;
    api.reaches(&job, "queued").await;
    let mut events = Events::of_job(&api, 2, &job).await;
    assert_eq!(events.state().await, "queued");
    for expected in [&["pending", "queued"][..], &["failed"]] {
        api.patch(0, &job, &json!({"status": "failed"})).await.expect(200);
        for state in expected {
            assert_eq!(events.state().await, *state);
        }
    }
    assert_eq!(events.next().await, None);
    let mut events = Events::of_job(&api, 1, &job).await;
    assert_eq!((events.state().await, events.next().await), (json!("failed"), None));
    api.leave().await;
}

#[tokio::test]
async fn bad_requests_for_events_are_refused() {
    let api = Api::of("events-bad").await;
    let nobody = "0190a5c0-0000-7000-8000-000000000001";
    Reply::read(api.open(0, &path(nobody), None).await).await.expect(404);
    Reply::read(api.open(0, &path("x"), None).await).await.expect(400);
    for path in [ALL, &path(nobody)] {
        let reply = Reply::read(api.open(1, path, Some("yesterday")).await).await;
        assert_eq!(reply.fields(), ["Last-Event-ID"]);
        reply.expect(422);
    }
    api.leave().await;
}
