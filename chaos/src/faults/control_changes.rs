//! Changes that the whole group agrees on: pauses of models that no job has, and their ends.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::Method;
use serde_json::Value;
use tokio::time::{Instant, sleep};

use super::edges::others;
use crate::cluster::Cluster;

/// As many models as are paused at a time at the most.
const PAUSED: usize = 200;
/// How long the others may take to go on without a replica: long enough for a strike at the network to be over.
const WITHOUT_IT_WITHIN: Duration = Duration::from_secs(60);
/// Time between two attempts.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Those that were made.
pub(super) struct Changes {
    run: u64,
    next: u64,
    /// Numbers of the models of whom it was acknowledged that they are paused.
    paused: BTreeSet<u64>,
}

impl Changes {
    /// None yet; those of different runs concern different models.
    pub(super) fn new(run: u64) -> Self {
        Self { run, next: 0, paused: BTreeSet::new() }
    }

    /// How many were acknowledged.
    pub(super) fn made(&self) -> u64 {
        self.next
    }

    /// How many models are paused because of them.
    pub(super) fn paused(&self) -> usize {
        self.paused.len()
    }

    /// Makes one at this replica; answers whether it was acknowledged.
    pub(super) async fn make(&mut self, cluster: &Cluster, replica: usize) -> bool {
        if self.paused.len() == PAUSED
            && let Some(oldest) = self.paused.pop_first()
        {
            return self.change(cluster, replica, "resume", oldest).await;
        }
        let number = self.next;
        let made = self.change(cluster, replica, "pause", number).await;
        if made {
            self.next += 1;
            self.paused.insert(number);
        }
        made
    }

    /// Makes one at those that a replica has left alone; answers whether they have come to acknowledge one.
    pub(super) async fn make_without(&mut self, cluster: &Cluster, replica: usize) -> bool {
        let deadline = Instant::now() + WITHOUT_IT_WITHIN;
        loop {
            for other in others(cluster, replica) {
                if self.make(cluster, other).await {
                    return true;
                }
            }
            if Instant::now() > deadline {
                return false;
            }
            sleep(AGAIN_AFTER).await;
        }
    }

    /// Ends all pauses, as far as the replicas answer.
    pub(super) async fn undo(&mut self, cluster: &Cluster) {
        // The one after the last may have been made without an answer.
        self.paused.insert(self.next);
        for number in std::mem::take(&mut self.paused) {
            let mut undone = false;
            for replica in 0..cluster.size() {
                undone = undone || self.change(cluster, replica, "resume", number).await;
            }
            if !undone {
                // None of them takes changes; the others would only wait for that again.
                return;
            }
        }
    }

    /// Waits until a replica knows all pauses that were acknowledged.
    ///
    /// # Errors
    /// When it does not come to.
    pub(super) async fn are_known(&self, cluster: &Cluster, replica: usize) -> Result<(), String> {
        let missing = || async {
            let answer = cluster.administer(replica, Method::GET, "/api/v1/queues", None).await;
            let Ok((200, queues)) = answer else { return None };
            let names = queues["paused_models"].as_array().cloned().unwrap_or_default();
            let known: BTreeSet<&str> = names.iter().filter_map(Value::as_str).collect();
            let unknown = |number: &&u64| !known.contains(self.model(**number).as_str());
            Some(self.paused.iter().filter(unknown).count())
        };
        let what = "all acknowledged changes are known";
        let Err(error) = cluster.until(what, || async { missing().await == Some(0) }).await else {
            return Ok(());
        };
        let (name, all) = (replica + 1, self.paused.len());
        Err(match missing().await {
            Some(missing) => format!("replica {name} lacks {missing} of {all} acknowledged changes"),
            None => format!("replica {name} does not say what it knows: {error}"),
        })
    }

    /// Long names fill the log sooner.
    fn model(&self, number: u64) -> String {
        format!("nobody-{}-{number}-{}", self.run, "x".repeat(150))
    }

    async fn change(&self, cluster: &Cluster, replica: usize, what: &str, number: u64) -> bool {
        let model = self.model(number);
        let path = format!("/api/v1/queues/{what}?model_name={model}");
        let answer = cluster.administer(replica, Method::POST, &path, None).await;
        answer.is_ok_and(|(status, _)| status == 200)
    }
}
