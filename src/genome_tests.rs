use std::sync::Mutex;

use axum::Router;
use axum::http::{HeaderMap, Uri, header};
use axum::response::IntoResponse;
use serde_json::json;
use tokio::sync::watch;

use super::*;
use crate::config::Secret;
use crate::domain::ambient::System;

/// A registry that answers what it was told last, and notes what it was asked.
struct Server {
    url: String,
    answer: Arc<Mutex<(StatusCode, String)>>,
    asked: Arc<Mutex<Vec<String>>>,
    /// Nothing is answered while this is false.
    open: watch::Sender<bool>,
}

impl Server {
    async fn start() -> Self {
        let answer = Arc::new(Mutex::new((StatusCode::OK, json!({}).to_string())));
        let (asked, (open, opened)) = (Arc::<Mutex<Vec<String>>>::default(), watch::channel(true));
        let (said, noted) = (Arc::clone(&answer), Arc::clone(&asked));
        let app = Router::new().fallback(move |uri: Uri, headers: HeaderMap| {
            let by = headers.get(header::AUTHORIZATION).map_or("", |by| by.to_str().unwrap());
            noted.lock().unwrap().push(format!("{by}{uri}"));
            let (said, mut opened) = (Arc::clone(&said), opened.clone());
            async move {
                opened.wait_for(|open| *open).await.unwrap();
                let (status, body) = said.lock().unwrap().clone();
                (status, [(header::LOCATION, "/elsewhere")], body).into_response()
            }
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, answer, asked, open }
    }

    fn says(&self, status: u16, body: impl ToString) {
        *self.answer.lock().unwrap() = (StatusCode::from_u16(status).unwrap(), body.to_string());
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().clone()
    }

    fn genome(&self) -> Genome {
        genome(&self.url, 3600, OnUnavailable::Reject)
    }
}

fn genome(url: &str, cache_ttl_s: u64, on_unavailable: OnUnavailable) -> Genome {
    let config = config::Genome {
        url: Secret::new(url),
        timeout: Duration::from_secs(20),
        cache_ttl: Duration::from_secs(cache_ttl_s),
        on_unavailable,
    };
    Genome::new(&config, Arc::new(System), Arc::new(Metrics::new())).unwrap()
}

async fn ask(genome: &Genome, name: &str, version: &str) -> Verdict {
    genome.verdict(&(name.to_owned(), version.to_owned())).await
}

fn accepted(members: &Value) -> Verdict {
    Verdict::Accepted(Arc::new(Requirements::read(members.as_object().unwrap()).unwrap()))
}

#[tokio::test]
async fn a_model_is_asked_for_by_name_and_version_once() {
    let server = Server::start().await;
    let genome = server.genome();
    server.says(200, json!({"name": "a/b", "resource_requirements": {"requires_gpu": true}}));
    for _ in 0..2 {
        assert_eq!(ask(&genome, "a/b ü%2e", "1?x=#y").await, accepted(&json!({"requires_gpu": true})));
    }
    assert_eq!(server.asked(), ["/api/v1/models/a%2Fb%20%C3%BC%252e/versions/1%3Fx=%23y"]);
}

#[tokio::test]
async fn names_that_mean_another_path_are_no_models() {
    let server = Server::start().await;
    let genome = server.genome();
    for (name, version) in
        [(".", "1"), ("..", "1"), ("m", "."), ("m", ".."), ("m", ".\t."), ("a\nb", "1"), ("m", "1\r")]
    {
        assert_eq!(ask(&genome, name, version).await, Verdict::Unknown, "{name} {version}");
    }
    assert_eq!(server.asked(), [""; 0]);
}

#[tokio::test]
async fn the_url_may_have_a_path_and_a_password() {
    let server = Server::start().await;
    let url = format!("{}/registry/", server.url.replace("://", "://ann:pass@"));
    assert_eq!(ask(&genome(&url, 60, OnUnavailable::Reject), "m", "1").await, accepted(&json!({})));
    assert_eq!(server.asked(), ["Basic YW5uOnBhc3M=/registry/api/v1/models/m/versions/1"]);
}

#[tokio::test]
async fn requirements_are_read_under_each_of_their_names() {
    let server = Server::start().await;
    let needs = json!({"requires_gpu": true, "required_memory_gb": 8});
    for (index, body) in [
        json!({"resource_requirements": needs}),
        json!({"requirements": {"gpu": true, "memory_gb": 8, "cpu": 4}}),
        json!({"resources": needs, "owner": "x"}),
    ]
    .iter()
    .enumerate()
    {
        server.says(200, body);
        assert_eq!(ask(&server.genome(), "m", &index.to_string()).await, accepted(&needs), "{body}");
    }
    server.says(200, json!({"resource_requirements": null}));
    assert_eq!(ask(&server.genome(), "m", "1").await, accepted(&json!({})));
}

#[tokio::test]
async fn what_says_nothing_is_no_answer_and_no_redirect_is_followed() {
    let server = Server::start().await;
    for (status, body) in [
        (302, json!({}).to_string()),
        (307, json!({}).to_string()),
        (401, json!({}).to_string()),
        (500, json!({}).to_string()),
        (204, String::new()),
        (200, "<html>".to_owned()),
        (200, json!([]).to_string()),
        (200, json!({"resource_requirements": {"requires_gpu": "yes"}}).to_string()),
        (200, json!({"requirements": 1}).to_string()),
        (200, json!({"x": "y".repeat(MAX_BODY)}).to_string()),
    ] {
        server.says(status, &body);
        assert_eq!(ask(&server.genome(), "m", "1").await, Verdict::Unavailable, "{status} {body:.40}");
        let accepting = genome(&server.url, 60, OnUnavailable::Accept);
        assert_eq!(ask(&accepting, "m", "1").await, accepted(&json!({})), "{status} {body:.40}");
    }
    assert!(server.asked().iter().all(|path| path == "/api/v1/models/m/versions/1"), "{:?}", server.asked());
}

#[tokio::test]
async fn what_the_registry_said_last_counts_while_it_says_nothing() {
    let server = Server::start().await;
    // Nothing is kept, so each is asked for anew.
    let genome = genome(&server.url, 0, OnUnavailable::Reject);
    let needs = json!({"resource_requirements": {"required_memory_gb": 2}});
    server.says(200, &needs);
    let known = accepted(&json!({"required_memory_gb": 2}));
    assert_eq!(ask(&genome, "m", "1").await, known);
    server.says(404, "");
    assert_eq!(ask(&genome, "m", "2").await, Verdict::Unknown);
    server.says(503, "");
    assert_eq!(ask(&genome, "m", "1").await, known);
    assert_eq!(ask(&genome, "m", "2").await, Verdict::Unavailable);
    let asked = server.asked().len();
    ask(&genome, "m", "1").await;
    assert_eq!(server.asked().len(), asked, "it is left alone for a moment");
}

#[tokio::test]
async fn a_model_that_is_gone_counts_no_longer() {
    let server = Server::start().await;
    let genome = genome(&server.url, 0, OnUnavailable::Reject);
    assert_eq!(ask(&genome, "m", "1").await, accepted(&json!({})));
    server.says(410, "");
    assert_eq!(ask(&genome, "m", "1").await, Verdict::Unknown);
    server.says(503, "");
    assert_eq!(ask(&genome, "m", "1").await, Verdict::Unavailable);
}

#[tokio::test]
async fn many_submissions_of_one_model_make_one_request() {
    let server = Server::start().await;
    let genome = server.genome();
    server.open.send_replace(false);
    let many = futures::future::join_all((0..100).map(|_| ask(&genome, "m", "1")));
    let opening = async {
        while server.asked().is_empty() {
            tokio::task::yield_now().await;
        }
        server.open.send_replace(true);
    };
    let (answers, ()) = tokio::join!(many, opening);
    assert!(answers.iter().all(|answer| *answer == accepted(&json!({}))));
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn there_is_a_limit_of_requests_at_once_for_one_call_and_for_all() {
    for (calls, at_once) in [(1, MAX_REQUESTS_OF_A_CALL), (20, MAX_REQUESTS)] {
        let server = Server::start().await;
        let genome = server.genome();
        server.open.send_replace(false);
        let batch = |call: usize| {
            let models = (0..20).map(move |model| (format!("m{call}"), model.to_string()));
            genome.verdicts(models)
        };
        let all = futures::future::join_all((0..calls).map(batch));
        let opening = async {
            while server.asked().len() < at_once {
                tokio::task::yield_now().await;
            }
            for _ in 0..10_000 {
                tokio::task::yield_now().await;
            }
            assert_eq!(server.asked().len(), at_once);
            server.open.send_replace(true);
        };
        let (verdicts, ()) = tokio::join!(all, opening);
        assert!(verdicts.into_iter().flatten().all(|(_, verdict)| verdict == accepted(&json!({}))));
        assert_eq!(server.asked().len(), calls * 20);
    }
}

fn impatient(url: &str) -> Genome {
    let config = config::Genome {
        url: Secret::new(url),
        timeout: Duration::from_millis(500),
        cache_ttl: Duration::from_secs(60),
        on_unavailable: OnUnavailable::Reject,
    };
    Genome::new(&config, Arc::new(System), Arc::new(Metrics::new())).unwrap()
}

#[tokio::test]
async fn a_registry_that_does_not_answer_is_left_alone_and_then_asked_again() {
    let server = Server::start().await;
    let genome = impatient(&server.url);
    server.open.send_replace(false);
    for model in 0..UNANSWERED + 5 {
        assert_eq!(ask(&genome, &model.to_string(), "1").await, Verdict::Unavailable);
    }
    assert_eq!(server.asked().len(), usize::try_from(UNANSWERED).unwrap());
    server.open.send_replace(true);
    for model in ["n", "o"] {
        let mut verdict = Verdict::Unavailable;
        while verdict == Verdict::Unavailable {
            genome.0.kept.invalidate_all();
            tokio::task::yield_now().await;
            verdict = ask(&genome, model, "1").await;
        }
        assert_eq!(verdict, accepted(&json!({})));
    }
}

#[tokio::test]
async fn a_model_for_which_the_registry_fails_stands_in_the_way_of_no_other() {
    let server = Server::start().await;
    let genome = server.genome();
    for model in 0..2 * UNANSWERED {
        server.says(500, "");
        assert_eq!(ask(&genome, &model.to_string(), "1").await, Verdict::Unavailable);
    }
    server.says(404, "");
    assert_eq!(ask(&genome, "m", "1").await, Verdict::Unknown);
}

#[tokio::test]
async fn a_call_is_answered_in_time_however_many_models_it_names() {
    let server = Server::start().await;
    let genome = impatient(&server.url);
    server.open.send_replace(false);
    let models = (0..1000).map(|model| (model.to_string(), "1".to_owned()));
    let verdicts = genome.verdicts(models).await;
    assert_eq!(verdicts.len(), 1000);
    assert!(verdicts.into_values().all(|verdict| verdict == Verdict::Unavailable));
}

#[tokio::test]
async fn nobody_waits_longer_than_the_timeout() {
    let server = Server::start().await;
    server.open.send_replace(false);
    let genome = impatient(&server.url);
    assert_eq!(ask(&genome, "m", "1").await, Verdict::Unavailable);
}

#[test]
fn a_url_that_takes_no_path_is_refused() {
    let config = config::Genome {
        url: Secret::new("http://secret:word@"),
        timeout: Duration::from_secs(1),
        cache_ttl: Duration::ZERO,
        on_unavailable: OnUnavailable::Accept,
    };
    let error = Genome::new(&config, Arc::new(System), Arc::new(Metrics::new())).err().unwrap();
    assert!(!error.to_string().contains("word"), "{error}");
}
