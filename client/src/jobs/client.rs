//! [`JobsClient`] and its builder.

use std::{fmt, sync::Arc, sync::atomic::AtomicUsize, time::Duration};

use bytes::Bytes;
use rand::Rng;
use reqwest::{
    Method, StatusCode, Url,
    header::{ACCEPT, AUTHORIZATION, HeaderMap, HeaderName, HeaderValue},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::{
    error::ClientError,
    models::{
        ClusterStatus, Execution, Explanation, Health, Job, JobFilter, JobList, JobStats, JobUpdate, NewJob,
        WorkerInfo, WorkerList,
    },
    transport::{Answer, Call, Repeat, Transport},
};
use crate::endpoints::{self, InvalidEndpoint};
use crate::random;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

/// A client of the REST interface over any number of replicas. Cheap to clone;
/// clones share their connections.
///
/// A call goes to the replica that answered last. When that one cannot be
/// reached or answers 503, the call goes on to the others, again and again
/// until [`JobsClientBuilder::deadline`] has passed. A write that may have been
/// carried out is never sent twice: it ends as
/// [`ClientError::OutcomeUnknown`].
#[derive(Debug, Clone)]
pub struct JobsClient {
    transport: Arc<Transport>,
}

/// Settings of a [`JobsClient`].
#[derive(Clone)]
pub struct JobsClientBuilder {
    endpoints: String,
    token: Option<String>,
    connect_timeout: Duration,
    request_timeout: Duration,
    deadline: Duration,
}

impl JobsClient {
    /// A client with the default settings.
    ///
    /// # Errors
    /// [`ClientError::Endpoint`] if the comma-separated list holds anything but
    /// `http://host:port` addresses.
    pub fn new(endpoints: &str) -> Result<Self, ClientError> {
        Self::builder(endpoints).build()
    }

    /// Settings for a client of this comma-separated list of replicas.
    pub fn builder(endpoints: &str) -> JobsClientBuilder {
        JobsClientBuilder {
            endpoints: endpoints.to_owned(),
            token: None,
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(5),
            deadline: Duration::from_secs(5),
        }
    }

    /// A key for [`submit_with_key`](Self::submit_with_key): 128 random bits.
    pub fn new_idempotency_key() -> String {
        format!("{:032x}", random::generator().random::<u128>())
    }

    /// Submits a job.
    ///
    /// # Errors
    /// [`ClientError::OutcomeUnknown`] if the job may have been accepted.
    pub async fn submit(&self, job: &NewJob) -> Result<Job, ClientError> {
        self.json(Call::write(Method::POST, &["api", "v1", "jobs"]).with_json(job)?).await
    }

    /// Submits a job under an `Idempotency-Key`: the same key again names the
    /// same job, so after an unknown outcome the caller may repeat the call.
    ///
    /// # Errors
    /// As [`submit`](Self::submit); [`ClientError::Config`] if the key cannot be
    /// a header value.
    pub async fn submit_with_key(&self, job: &NewJob, key: &str) -> Result<Job, ClientError> {
        let mut call = Call::write(Method::POST, &["api", "v1", "jobs"]).with_json(job)?;
        let key = header_value("idempotency key", key)?;
        call.headers.insert(IDEMPOTENCY_KEY, key);
        self.json(call).await
    }

    /// Submits 1 to 1000 jobs, all or none, under an `Idempotency-Key` if one is given.
    ///
    /// # Errors
    /// As [`submit_with_key`](Self::submit_with_key).
    pub async fn submit_batch(&self, jobs: &[NewJob], key: Option<&str>) -> Result<Vec<Job>, ClientError> {
        let batch = Batch { jobs };
        let mut call = Call::write(Method::POST, &["api", "v1", "jobs", "batch"]).with_json(&batch)?;
        if let Some(key) = key {
            call.headers.insert(IDEMPOTENCY_KEY, header_value("idempotency key", key)?);
        }
        let stored: Batch<Vec<Job>> = self.json(call).await?;
        Ok(stored.jobs)
    }

    /// Why a job is where it is.
    pub async fn explain(&self, id: &str) -> Result<Explanation, ClientError> {
        self.json(Call::get(&["api", "v1", "jobs", id, "explain"])).await
    }

    /// One job.
    pub async fn get(&self, id: &str) -> Result<Job, ClientError> {
        self.json(Call::get(&["api", "v1", "jobs", id])).await
    }

    /// Changes a job.
    pub async fn update(&self, id: &str, change: &JobUpdate) -> Result<Job, ClientError> {
        self.json(Call::write(Method::PATCH, &["api", "v1", "jobs", id]).with_json(change)?).await
    }

    /// Cancels a job.
    pub async fn cancel(&self, id: &str) -> Result<(), ClientError> {
        self.nothing(Call::write(Method::DELETE, &["api", "v1", "jobs", id])).await
    }

    /// Makes a failed, timed-out or cancelled job run again.
    pub async fn retry(&self, id: &str) -> Result<Job, ClientError> {
        self.json(Call::write(Method::POST, &["api", "v1", "jobs", id, "retry"])).await
    }

    /// One page of jobs, newest first.
    pub async fn list(&self, filter: &JobFilter) -> Result<JobList, ClientError> {
        let call = Call::get(&["api", "v1", "jobs"])
            .query("status_filter", filter.status.as_deref())
            .query("priority", filter.priority)
            .query("model_name", filter.model_name.as_deref())
            .query("created_by", filter.created_by.as_deref())
            .query("page", filter.page)
            .query("page_size", filter.page_size);
        self.json(call).await
    }

    /// A job's attempts, oldest first.
    pub async fn executions(&self, id: &str) -> Result<Vec<Execution>, ClientError> {
        let attempts: Attempts = self.json(Call::get(&["api", "v1", "jobs", id, "executions"])).await?;
        Ok(match attempts {
            Attempts::Bare(list) | Attempts::Wrapped { executions: list } => list,
        })
    }

    /// How many jobs are in which state.
    pub async fn stats(&self) -> Result<JobStats, ClientError> {
        self.json(Call::get(&["api", "v1", "jobs", "stats", "summary"])).await
    }

    /// The workers, all or those of one state.
    pub async fn workers(&self, status: Option<&str>) -> Result<WorkerList, ClientError> {
        self.json(Call::get(&["api", "v1", "workers"]).query("status", status)).await
    }

    /// Gives a worker nothing new until it registers again; what it runs it
    /// keeps. May be said again.
    pub async fn drain_worker(&self, id: &str) -> Result<WorkerInfo, ClientError> {
        self.json(Call::write(Method::POST, &["api", "v1", "workers", id, "drain"])).await
    }

    /// The cluster as the replica that answers sees it.
    pub async fn cluster(&self) -> Result<ClusterStatus, ClientError> {
        self.json(Call::get(&["api", "v1", "cluster"])).await
    }

    /// The health of the first replica that answers, ready or not.
    ///
    /// # Errors
    /// As any read; a replica that is not ready is no error.
    pub async fn health(&self) -> Result<Health, ClientError> {
        let mut call = Call::get(&["health"]);
        call.repeat = Repeat::UntilAnswered;
        let answer = self.transport.send(&call).await?;
        match answer.status {
            StatusCode::OK | StatusCode::SERVICE_UNAVAILABLE => Ok(Health {
                healthy: answer.status == StatusCode::OK,
                detail: serde_json::from_slice(&answer.body).unwrap_or(Value::Null),
            }),
            _ => Err(answer.problem()),
        }
    }

    /// Sends a call whose answer says nothing but that it is done.
    pub(super) async fn nothing(&self, call: Call) -> Result<(), ClientError> {
        let answer = self.transport.send(&call).await?;
        if answer.status.is_success() { Ok(()) } else { Err(answer.problem()) }
    }

    pub(super) async fn json<T: DeserializeOwned>(&self, call: Call) -> Result<T, ClientError> {
        let answer = self.transport.send(&call).await?;
        if answer.status.is_success() { decode(&answer) } else { Err(answer.problem()) }
    }
}

impl JobsClientBuilder {
    /// The bearer token; none by default.
    pub fn token(mut self, token: Option<impl Into<String>>) -> Self {
        self.token = token.map(Into::into);
        self
    }

    /// How long to wait for a connection, by default 1 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long to wait for one replica's answer, by default 5 s.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// How long a call may take over all replicas and attempts, by default 5 s.
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Builds the client; connections are made when they are needed.
    ///
    /// # Errors
    /// [`ClientError::Endpoint`] or [`ClientError::Config`].
    pub fn build(self) -> Result<JobsClient, ClientError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some(token) = &self.token {
            let mut value = header_value("token", &format!("Bearer {token}"))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
        }
        let http = reqwest::Client::builder()
            .default_headers(headers)
            .connect_timeout(self.connect_timeout)
            .tcp_nodelay(true)
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|e| ClientError::Config { what: "HTTP client", reason: e.to_string() })?;
        let endpoints = endpoints::parse_list(&self.endpoints)?
            .iter()
            .map(|endpoint| {
                Url::parse(endpoint)
                    .map_err(|e| InvalidEndpoint { endpoint: endpoint.clone(), reason: e.to_string() })
            })
            .collect::<Result<_, _>>()?;
        Ok(JobsClient {
            transport: Arc::new(Transport {
                http,
                endpoints,
                preferred: AtomicUsize::new(0),
                request_timeout: self.request_timeout,
                deadline: self.deadline,
            }),
        })
    }
}

impl fmt::Debug for JobsClientBuilder {
    /// Without the token, which must not reach a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobsClientBuilder")
            .field("endpoints", &self.endpoints)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .finish_non_exhaustive()
    }
}

/// Several jobs.
#[derive(Serialize, Deserialize)]
struct Batch<T> {
    jobs: T,
}

/// The list of attempts, with or without an object around it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Attempts {
    Bare(Vec<Execution>),
    Wrapped { executions: Vec<Execution> },
}

impl Call {
    pub(super) fn with_json(mut self, body: &impl Serialize) -> Result<Self, ClientError> {
        let body = serde_json::to_vec(body)
            .map_err(|e| ClientError::Config { what: "request body", reason: e.to_string() })?;
        self.body = Some(Bytes::from(body));
        Ok(self)
    }
}

fn decode<T: DeserializeOwned>(answer: &Answer) -> Result<T, ClientError> {
    serde_json::from_slice(&answer.body).map_err(|e| ClientError::Decode {
        endpoint: answer.endpoint.clone(),
        status: answer.status.as_u16(),
        cause: e.to_string(),
    })
}

fn header_value(what: &'static str, text: &str) -> Result<HeaderValue, ClientError> {
    HeaderValue::from_str(text).map_err(|e| ClientError::Config { what, reason: e.to_string() })
}
