//! Streams last no longer than the tokens on which they were opened.

use std::time::Duration;

use cortex::security::Role;
use cortex_client::proto::WatchJobRequest;
use cortex_client::proto::client_service_client::ClientServiceClient;
use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic::Code;

use crate::scene::{Scene, shared, token_since, with_token};
use crate::support::eventually;
use crate::workers::{Bearer, submit};

/// So old a token is good for ten seconds more, with the leeway of five.
const NEARLY_EXPIRED: Duration = Duration::from_secs(3595);
/// Longest wait for an end that must come.
const SOON: Duration = Duration::from_secs(30);

fn short(scene: &Scene, role: Role) -> String {
    token_since(&scene.private_pem, "ann", role, NEARLY_EXPIRED)
}

#[tokio::test]
async fn events_end_with_their_token_and_those_of_a_good_one_go_on() {
    let scene = shared().await;
    let at_each = scene.both().await.map(|replica| async move {
        let open = async |token: String| {
            let url = format!("http://{}/api/v1/events", scene.cluster.http(replica));
            let events = scene.http.get(url).bearer_auth(token).send().await.unwrap();
            assert_eq!(events.status(), 200);
            events
        };
        let mut good = open(scene.token("ann", Role::Viewer)).await;
        let mut events = open(short(scene, Role::Viewer)).await;
        let ended = async { while events.chunk().await.unwrap().is_some() {} };
        timeout(SOON, ended).await.expect("it ends");
        let goes_on =
            timeout(Duration::from_millis(300), async { while good.chunk().await.unwrap().is_some() {} });
        assert!(goes_on.await.is_err());
    });
    join_all(at_each).await;
}

#[tokio::test]
async fn a_watch_ends_with_its_token() {
    let scene = shared().await;
    let at_each = scene.both().await.map(|replica| async move {
        let job = submit(scene, replica, "watched-with-a-token").await["id"].as_str().unwrap().to_owned();
        let request = WatchJobRequest { job_id: job, ..WatchJobRequest::default() };
        let mut client = ClientServiceClient::new(scene.channel(replica).await);
        let watch = client.watch_job(with_token(request, &short(scene, Role::Viewer))).await;
        let mut watch = watch.unwrap().into_inner();
        assert!(watch.message().await.unwrap().is_some(), "its present state");
        let end = timeout(SOON, async {
            loop {
                if let Err(status) = watch.message().await {
                    break status;
                }
            }
        });
        assert_eq!(end.await.expect("it ends").code(), Code::Unauthenticated);
    });
    join_all(at_each).await;
}

#[tokio::test]
async fn a_session_ends_with_its_token_and_its_worker_gets_nothing_more() {
    let scene = shared().await;
    let at_each = scene.both().await.map(|replica| async move {
        let model = format!("until-the-token-expires-{replica}");
        let mut bearer = Bearer::new(scene, replica, "ann", Role::Worker).await;
        let worker = bearer.register(&model).await.unwrap();
        bearer.token = short(scene, Role::Worker);
        let mut session = bearer.session(&worker).await.unwrap();
        assert!(session.message().await.unwrap().is_some(), "the greeting");
        let end = timeout(SOON, async {
            loop {
                if let Err(status) = session.message().await {
                    break status;
                }
            }
        });
        let end = end.await.expect("it ends");
        assert_eq!(end.code(), Code::Unauthenticated);
        assert!(end.message().contains("has expired"), "{end}");
        let job = submit(scene, replica, &model).await;
        let path = format!("/api/v1/jobs/{}", job["id"].as_str().unwrap());
        let admin = scene.token("root", Role::Admin);
        let shown = scene.send(replica, &Method::GET, &path, Some(&admin), None).await;
        let shown: Value = shown.json().await.unwrap();
        assert_eq!(shown["status"], json!("queued"), "it had a credit left");
    });
    join_all(at_each).await;
}

#[tokio::test]
async fn a_session_ends_with_its_token_though_its_worker_reads_nothing() {
    let scene = shared().await;
    let at_each = scene.both().await.map(|replica| async move {
        let model = format!("unread-until-the-token-expires-{replica}");
        let worker = Bearer::new(scene, replica, "ann", Role::Worker).await.register(&model).await.unwrap();
        let mut deaf = Bearer::deaf(scene, replica, short(scene, Role::Worker)).await;
        let _session = deaf.session_with(&worker, 0).await.unwrap();
        let job = submit(scene, replica, &model).await;
        let path = format!("/api/v1/jobs/{}/explain", job["id"].as_str().unwrap());
        let admin = scene.token("root", Role::Admin);
        let obstacle = async || {
            let explained = scene.send(replica, &Method::GET, &path, Some(&admin), None).await;
            let explained: Value = explained.json().await.unwrap();
            let workers = explained["workers"]["list"].as_array().cloned().unwrap_or_default();
            workers.iter().find(|one| one["worker_id"] == worker).map(|one| one["obstacle"].clone())
        };
        assert_eq!(obstacle().await, Some(json!("no_credits")), "it is attached");
        eventually("it is attached no more", async || obstacle().await == Some(json!("disconnected"))).await;
    });
    join_all(at_each).await;
}
