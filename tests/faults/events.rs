//! Followers of jobs' changes, through a change of leaders.

use std::time::Duration;

use serde_json::{Value, json};

use crate::load::accepted;
use crate::scene::Scene;

/// Reads until the stream has told so much.
async fn read_until(response: &mut reqwest::Response, text: &mut String, wanted: &[&str]) {
    while !wanted.iter().all(|wanted| text.contains(wanted)) {
        let chunk = tokio::time::timeout(Duration::from_secs(30), response.chunk()).await;
        let chunk = chunk.unwrap_or_else(|_| panic!("waited in vain for {wanted:?}: {text}"));
        text.push_str(std::str::from_utf8(&chunk.unwrap().unwrap()).unwrap());
    }
}

#[tokio::test]
async fn a_stream_outlives_the_leader_and_says_that_something_may_be_missing() {
    let mut scene = Scene::start().await;
    let leader = scene.leader().await;
    let follower = scene.others(leader)[0];
    let address = scene.cluster.http(follower);
    let job = accepted(&scene.http, address, json!({})).await;
    let url = format!("http://{address}/api/v1/jobs/{job}");
    let mut events = scene.http.get(format!("{url}/events")).send().await.unwrap();
    let mut text = String::new();
    read_until(&mut events, &mut text, &["\"status\":\"queued\""]).await;
    assert!(!text.contains("event: reset"), "{text}");

    scene.kill(leader).await;
    scene.leader_other_than(leader).await;
    text.clear();
    read_until(&mut events, &mut text, &["event: reset", "\"status\":\"queued\""]).await;

    text.clear();
    let running: Value = json!({"status": "running"});
    let patched = scene.http.patch(&url).json(&running).send().await.unwrap();
    assert_eq!(patched.status(), 200);
    read_until(&mut events, &mut text, &["\"status\":\"running\""]).await;
    assert_eq!(scene.http.delete(&url).send().await.unwrap().status(), 204);
    read_until(&mut events, &mut text, &["\"status\":\"cancelled\""]).await;
    assert_eq!(events.chunk().await.unwrap(), None, "the stream ends with the job");
    scene.revive(leader).await;
}
