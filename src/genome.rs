//! GENOME, the registry of models: asked whether a model exists in a version, and what it needs of a worker.
//!
//! Asked is `GET {url}/api/v1/models/{name}/versions/{version}`, by the replica at which a submission arrives. 200 says that
//! the model exists; the answer's object may have `resource_requirements` with `requires_gpu` and `required_memory_gb`. 404
//! and 410 say that it does not. Anything else says nothing, a redirect among them: it would let the registry, or
//! whoever can answer in its place, have the replica call any address.
//!
//! Answers are kept, each model is asked for by one request at a time, and a registry that does not answer is left alone
//! for [`PAUSE`]; meanwhile what it said last counts.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use moka::Expiry;
use moka::future::Cache;
use reqwest::{Client, StatusCode, Url, redirect};
use serde_json::{Map, Value};
use tokio::sync::Semaphore;

use crate::config::{self, OnUnavailable};
use crate::domain::ambient::Ambient;
use crate::domain::requirements::Requirements;
use crate::telemetry::Metrics;

/// What an answer calls the requirements; the first that is there counts.
const REQUIREMENTS: [&str; 3] = ["resource_requirements", "requirements", "resources"];
/// Most models that are kept.
const MAX_KEPT: u64 = 10_000;
/// Most requests at once.
const MAX_REQUESTS: usize = 64;
/// Most of them for one submission, so that a large batch leaves room for others.
const MAX_REQUESTS_OF_A_CALL: usize = 8;
/// Requests without any answer, in a row, after which it is left alone: one model on which it hangs says nothing of others.
const UNANSWERED: u32 = 3;
/// How many times its timeout one submission may take, however many models it names.
const CALL_TIMEOUTS: u32 = 5;
/// Largest answer in bytes.
const MAX_BODY: usize = 64 * 1024;
/// How long it counts that a model does not exist, so that a new one is found soon.
const KEEP_UNKNOWN: Duration = Duration::from_secs(5);
/// How long nothing is asked after the registry did not answer [`UNANSWERED`] times in a row, and how long a model is not
/// asked for again of which it said nothing that can be used.
const PAUSE: Duration = Duration::from_secs(1);

/// Why the registry cannot be used as configured.
#[derive(Debug, thiserror::Error)]
#[error("genome.url cannot be used: {0}")]
pub struct SetupError(String);

/// A model in a version.
pub type Model = (String, String);

/// What the registry says of a model, or what is done when it says nothing.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// It exists, or is taken to; with its requirements.
    Accepted(Arc<Requirements>),
    /// It does not exist.
    Unknown,
    /// The registry did not say, and that is not good enough.
    Unavailable,
}

/// The registry. Cheap to clone.
#[derive(Clone)]
pub struct Genome(Arc<Registry>);

struct Registry {
    base: Url,
    client: Client,
    timeout: Duration,
    on_unavailable: OnUnavailable,
    requests: Semaphore,
    /// What counts now.
    kept: Cache<Model, Kept>,
    /// Models that exist, as far as is known; for when the registry says nothing.
    last: Cache<Model, Arc<Requirements>>,
    cache_ttl: Duration,
    /// Nothing is asked before this time.
    down_until: Mutex<Option<Instant>>,
    /// Requests that were not answered since the last answer.
    unanswered: AtomicU32,
    /// Whether the last request was answered, so that an outage is logged once.
    answers: AtomicBool,
    ambient: Arc<dyn Ambient>,
    metrics: Arc<Metrics>,
}

#[derive(Clone)]
struct Kept {
    verdict: Verdict,
    ttl: Duration,
}

/// Why the registry said nothing.
#[derive(Debug, thiserror::Error)]
enum Silence {
    /// It did not answer.
    #[error("{0}")]
    Registry(String),
    /// It answered, and may have something to say of others.
    #[error("{0}")]
    Model(String),
}

struct Ttl;

impl Expiry<Model, Kept> for Ttl {
    fn expire_after_create(&self, _: &Model, kept: &Kept, _: Instant) -> Option<Duration> {
        Some(kept.ttl)
    }
}

impl Genome {
    /// Prepares to ask; nothing is asked yet.
    pub fn new(
        config: &config::Genome,
        ambient: Arc<dyn Ambient>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SetupError> {
        let base = Url::parse(config.url.expose()).map_err(|error| SetupError(error.to_string()))?;
        let client = Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("cortex/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| SetupError(error.without_url().to_string()))?;
        Ok(Self(Arc::new(Registry {
            base,
            client,
            timeout: config.timeout,
            on_unavailable: config.on_unavailable,
            requests: Semaphore::new(MAX_REQUESTS),
            kept: Cache::builder().max_capacity(MAX_KEPT).expire_after(Ttl).build(),
            last: Cache::new(MAX_KEPT),
            cache_ttl: config.cache_ttl,
            down_until: Mutex::default(),
            unanswered: AtomicU32::new(0),
            answers: AtomicBool::new(true),
            ambient,
            metrics,
        })))
    }

    /// What the registry says of each of these models. Takes a few times its timeout at the most; of models that were not
    /// answered for by then it has said nothing.
    pub async fn verdicts(&self, models: impl IntoIterator<Item = Model>) -> HashMap<Model, Verdict> {
        let mut waiting: HashSet<Model> = models.into_iter().collect();
        let ask = |model: Model| async move {
            let verdict = self.verdict(&model).await;
            (model, verdict)
        };
        let mut answers = stream::iter(waiting.clone()).map(ask).buffer_unordered(MAX_REQUESTS_OF_A_CALL);
        let mut verdicts = HashMap::with_capacity(waiting.len());
        let all = async {
            while let Some((model, verdict)) = answers.next().await {
                waiting.remove(&model);
                verdicts.insert(model, verdict);
            }
        };
        let in_time = tokio::time::timeout(self.0.timeout * CALL_TIMEOUTS, all).await.is_ok();
        drop(answers);
        if !in_time {
            for model in waiting {
                let verdict = self.0.of_silence(&model).await;
                verdicts.insert(model, verdict);
            }
        }
        verdicts
    }

    async fn verdict(&self, model: &Model) -> Verdict {
        if let Some(kept) = self.0.kept.get(model).await {
            return kept.verdict;
        }
        // Spawned, so that a caller who hangs up does not take the answer from the others who wait.
        let (registry, model) = (Arc::clone(&self.0), model.clone());
        let asked = async move { registry.kept.get_with_by_ref(&model, registry.ask(&model)).await.verdict };
        tokio::spawn(asked).await.unwrap_or(Verdict::Unavailable)
    }
}

impl Registry {
    async fn ask(&self, model: &Model) -> Kept {
        let answer = self.request(model).await;
        match answer {
            Ok(Some(requirements)) => {
                let requirements = Arc::new(requirements);
                self.last.insert(model.clone(), Arc::clone(&requirements)).await;
                Kept { verdict: Verdict::Accepted(requirements), ttl: self.cache_ttl }
            }
            Ok(None) => {
                self.last.invalidate(model).await;
                Kept { verdict: Verdict::Unknown, ttl: self.cache_ttl.min(KEEP_UNKNOWN) }
            }
            Err(_) => Kept { verdict: self.of_silence(model).await, ttl: PAUSE },
        }
    }

    /// What is done while nothing is said of a model.
    async fn of_silence(&self, model: &Model) -> Verdict {
        match (self.last.get(model).await, self.on_unavailable) {
            (Some(requirements), _) => Verdict::Accepted(requirements),
            (None, OnUnavailable::Accept) => Verdict::Accepted(Arc::default()),
            (None, OnUnavailable::Reject) => Verdict::Unavailable,
        }
    }

    /// The requirements of a model, nothing if it does not exist.
    async fn request(&self, model: &Model) -> Result<Option<Requirements>, Silence> {
        // As parts of a path these would name something else, or what is left of them would.
        let misleading = |part: &String| part == "." || part == ".." || part.contains(['\t', '\n', '\r']);
        if misleading(&model.0) || misleading(&model.1) {
            return Ok(None);
        }
        if self.down_until().is_some_and(|until| self.ambient.instant() < until) {
            return Err(Silence::Registry("it is left alone for a moment".to_owned()));
        }
        let Ok(Ok(_permit)) = tokio::time::timeout(self.timeout, self.requests.acquire()).await else {
            return Err(Silence::Model(format!("{MAX_REQUESTS} other requests are under way")));
        };
        let begun = self.ambient.instant();
        let answer = tokio::time::timeout(self.timeout, self.fetch(model)).await;
        let late = || Err(Silence::Registry(format!("no answer within {:?}", self.timeout)));
        let answer = answer.unwrap_or_else(|_| late());
        let now = self.ambient.instant();
        let outcome = match &answer {
            Ok(Some(_)) => "known",
            Ok(None) => "unknown",
            Err(_) => "unavailable",
        };
        let took = now.duration_since(begun).as_secs_f64();
        self.metrics.genome_request.with_label_values(&[outcome]).observe(took);
        self.count_silence(matches!(answer, Err(Silence::Registry(_))), now);
        self.note(answer.as_ref().err());
        answer
    }

    fn count_silence(&self, silent: bool, now: Instant) {
        if !silent {
            self.unanswered.store(0, Ordering::Relaxed);
        } else if self.unanswered.fetch_add(1, Ordering::Relaxed) + 1 >= UNANSWERED {
            *self.down_until() = Some(now + PAUSE);
        }
    }

    fn down_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.down_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says once that the registry does not answer, and once that it does again.
    fn note(&self, error: Option<&Silence>) {
        match (self.answers.swap(error.is_none(), Ordering::Relaxed), error) {
            (true, Some(error)) => {
                tracing::warn!(%error, policy = ?self.on_unavailable, "The model registry says nothing; what it said last counts.");
            }
            (false, None) => tracing::info!("The model registry answers again."),
            (true, None) | (false, Some(_)) => {}
        }
    }

    async fn fetch(&self, (name, version): &Model) -> Result<Option<Requirements>, Silence> {
        let mut url = self.base.clone();
        url.path_segments_mut()
            .map_err(|()| Silence::Registry("the URL takes no path".to_owned()))?
            .pop_if_empty()
            .extend(["api", "v1", "models", name, "versions", version]);
        // The URL may hold a password; the error's text does not need it.
        let silent = |error: reqwest::Error| Silence::Registry(error.without_url().to_string());
        let request = self.client.get(url).header(reqwest::header::ACCEPT, "application/json");
        let mut response = request.send().await.map_err(silent)?;
        match response.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
            status => return Err(Silence::Model(format!("the answer is {status}, not 200 or 404"))),
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(silent)? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(Silence::Model(format!("the answer is larger than {MAX_BODY} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        requirements(&body).map(Some).map_err(Silence::Model)
    }
}

/// What a model needs, from the registry's description of it.
fn requirements(body: &[u8]) -> Result<Requirements, String> {
    let model: Map<String, Value> =
        serde_json::from_slice(body).map_err(|error| format!("the answer is no JSON object: {error}"))?;
    match REQUIREMENTS.iter().find_map(|name| model.get(*name)) {
        None | Some(Value::Null) => Ok(Requirements::default()),
        Some(Value::Object(members)) => Requirements::read(members)
            .map_err(|errors| format!("the answer's requirements cannot be used: {errors:?}")),
        Some(_) => Err("the answer's requirements are no object".to_owned()),
    }
}

#[cfg(test)]
#[path = "genome_tests.rs"]
mod tests;
