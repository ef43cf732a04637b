//! What the group is asked to agree on while its disks may lose their power, and what of it was acknowledged.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::draw::Draw;
use crate::history::View;
use crate::votes::Led;

/// Clients that make changes.
const CLIENTS: usize = 3;
/// Models that each of them has paused at a time at the most.
const PAUSED: usize = 40;
/// Pause between two changes of the leader.
const TRANSFER_EVERY: Duration = Duration::from_millis(250);
/// Pause between two looks at a replica.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// What was acknowledged so far.
#[derive(Debug, Clone, Default)]
pub(super) struct Acknowledged {
    /// How many changes.
    pub(super) changes: u64,
    /// How many of them moved the leadership.
    pub(super) transfers: u64,
    /// Models whose pause was acknowledged, and no end of it asked for.
    paused: BTreeSet<String>,
    /// Models for which the end of the pause was acknowledged.
    resumed: BTreeSet<String>,
}

/// Clients at work.
pub(super) struct Load {
    stop: CancellationToken,
    clients: JoinSet<Acknowledged>,
    views: Vec<JoinHandle<Shown>>,
}

/// What a replica has shown of itself.
#[derive(Debug, Clone, Default)]
pub(super) struct Shown {
    /// The highest term and index.
    pub(super) highest: View,
    /// In which terms it led.
    pub(super) led: Led,
}

impl Load {
    /// Goes on from what was acknowledged before.
    pub(super) fn start(cluster: &Arc<Cluster>, seed: u64, before: Acknowledged) -> Self {
        let stop = CancellationToken::new();
        let mut clients = JoinSet::new();
        let mut parts = before.split();
        for number in 0..CLIENTS {
            let part = parts.pop().unwrap_or_default();
            let draw = Draw::new(seed, &format!("client-{number}"));
            clients.spawn(change(Arc::clone(cluster), part, format!("{seed}-{number}"), draw, stop.clone()));
        }
        let draw = Draw::new(seed, "transfers");
        clients.spawn(transfer(Arc::clone(cluster), draw, stop.clone()));
        let views =
            (0..cluster.size()).map(|index| tokio::spawn(watch(Arc::clone(cluster), index, stop.clone())));
        let views = views.collect();
        Self { stop, clients, views }
    }

    /// Ends them; answers what was acknowledged in all, and what each replica has shown.
    pub(super) async fn end(self) -> (Acknowledged, Vec<Shown>) {
        self.stop.cancel();
        let mut all = Acknowledged::default();
        for part in self.clients.join_all().await {
            all.add(part);
        }
        let mut views = Vec::new();
        for view in self.views {
            views.push(view.await.unwrap_or_default());
        }
        (all, views)
    }
}

impl Acknowledged {
    /// What a replica does not know, though it was acknowledged.
    pub(super) async fn missing(&self, cluster: &Cluster, index: usize) -> Vec<String> {
        let answer = cluster.administer(index, Method::GET, "/api/v1/queues", None).await;
        let queue = match answer {
            Ok((200, queue)) => queue,
            other => return vec![format!("replica {} does not say what is paused: {other:?}", index + 1)],
        };
        let names = queue["paused_models"].as_array().cloned().unwrap_or_default();
        let known: BTreeSet<&str> = names.iter().filter_map(Value::as_str).collect();
        let lost = self.paused.iter().filter(|model| !known.contains(model.as_str()));
        let lost = lost.map(|model| format!("replica {}: the pause of {model} is lost", index + 1));
        let back = self.resumed.iter().filter(|model| known.contains(model.as_str()));
        let back =
            back.map(|model| format!("replica {}: the end of the pause of {model} is lost", index + 1));
        lost.chain(back).collect()
    }

    /// Into parts of which each client goes on with one.
    fn split(self) -> Vec<Self> {
        let mut parts = vec![Self::default(); CLIENTS];
        for (number, model) in self.paused.into_iter().enumerate() {
            parts[number % CLIENTS].paused.insert(model);
        }
        parts[0].resumed = self.resumed;
        (parts[0].changes, parts[0].transfers) = (self.changes, self.transfers);
        parts
    }

    fn add(&mut self, part: Self) {
        self.changes += part.changes;
        self.transfers += part.transfers;
        self.paused.extend(part.paused);
        self.resumed.extend(part.resumed);
    }
}

/// Pauses one model after the other, and resumes the oldest when there are many.
async fn change(
    cluster: Arc<Cluster>,
    mut so_far: Acknowledged,
    name: String,
    mut draw: Draw,
    stop: CancellationToken,
) -> Acknowledged {
    let mut number = 0;
    while !stop.is_cancelled() {
        let resume = so_far.paused.len() >= PAUSED;
        let model = match so_far.paused.first() {
            // From now on both is allowed until the end of the pause is acknowledged.
            Some(oldest) if resume => oldest.clone(),
            _ => format!("m-{name}-{number}"),
        };
        number += 1;
        so_far.paused.remove(&model);
        let what = if resume { "resume" } else { "pause" };
        let path = format!("/api/v1/queues/{what}?model_name={model}");
        let replica = draw.index(cluster.size());
        let asked = cluster.administer(replica, Method::POST, &path, None);
        // A client that is stopped does not wait for its answer: then nothing was acknowledged.
        let Some(Ok((200, _))) = stop.run_until_cancelled(asked).await else { continue };
        so_far.changes += 1;
        let done = if resume { &mut so_far.resumed } else { &mut so_far.paused };
        done.insert(model);
    }
    so_far
}

/// Moves the leadership again and again, so that votes are written, too.
async fn transfer(cluster: Arc<Cluster>, mut draw: Draw, stop: CancellationToken) -> Acknowledged {
    let mut done = Acknowledged::default();
    while timeout(TRANSFER_EVERY, stop.cancelled()).await.is_err() {
        let (asked, to) = (draw.index(cluster.size()), draw.index(cluster.size()) + 1);
        let body = json!({"to": to});
        let asked = cluster.administer(asked, Method::POST, "/api/v1/cluster/transfer", Some(&body));
        if let Some(Ok((200, _))) = stop.run_until_cancelled(asked).await {
            done.transfers += 1;
        }
    }
    done
}

/// What a replica shows.
async fn watch(cluster: Arc<Cluster>, index: usize, stop: CancellationToken) -> Shown {
    let mut shown = Shown::default();
    while timeout(LOOK_EVERY, stop.cancelled()).await.is_err() {
        let looked = stop.run_until_cancelled(cluster.view(index)).await;
        let Some(Some(view)) = looked else { continue };
        shown.highest.term = shown.highest.term.max(view.term);
        shown.highest.applied = shown.highest.applied.max(view.applied);
        shown.led.look(&view);
    }
    shown
}
