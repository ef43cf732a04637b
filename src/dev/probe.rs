//! Asks replicas over HTTP how they are.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::DevError;

/// Longest wait for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A small HTTP client.
#[derive(Debug, Clone)]
pub(super) struct Probe {
    client: reqwest::Client,
    token: Option<String>,
}

/// A worker as `GET /api/v1/workers` shows it.
#[derive(Debug, Deserialize)]
pub(super) struct SeenWorker {
    pub(super) name: String,
    pub(super) status: String,
    pub(super) last_heartbeat: chrono::DateTime<chrono::Utc>,
}

#[derive(Deserialize)]
struct SeenWorkers {
    workers: Vec<SeenWorker>,
}

#[derive(Deserialize)]
struct SeenCluster {
    leader: Option<u64>,
}

impl Probe {
    pub(super) fn new(token: Option<String>) -> Result<Self, DevError> {
        let client = reqwest::Client::builder()
            .timeout(ANSWER_WITHIN)
            .no_proxy()
            .build()
            .map_err(|error| DevError::Failed(format!("cannot make an HTTP client: {error}")))?;
        Ok(Self { client, token })
    }

    /// Whether the replica says that it is ready.
    pub(super) async fn is_ready(&self, replica: SocketAddr) -> bool {
        let answer = self.client.get(format!("http://{replica}/health/ready")).send().await;
        answer.is_ok_and(|answer| answer.status() == reqwest::StatusCode::OK)
    }

    /// The workers that the replica knows; `None` when it cannot say.
    pub(super) async fn workers(&self, replica: SocketAddr) -> Option<Vec<SeenWorker>> {
        self.get::<SeenWorkers>(replica, "/api/v1/workers").await.map(|seen| seen.workers)
    }

    /// The id of the leader, as this replica sees it.
    pub(super) async fn leader(&self, replica: SocketAddr) -> Option<u64> {
        self.get::<SeenCluster>(replica, "/api/v1/cluster").await?.leader
    }

    async fn get<T: DeserializeOwned>(&self, replica: SocketAddr, path: &str) -> Option<T> {
        let mut request = self.client.get(format!("http://{replica}{path}"));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let answer = request.send().await.ok()?.error_for_status().ok()?;
        answer.json().await.ok()
    }
}
