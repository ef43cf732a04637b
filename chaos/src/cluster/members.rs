//! Who belongs to the group, who leads it, and how replicas are set up.

use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::PoisonError;
use std::time::Duration;

use cortex::dev::ReplicaOptions;
use reqwest::Method;
use serde_json::{Value, json};

use super::Cluster;

/// The Raft log of the replica whose folder this is.
pub(crate) fn log_in(folder: &Path) -> PathBuf {
    folder.join("raft.redb")
}

/// Members of the group.
pub const MEMBERS: &str = "/api/v1/cluster/members";
/// Longest wait for the answer of a change: adding waits until the new replica has caught up.
const ANSWER_WITHIN: Duration = Duration::from_secs(12);

impl Cluster {
    /// Id of a replica in the group.
    pub async fn id(&self, index: usize) -> u64 {
        self.replicas.read().await.id(index)
    }

    /// The folder of a replica's Raft log.
    pub async fn raft_dir(&self, index: usize) -> PathBuf {
        self.replicas.read().await.raft_dir(index)
    }

    /// What a replica has written to its log so far.
    pub async fn log(&self, index: usize) -> String {
        let path = self.replicas.read().await.log(index).to_owned();
        let bytes = tokio::fs::read(path).await.unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A request of an administrator: its status and body.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn administer(
        &self,
        index: usize,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), String> {
        let url = format!("http://{}{path}", self.rest(index));
        let mut request =
            self.http.request(method, url).bearer_auth(&self.tokens.admin).timeout(ANSWER_WITHIN);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|error| error.to_string())?;
        let status = answer.status().as_u16();
        Ok((status, answer.json().await.unwrap_or_default()))
    }

    /// Starts one more replica, empty, and answers its index. It is no member yet.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn start_another(&self) -> Result<usize, String> {
        let mut replicas = self.replicas.write().await;
        let added = replicas.add_replica(ReplicaOptions::default()).await;
        let index = added.map_err(|error| error.to_string())?;
        let addresses = (replicas.http(index), replicas.grpc(index));
        self.addresses.write().unwrap_or_else(PoisonError::into_inner).push(addresses);
        Ok(index)
    }

    /// Makes a replica that runs a member, and waits until it serves.
    ///
    /// # Errors
    /// When it is refused, or does not come about.
    pub async fn join(&self, index: usize) -> Result<(), String> {
        let (id, peer) = {
            let replicas = self.replicas.read().await;
            (replicas.id(index), replicas.advertised_peer(index))
        };
        let body = json!({"id": id, "peer": peer.to_string()});
        self.change(index, Method::POST, MEMBERS, Some(&body), &[200, 201]).await?;
        let ready = || async move { self.replicas.read().await.is_ready(index).await };
        self.until("the new member is ready", ready).await
    }

    /// Removes the member with this id for good. It must not be asked itself. One that is unknown has been removed by an
    /// attempt whose answer was lost.
    ///
    /// # Errors
    /// When it does not come about.
    pub async fn remove(&self, index: usize) -> Result<(), String> {
        let path = format!("{MEMBERS}/{}", self.id(index).await);
        self.change(index, Method::DELETE, &path, None, &[204, 404]).await
    }

    /// Ends a replica that is no member any more.
    pub async fn retire(&self, index: usize) {
        self.replicas.write().await.retire_replica(index).await;
    }

    /// Lets this replica lead, if it does not already.
    ///
    /// # Errors
    /// When it does not come about.
    pub async fn make_leader(&self, index: usize) -> Result<(), String> {
        let body = json!({"to": self.id(index).await});
        let leads = || async {
            if self.leader().await == Some(index) {
                return true;
            }
            let _ = self.administer(index, Method::POST, "/api/v1/cluster/transfer", Some(&body)).await;
            false
        };
        self.until("the replica leads", leads).await
    }

    /// Ends a replica in order and answers how it ended; `None` if it was gone already.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn end(&self, index: usize) -> Result<Option<ExitStatus>, String> {
        let replicas = self.replicas.read().await;
        if !replicas.kill(index, cortex::dev::Signal::SIGTERM) {
            return Ok(None);
        }
        let ended = tokio::time::timeout(super::PATIENCE, replicas.wait_for_exit(index)).await;
        ended.map_err(|_| format!("it has not ended {} s after SIGTERM", super::PATIENCE.as_secs()))
    }

    /// Adds to the environment of a replica, or takes away what was added, from its next start on.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub async fn set_environment(&self, index: usize, environment: &[(&str, String)]) -> Result<(), String> {
        let mut replicas = self.replicas.write().await;
        let mut options = replicas.options(index).clone();
        options.environment =
            environment.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        replicas.set_options(index, options).map_err(|error| error.to_string())
    }

    /// Gives a replica that does not run a new id and an empty folder.
    ///
    /// # Errors
    /// When its folder cannot be emptied.
    pub async fn renew(&self, index: usize) -> Result<u64, String> {
        self.replicas.write().await.renew_replica(index).map_err(|error| error.to_string())
    }

    /// Asks one member after the other, but not the one that it is about, until the change is made.
    async fn change(
        &self,
        about: usize,
        method: Method,
        path: &str,
        body: Option<&Value>,
        done: &[u16],
    ) -> Result<(), String> {
        let mut said = String::new();
        let deadline = tokio::time::Instant::now() + super::PATIENCE;
        while tokio::time::Instant::now() < deadline {
            for index in (0..self.size()).filter(|index| *index != about) {
                match self.administer(index, method.clone(), path, body).await {
                    Ok((status, _)) if done.contains(&status) => return Ok(()),
                    Ok((status, answer)) => said = format!("{status} {answer}"),
                    Err(error) => said = error,
                }
            }
            tokio::time::sleep(super::LOOK_EVERY).await;
        }
        Err(format!("{method} {path} was not done: {said}"))
    }
}
