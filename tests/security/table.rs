//! Every cell of role × route or RPC × leader or follower.

use std::str::FromStr;

use cortex::api::{rest, rpcs};
use cortex::security::{Access, Role};
use http::uri::PathAndQuery;
use reqwest::Method;
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::Channel;

use crate::scene::{Scene, headers, shared, with_token};

const ID: &str = "00000000-0000-7000-8000-000000000000";

/// No token, and one of each role.
fn bearers(scene: &Scene) -> Vec<(Option<Role>, Option<String>)> {
    let known = Role::ALL.into_iter().map(|role| (Some(role), Some(scene.token("table", role))));
    std::iter::once((None, None)).chain(known).collect()
}

#[tokio::test]
async fn every_route_lets_in_the_roles_of_the_table_and_nobody_else() {
    // A group of its own: among the calls are some that empty the queue, pause it, and let another replica lead.
    let scene = &Scene::start(3, &[]).await;
    let mut cells = 0;
    for replica in scene.both().await {
        for (role, token) in bearers(scene) {
            for (method, pattern, access) in rest::routes() {
                let path = pattern.replace("{id}", ID);
                let body = (method == Method::POST || method == Method::PATCH).then(|| json!({}));
                let answer = scene.send(replica, &method, &path, token.as_deref(), body.as_ref()).await;
                let (status, headers) = (answer.status().as_u16(), headers(&answer));
                let cell = format!("{method} {pattern} as {role:?} at replica {replica}: {status}");
                match role {
                    _ if access == Access::Open => assert!(!matches!(status, 401 | 403), "{cell}"),
                    None => {
                        assert_eq!(status, 401, "{cell}");
                        assert_eq!(headers["www-authenticate"], "Bearer realm=\"cortex\"", "{cell}");
                        assert_eq!(headers["content-type"], "application/problem+json", "{cell}");
                    }
                    Some(role) if !role.allows(access) => {
                        assert_eq!(status, 403, "{cell}");
                        assert!(headers["www-authenticate"].contains("insufficient_scope"), "{cell}");
                        let problem: Value = answer.json().await.unwrap();
                        assert_eq!(problem["type"], "urn:cortex:problem:forbidden");
                    }
                    Some(_) => assert!(!matches!(status, 401 | 403) && status < 500, "{cell}"),
                }
                cells += 1;
            }
        }
    }
    assert_eq!(cells, 2 * 5 * rest::routes().len());
    scene.logs_are_clean(&[]);
}

async fn call(channel: &Channel, path: &str, token: Option<&str>) -> Code {
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await.unwrap();
    let request = match token {
        Some(token) => with_token((), token),
        None => tonic::Request::new(()),
    };
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    // As a stream, whatever it is: some of them do not end. Who is let in learns that with the first message.
    let path = PathAndQuery::from_str(path).unwrap();
    let answer = match client.server_streaming(request, path, codec).await {
        Ok(stream) => stream.into_inner().message().await,
        Err(status) => Err(status),
    };
    answer.map_or_else(|status| status.code(), |_| Code::Ok)
}

#[tokio::test]
async fn every_rpc_lets_in_the_roles_of_the_table_and_nobody_else() {
    let scene = shared().await;
    let others = [
        ("/grpc.health.v1.Health/Check", Access::Open),
        ("/grpc.health.v1.Health/Watch", Access::Open),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Access::Read),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Access::Read),
        ("/cortex.JobService/NotThere", Access::Administer),
        ("/nobody.Knows/It", Access::Administer),
    ];
    let mut cells = 0;
    for replica in scene.both().await {
        let channel = scene.channel(replica).await;
        for (role, token) in bearers(scene) {
            for (path, access) in rpcs().chain(others) {
                let code = call(&channel, path, token.as_deref()).await;
                let cell = format!("{path} as {role:?} at replica {replica}: {code:?}");
                match role {
                    _ if access == Access::Open => assert_eq!(code, Code::Ok, "{cell}"),
                    None => assert_eq!(code, Code::Unauthenticated, "{cell}"),
                    Some(role) if !role.allows(access) => assert_eq!(code, Code::PermissionDenied, "{cell}"),
                    Some(_) => {
                        assert!(!matches!(code, Code::Unauthenticated | Code::PermissionDenied), "{cell}");
                    }
                }
                cells += 1;
            }
        }
    }
    assert_eq!(cells, 2 * 5 * (rpcs().count() + others.len()));
    scene.logs_are_clean(&[]);
}

/// What a route asks for by the words of the contract, not by the product's own table.
fn agreed(method: &Method, path: &str) -> Access {
    match path.strip_prefix("/api/v1/") {
        None => Access::Open,
        Some(path) if path.starts_with("health") => Access::Open,
        Some(_) if method == Method::GET => Access::Read,
        Some(path) if path.starts_with("jobs") => Access::Submit,
        Some("workers" | "workers/{id}/heartbeat") if method == Method::POST => Access::Work,
        Some(_) => Access::Administer,
    }
}

#[test]
fn the_table_says_what_was_agreed_of_roles_routes_and_rpcs() {
    for (method, path, access) in rest::routes() {
        let ours = path.starts_with("/api/v1/") || path.starts_with("/health") || path == "/metrics";
        assert!(!ours || access == agreed(&method, path), "{method} {path}: {access:?}");
    }
    for (path, access) in rpcs() {
        let expected = match path.rsplit_once('/').unwrap() {
            ("/cortex.JobService", _) => Access::Work,
            (_, "SubmitJob" | "SubmitJobs" | "CancelJob" | "RetryJob") => Access::Submit,
            (_, rpc) => {
                assert!(
                    ["GetJob", "ListJobs", "WatchJob", "GetStats"].contains(&rpc),
                    "{path} is not agreed"
                );
                Access::Read
            }
        };
        assert_eq!(access, expected, "{path}");
    }
    let all = [Access::Open, Access::Read, Access::Submit, Access::Work, Access::Administer];
    for (role, allowed) in [
        (Role::Viewer, [true, true, false, false, false]),
        (Role::Submitter, [true, true, true, false, false]),
        (Role::Worker, [true, false, false, true, false]),
        (Role::Admin, [true; 5]),
    ] {
        assert_eq!(all.map(|access| role.allows(access)), allowed, "{role:?}");
    }
}

#[tokio::test]
async fn what_is_not_served_is_not_told_to_strangers() {
    let scene = shared().await;
    let status = async |token: Option<&str>| {
        scene.send(0, &Method::GET, "/api/v1/secret", token, None).await.status().as_u16()
    };
    assert_eq!(status(None).await, 401);
    assert_eq!(status(Some(&scene.token("ann", Role::Viewer))).await, 404);
}
