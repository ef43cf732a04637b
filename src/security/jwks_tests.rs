use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};

use super::*;
use crate::domain::ambient::System;
use crate::security::KeyPair;

/// The system's time, moved forward at will.
struct Moved(Mutex<Duration>);

impl Ambient for Moved {
    fn now(&self) -> chrono::DateTime<chrono::Utc> {
        System.now()
    }

    fn instant(&self) -> Instant {
        System.instant() + *self.0.lock().unwrap()
    }

    fn uuid(&self) -> uuid::Uuid {
        System.uuid()
    }

    fn unit(&self) -> f64 {
        0.5
    }
}

/// A server of key sets that answers what it was told last.
struct Provider {
    url: String,
    answer: Arc<Mutex<(StatusCode, String)>>,
    asked: Arc<AtomicUsize>,
}

impl Provider {
    async fn start(keys: &Value) -> Self {
        let answer = Arc::new(Mutex::new((StatusCode::OK, keys.to_string())));
        let asked = Arc::new(AtomicUsize::new(0));
        let (said, counted) = (Arc::clone(&answer), Arc::clone(&asked));
        let reply = move || {
            counted.fetch_add(1, Ordering::SeqCst);
            let (status, body) = said.lock().unwrap().clone();
            let response: Response = (status, [(header::LOCATION, "/other")], body).into_response();
            std::future::ready(response)
        };
        let other = Arc::clone(&answer);
        let elsewhere = move || std::future::ready(other.lock().unwrap().1.clone());
        let app = Router::new().route("/keys", get(reply)).route("/other", get(elsewhere));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/keys", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, answer, asked }
    }

    fn says(&self, status: StatusCode, body: impl ToString) {
        *self.answer.lock().unwrap() = (status, body.to_string());
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn set(kids: &[&str]) -> Value {
    static PAIR: std::sync::OnceLock<KeyPair> = std::sync::OnceLock::new();
    let pair = PAIR.get_or_init(|| KeyPair::generate().unwrap());
    json!({"keys": kids.iter().map(|kid| pair.public_jwk(kid)).collect::<Vec<_>>()})
}

async fn knows(jwks: &Jwks, kid: &str) -> bool {
    jwks.keys(Some(kid)).await.is_some_and(|keys| keys.candidates(Some(kid)).next().is_some())
}

fn start(provider: &Provider) -> (Jwks, Arc<Moved>) {
    let ambient = Arc::new(Moved(Mutex::default()));
    (Jwks::start(&provider.url, Arc::clone(&ambient) as Arc<dyn Ambient>).unwrap(), ambient)
}

#[tokio::test]
async fn a_rotation_with_overlap_refuses_nobody() {
    let provider = Provider::start(&set(&["old"])).await;
    let (jwks, time) = start(&provider);
    assert!(knows(&jwks, "old").await);
    *time.0.lock().unwrap() += ASK_EVERY;
    provider.says(StatusCode::OK, set(&["old", "new"]));
    assert!(knows(&jwks, "new").await, "a key that is not known is asked for");
    assert!(knows(&jwks, "old").await);
    *time.0.lock().unwrap() += ASK_EVERY;
    provider.says(StatusCode::OK, set(&["new"]));
    assert!(!knows(&jwks, "other").await);
    assert!(!knows(&jwks, "old").await, "a key that was withdrawn is trusted no longer");
}

#[tokio::test]
async fn a_flood_of_made_up_keys_is_one_fetch() {
    let provider = Provider::start(&set(&["a"])).await;
    let (jwks, time) = start(&provider);
    assert!(knows(&jwks, "a").await);
    *time.0.lock().unwrap() += ASK_EVERY;
    let before = provider.asked();
    let made_up = (0..500).map(|n| {
        let jwks = &jwks;
        async move { knows(jwks, &format!("made-up-{n}")).await }
    });
    assert!(futures::future::join_all(made_up).await.into_iter().all(|known| !known));
    assert_eq!(provider.asked() - before, 1);
    assert!(knows(&jwks, "a").await);
}

#[tokio::test]
async fn keys_are_kept_while_the_provider_is_away_but_not_for_ever() {
    let provider = Provider::start(&set(&["a"])).await;
    let (jwks, time) = start(&provider);
    assert!(knows(&jwks, "a").await);
    provider.says(StatusCode::INTERNAL_SERVER_ERROR, "");
    *time.0.lock().unwrap() += KEEP_FOR - Duration::from_secs(60);
    assert!(knows(&jwks, "a").await);
    *time.0.lock().unwrap() += Duration::from_secs(61);
    assert!(jwks.keys(Some("a")).await.is_none());
    provider.says(StatusCode::OK, set(&["a"]));
    *time.0.lock().unwrap() += ASK_EVERY;
    assert!(knows(&jwks, "a").await);
}

#[tokio::test]
async fn no_redirect_is_followed_and_no_strange_answer_is_a_key_set() {
    let huge = format!("{}{}", set(&["a"]), " ".repeat(MAX_BODY));
    for (status, body) in [
        (StatusCode::FOUND, set(&["a"]).to_string()),
        (StatusCode::CREATED, set(&["a"]).to_string()),
        (StatusCode::OK, "<html>".to_owned()),
        (StatusCode::OK, huge),
    ] {
        let provider = Provider::start(&json!({})).await;
        provider.says(status, body);
        let (jwks, _time) = start(&provider);
        assert!(jwks.keys(Some("a")).await.is_none(), "{status}");
        assert_eq!(provider.asked(), 1);
    }
}
