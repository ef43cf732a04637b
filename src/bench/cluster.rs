//! What a run asks the replicas.

use std::time::Duration;

use cortex_client::{JobFilter, JobsClient};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::load::Target;
use super::{BenchError, Options};

/// The last page that can be asked for.
const LAST_PAGE: u32 = 100_000;
/// The largest.
const PAGE_SIZE: u32 = 100;
/// How long the cluster may take for what it must do.
const PATIENCE: Duration = Duration::from_secs(600);
/// Pause between two questions.
const PAUSE: Duration = Duration::from_millis(10);

/// The cluster that is measured.
pub(super) struct Cluster {
    client: JobsClient,
    endpoints: Vec<String>,
    token: Option<String>,
}

impl Cluster {
    pub(super) fn new(options: &Options) -> Result<Self, BenchError> {
        let failed = |error: cortex_client::ClientError| BenchError::Usage(error.to_string());
        let client = JobsClient::builder(&options.endpoints.join(","))
            .token(options.token.clone())
            .build()
            .map_err(failed)?;
        Ok(Self { client, endpoints: options.endpoints.clone(), token: options.token.clone() })
    }

    /// Where submissions go: the first endpoint.
    pub(super) fn target(&self) -> Result<Target, BenchError> {
        let first = self.endpoints.first().map_or("", String::as_str);
        let authority = first.strip_prefix("http://").unwrap_or(first).trim_end_matches('/');
        if authority.is_empty() || authority.contains('/') {
            return Err(BenchError::Usage(format!("--endpoint must be http://HOST:PORT, is {first:?}")));
        }
        Ok(Target { authority: authority.to_owned(), token: self.token.clone() })
    }

    /// The gRPC addresses of all members.
    pub(super) async fn worker_endpoints(&self) -> Result<Vec<String>, BenchError> {
        let status =
            self.client.cluster().await.map_err(|error| BenchError::call("asking for members")(&error))?;
        Ok(status
            .members
            .into_iter()
            .filter_map(|member| member.grpc.map(|grpc| format!("http://{grpc}")))
            .collect())
    }

    /// Whether there are workers that name no models, and so would take the run's jobs.
    pub(super) async fn has_takers(&self) -> Result<bool, BenchError> {
        let workers = self.client.workers(None).await;
        let workers = workers.map_err(|error| BenchError::call("asking for workers")(&error))?.workers;
        let takes_any = |models: Option<&Value>| models.is_none_or(Value::is_null);
        Ok(workers.iter().any(|worker| takes_any(worker.capabilities.get("models"))))
    }

    /// How many jobs of the model there are in PostgreSQL, in one state or in all.
    pub(super) async fn count(&self, model: &str, status: Option<&str>) -> Result<u64, BenchError> {
        let filter = JobFilter {
            model_name: Some(model.to_owned()),
            status: status.map(str::to_owned),
            // Behind the last job of a run: there the total is exact.
            page: Some(LAST_PAGE),
            page_size: Some(PAGE_SIZE),
            ..JobFilter::default()
        };
        let list =
            self.client.list(&filter).await.map_err(|error| BenchError::call("counting jobs")(&error))?;
        Ok(u64::try_from(list.total).unwrap_or(0))
    }

    /// Waits until PostgreSQL holds so many completed jobs of the model.
    pub(super) async fn completed(&self, model: &str, jobs: u64) -> Result<u64, BenchError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let completed = self.count(model, Some("completed")).await?;
            if completed >= jobs {
                return Ok(completed);
            }
            if Instant::now() > deadline {
                return Err(BenchError::Mismatch { counted: jobs, stored: completed });
            }
            sleep(PAUSE).await;
        }
    }
}
