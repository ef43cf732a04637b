//! Rates, headers, other origins, and what the start refuses.

use std::process::Command;

use cortex::security::Role;
use cortex_client::proto::HeartbeatRequest;
use cortex_client::proto::job_service_client::JobServiceClient;
use futures::future::join_all;
use reqwest::Method;
use tonic::Code;

use crate::scene::{Scene, shared, with_token};
use crate::support::Scratch;

#[tokio::test]
async fn each_subject_has_its_own_rate_and_learns_when_to_come_again() {
    let scene = Scene::start(1, &["limits.requests_per_second=1", "limits.request_burst=10"]).await;
    let (ann, bob) = (scene.token("ann", Role::Viewer), scene.token("bob", Role::Viewer));
    let worker = scene.token("ann", Role::Worker);
    let get = async |token: &str| scene.send(0, &Method::GET, "/api/v1/jobs", Some(token), None).await;
    let client = JobServiceClient::new(scene.channel(0).await);
    let beat = async || {
        let request = with_token(HeartbeatRequest::default(), &worker);
        client.clone().heartbeat(request).await.unwrap_err().code()
    };
    let mut refused = None;
    for _ in 0..40 {
        let answer = get(&ann).await;
        if answer.status() == 429 {
            refused = Some(answer);
        }
    }
    let refused = refused.expect("40 requests at once are too many");
    assert_eq!(refused.headers()["retry-after"], "1");
    // A count of their own would have let all of these pass.
    let codes = join_all((0..10).map(|_| beat())).await;
    assert!(codes.contains(&Code::ResourceExhausted), "one count for both surfaces: {codes:?}");
    assert_eq!(get(&bob).await.status(), 200);
    assert_eq!(scene.send(0, &Method::GET, "/health/live", None, None).await.status(), 200);
    let mut guesses = Vec::new();
    for _ in 0..40 {
        guesses.push(get("guess").await.status().as_u16());
    }
    assert!(guesses.contains(&401) && guesses.contains(&429), "who guesses is counted too: {guesses:?}");
}

#[tokio::test]
async fn headers_beyond_their_limit_and_strange_origins_are_kept_out() {
    let scene = shared().await;
    let url = format!("http://{}/api/v1/jobs", scene.cluster.http(0));
    let answer = scene.http.get(&url).header("x-large", "x".repeat(17_000)).send().await.unwrap();
    assert_eq!(answer.status(), 431);
    let preflight = scene.http.request(Method::OPTIONS, &url).header("origin", "http://evil.test");
    let preflight = preflight.header("access-control-request-method", "GET").send().await.unwrap();
    assert!(!preflight.headers().contains_key("access-control-allow-origin"));
}

#[tokio::test]
async fn a_listed_origin_may_ask_without_a_token_and_call_with_one() {
    let scene = Scene::start(1, &["cors.origins=[\"http://ui.test\"]"]).await;
    let url = format!("http://{}/api/v1/jobs", scene.cluster.http(0));
    let preflight = scene.http.request(Method::OPTIONS, &url).header("origin", "http://ui.test");
    let preflight = preflight.header("access-control-request-method", "GET").send().await.unwrap();
    assert_eq!(preflight.status(), 200);
    assert_eq!(preflight.headers()["access-control-allow-origin"], "http://ui.test");
    let refused = scene.http.get(&url).header("origin", "http://ui.test").send().await.unwrap();
    assert_eq!(refused.status(), 401);
    assert_eq!(
        refused.headers()["access-control-allow-origin"],
        "http://ui.test",
        "so that a page can read why"
    );
}

#[test]
fn a_replica_that_could_check_no_token_does_not_start() {
    let folder = Scratch::new();
    let config = folder.path().join("cortex.yaml");
    let stores =
        "database: {url: 'postgres://nobody@127.0.0.1:1/none'}\nqueue: {redis_url: 'redis://127.0.0.1:1'}\n";
    for (security, parts) in [
        ("", ["security.jwt_public_key", "security.jwks_url", "security.require_auth"].as_slice()),
        (
            "security: {jwt_public_key: /nowhere/key.pem}",
            &["security.jwt_public_key cannot read /nowhere/key.pem"],
        ),
    ] {
        std::fs::write(&config, format!("{stores}{security}")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_cortex"));
        let output = command.arg("serve").arg("--config").arg(&config).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }
}

#[test]
fn the_command_line_issues_tokens_that_a_replica_believes() {
    let folder = Scratch::new();
    let key = folder.path().join("key.pem");
    let pair = cortex::security::KeyPair::generate().unwrap();
    std::fs::write(&key, pair.private_pem()).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cortex"));
        command
            .args(["token", "issue", "--subject", "ann"])
            .args(arguments)
            .arg("--key")
            .arg(&key)
            .output()
            .unwrap()
    };
    let output = run(&["--role", "viewer", "--ttl", "90m"]);
    assert!(output.status.success(), "{output:?}");
    let token = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        (token.lines().count(), token.trim().split('.').count()),
        (1, 3),
        "the token and nothing else"
    );
    for wrong in [
        ["--role", "root", "--ttl", "1h"],
        ["--role", "viewer", "--ttl", "0s"],
        ["--role", "viewer", "--ttl", "4000d"],
    ] {
        assert_eq!(run(&wrong).status.code(), Some(2), "{wrong:?}");
    }
    std::fs::write(&key, pair.public_pem()).unwrap();
    let output = run(&["--role", "viewer"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("no RSA private key"), "{output:?}");
}
