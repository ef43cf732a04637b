//! Keys from `security.jwks_url`, as a replica uses them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use cortex::domain::ambient::{Ambient, System};
use cortex::security::{Issuer, KeyPair, NewToken, Role};
use reqwest::Method;
use serde_json::{Value, json};

use crate::scene::Scene;
use crate::support::eventually;

/// The key id that [`Issuer`] gives a key.
fn kid(token: &str) -> String {
    use base64::Engine;
    let header = token.split('.').next().unwrap();
    let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(header).unwrap();
    serde_json::from_slice::<Value>(&header).unwrap()["kid"].as_str().unwrap().to_owned()
}

fn token(pair: &KeyPair) -> String {
    let token = NewToken {
        subject: "ann".to_owned(),
        role: Role::Viewer,
        ttl: Duration::from_secs(600),
        issuer: None,
        audience: None,
    };
    Issuer::from_pem(pair.private_pem()).unwrap().issue(&token, System.now()).unwrap()
}

#[tokio::test]
async fn a_new_key_is_accepted_as_soon_as_it_is_published_and_until_then_refused() {
    let (old, new) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let (with_old, with_new) = (token(&old), token(&new));
    let published = Arc::new(Mutex::new(json!({"keys": [old.public_jwk(&kid(&with_old))]})));
    let answer = Arc::clone(&published);
    let keys = move || std::future::ready(answer.lock().unwrap().to_string());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("security.jwks_url=http://{}/", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/", get(keys))).await });
    let scene = Scene::start(1, &[&url]).await;

    let status = async |token: &str| {
        scene.send(0, &Method::GET, "/api/v1/jobs", Some(token), None).await.status().as_u16()
    };
    eventually("the keys are fetched", async || status(&with_old).await == 200).await;
    assert_eq!(status(&with_new).await, 401);
    *published.lock().unwrap() =
        json!({"keys": [old.public_jwk(&kid(&with_old)), new.public_jwk(&kid(&with_new))]});
    eventually("the new key is known", async || status(&with_new).await == 200).await;
    assert_eq!(status(&with_old).await, 200, "the two overlap");
    scene.logs_are_clean(&[&with_old, &with_new]);
}

#[tokio::test]
async fn without_any_keys_nobody_is_let_in_and_told_that_it_is_not_their_fault() {
    let scene = Scene::start(1, &["security.jwks_url=http://127.0.0.1:1/"]).await;
    let token = token(&KeyPair::generate().unwrap());
    let answer = scene.send(0, &Method::GET, "/api/v1/jobs", Some(&token), None).await;
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(scene.send(0, &Method::GET, "/api/v1/jobs", Some("junk"), None).await.status(), 401);
    assert_eq!(scene.send(0, &Method::GET, "/api/v1/jobs", None, None).await.status(), 401);
    assert_eq!(scene.send(0, &Method::GET, "/health/ready", None, None).await.status(), 200);
}
