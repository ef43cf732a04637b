//! The registry of models, a real HTTP server, beside a group that asks it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use cortex_client::proto::client_service_client::ClientServiceClient;
use cortex_client::proto::{JobSubmission, SubmitJobRequest};
use reqwest::Method;
use serde_json::{Value, json};
use tonic::Code;

use crate::scene::Scene;
use crate::support::eventually;

type Models = Arc<Mutex<HashMap<String, Value>>>;

/// What it knows, by `name/version`; a model that is a text is a redirect there, one that is a number a failure.
struct Registry {
    url: String,
    models: Models,
}

impl Registry {
    async fn start(models: Value) -> Self {
        let models: Models = Arc::new(Mutex::new(serde_json::from_value(models).unwrap()));
        let app = Router::new()
            .route("/api/v1/models/{name}/versions/{version}", get(show))
            .with_state(Arc::clone(&models));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, models }
    }

    fn knows(&self, model: &str, answer: Value) {
        self.models.lock().unwrap().insert(model.to_owned(), answer);
    }
}

async fn show(
    State(models): State<Models>,
    Path((name, version)): Path<(String, String)>,
) -> impl IntoResponse {
    match models.lock().unwrap().get(&format!("{name}/{version}")) {
        None => StatusCode::NOT_FOUND.into_response(),
        Some(Value::String(elsewhere)) => {
            (StatusCode::FOUND, [(header::LOCATION, elsewhere.clone())]).into_response()
        }
        Some(Value::Number(status)) => {
            StatusCode::from_u16(status.as_u64().unwrap().try_into().unwrap()).unwrap().into_response()
        }
        Some(model) => axum::Json(model.clone()).into_response(),
    }
}

fn draft(model: &str, version: &str, metadata: &Value) -> Value {
    json!({"name": "job", "model_name": model, "model_version": version, "input_data": {"a": 1}, "metadata": metadata})
}

async fn submit(scene: &Scene, replica: usize, draft: Value) -> (u16, Value) {
    scene.ask(replica, Method::POST, "/api/v1/jobs", Some(draft)).await
}

#[tokio::test]
async fn a_submission_is_checked_against_the_registry_and_takes_requirements_from_it() {
    let registry = Registry::start(json!({
        "plain/1": {},
        "large/2": {"resource_requirements": {"requires_gpu": true, "required_memory_gb": 24}},
    }))
    .await;
    let scene = Scene::with(|builder| {
        let url = format!("genome.url={:?}", registry.url);
        builder.set(url).set("genome.cache_ttl_s=0").set("genome.timeout_ms=60000")
    })
    .await;
    for replica in 0..3 {
        let (status, job) = submit(&scene, replica, draft("large", "2", &json!({"team": "a"}))).await;
        assert_eq!(status, 201, "{job}");
        assert_eq!(job["metadata"], json!({"team": "a", "requires_gpu": true, "required_memory_gb": 24}));
        let (status, job) =
            submit(&scene, replica, draft("large", "2", &json!({"required_memory_gb": 1}))).await;
        assert_eq!((status, &job["metadata"]["required_memory_gb"]), (201, &json!(1)), "{job}");
        let (status, problem) = submit(&scene, replica, draft("large", "1", &json!({}))).await;
        assert_eq!((status, &problem["errors"][0]["field"]), (422, &json!("model_name")), "{problem}");
    }
    refuses_a_batch_as_a_whole(&scene).await;
    refuses_over_grpc(&scene).await;

    scene.start_worker(&["plain", "large"], 4, Duration::ZERO);
    scene.reach("plain", "completed", 1).await;
    assert_eq!(scene.count("large", "completed").await, 0, "a worker without a GPU takes none of them");
    let id =
        scene.get(0, "/api/v1/jobs?model_name=large").await["jobs"][0]["id"].as_str().unwrap().to_owned();
    let why = scene.get(0, &format!("/api/v1/jobs/{id}/explain")).await.to_string();
    assert!(why.contains("gpu"), "{why}");
}

async fn refuses_a_batch_as_a_whole(scene: &Scene) {
    let jobs = [("plain", "1"), ("plain", "2"), ("large", "2"), ("none", "1")];
    let jobs = jobs.map(|(model, version)| draft(model, version, &json!({})));
    let body = json!({"jobs": jobs});
    let before = scene.get(1, "/api/v1/jobs/stats/summary").await["total_jobs"].clone();
    let (status, problem) = scene.ask(1, Method::POST, "/api/v1/jobs/batch", Some(body)).await;
    assert_eq!(status, 422, "{problem}");
    let fields: Vec<_> = problem["errors"].as_array().unwrap().iter().map(|error| &error["field"]).collect();
    assert_eq!(fields, ["jobs[1].model_name", "jobs[3].model_name"]);
    assert_eq!(scene.get(1, "/api/v1/jobs/stats/summary").await["total_jobs"], before);
}

async fn refuses_over_grpc(scene: &Scene) {
    let endpoint = format!("http://{}", scene.cluster.grpc(2));
    let mut client = ClientServiceClient::connect(endpoint).await.unwrap();
    let job = |model_version: &str| SubmitJobRequest {
        job: Some(JobSubmission {
            name: "job".to_owned(),
            model_name: "plain".to_owned(),
            model_version: model_version.to_owned(),
            input_data: br#"{"a": 1}"#[..].into(),
            ..JobSubmission::default()
        }),
        idempotency_key: String::new(),
    };
    let refused = client.submit_job(job("2")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    assert!(refused.message().contains("model_name"), "{refused}");
    client.submit_job(job("1")).await.unwrap();
}

#[tokio::test]
async fn a_registry_that_says_nothing_stops_submissions_only_where_that_is_asked_for() {
    let registry = Registry::start(json!({"down/1": 500, "known/1": {"requirements": {"gpu": true}}})).await;
    registry.knows("moved/1", json!(format!("{}/api/v1/models/known/versions/1", registry.url)));
    let scene = Scene::with(|builder| {
        let url = format!("genome.url={:?}", registry.url);
        let builder = builder.set(url).set("genome.cache_ttl_s=0").set("genome.timeout_ms=60000");
        builder.set("genome.on_unavailable=reject")
    })
    .await;
    for model in ["down", "moved"] {
        let (status, problem) = submit(&scene, 1, draft(model, "1", &json!({}))).await;
        assert_eq!(status, 503, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains("model registry"), "{problem}");
    }
    eventually("it is asked again", async || {
        submit(&scene, 1, draft("known", "1", &json!({}))).await.0 == 201
    })
    .await;
    registry.knows("known/1", json!(500));
    let (status, job) = submit(&scene, 1, draft("known", "1", &json!({}))).await;
    assert_eq!((status, &job["metadata"]), (201, &json!({"requires_gpu": true})), "what it said last counts");
    a_repetition_is_not_asked_about(&scene, &registry).await;
    registry.knows("down/1", json!({}));
    eventually("it is asked again", async || {
        submit(&scene, 1, draft("down", "1", &json!({}))).await.0 == 201
    })
    .await;
    let metrics = reqwest::get(format!("http://{}/metrics", scene.cluster.http(1))).await.unwrap();
    let metrics = metrics.text().await.unwrap();
    for outcome in ["known", "unavailable"] {
        let series = format!("cortex_genome_request_seconds_count{{outcome=\"{outcome}\"}}");
        assert!(metrics.contains(&series), "{series} is missing");
    }
}

/// What was stored under a key is found again, whatever has become of its model.
async fn a_repetition_is_not_asked_about(scene: &Scene, registry: &Registry) {
    registry.knows("gone/1", json!({}));
    let url = format!("http://{}/api/v1/jobs", scene.cluster.http(2));
    let send = async || {
        let request = reqwest::Client::new().post(&url).header("Idempotency-Key", "gone");
        request.json(&draft("gone", "1", &json!({}))).send().await.unwrap().status()
    };
    eventually("it is stored", async || send().await == 201).await;
    registry.models.lock().unwrap().remove("gone/1");
    assert_eq!(send().await, 200);
    assert_eq!(submit(scene, 2, draft("gone", "1", &json!({}))).await.0, 422);
}

#[tokio::test]
async fn without_a_registry_that_answers_submissions_go_on() {
    let nowhere = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let scene = Scene::with(|builder| builder.set(format!("genome.url=\"http://{nowhere}\""))).await;
    let (status, job) = submit(&scene, 2, draft("any", "1", &json!({}))).await;
    assert_eq!(status, 201, "{job}");
}
