//! Telling the ready queue what PostgreSQL has committed.
//!
//! Strictly after the commit, in its order, and never in the way of an answer. What cannot be told is
//! noted, and `reconcile_queue` makes up for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prometheus::Histogram;

use super::Core;
use crate::domain::ids::JobId;
use crate::domain::matching::Shape;
use crate::ready_queue::{Entry, QueueError};
use crate::services::batcher::{Batcher, Limits, Stage};
use crate::services::crash;

/// Bounds: large, because an item is small and a refused one means work for `reconcile_queue`.
const LIMITS: Limits = Limits {
    queued: 200_000,
    queued_bytes: 256 << 20,
    batch: 2_000,
    batch_bytes: 4 << 20,
    beside: 1,
    linger: Duration::ZERO,
};

/// A committed fact.
pub(super) enum FeedItem {
    /// The job is queued.
    Add(Entry),
    /// The job is no longer queued.
    Remove(JobId, Shape),
    /// The claim on the job is settled.
    Settle(JobId),
}

impl FeedItem {
    fn settled(&self) -> Option<JobId> {
        match self {
            Self::Settle(job) => Some(*job),
            Self::Add(_) | Self::Remove(..) => None,
        }
    }
}

/// The entrance; closed until the leader starts.
pub(super) struct Feed(std::sync::OnceLock<Batcher<FeedItem>>);

/// Starts the feed once there is a core to feed from.
pub(super) struct Tail(());

/// A feed that is not started yet.
pub(super) fn prepare() -> (Feed, Tail) {
    (Feed(std::sync::OnceLock::new()), Tail(()))
}

impl Tail {
    /// The feed ends after those who feed it, or what they commit last would not be told.
    pub(super) fn start(self, core: &Arc<Core>, stage: &Stage, sizes: &Histogram) {
        let feeder = Arc::clone(core);
        let batcher = Batcher::start(&stage.tail(), LIMITS, &[0], sizes, move |_, batch| {
            let core = Arc::clone(&feeder);
            async move { core.tell_queue(batch).await }
        });
        drop(core.feed.0.set(batcher));
    }
}

impl Core {
    /// Queues a committed fact for the ready queue.
    pub(super) fn feed(&self, item: FeedItem) {
        // Before it is told: from its commit on the job waits, or does not any more.
        let added = match &item {
            FeedItem::Add(entry) => {
                self.backlog().expect(&entry.shape, entry.priority);
                Some(entry.shape.clone())
            }
            FeedItem::Remove(_, shape) => {
                self.backlog().call_off(shape);
                None
            }
            FeedItem::Settle(_) => None,
        };
        let told = self.feed.0.get().is_some_and(|feed| feed.push(item, 0).is_ok());
        if !told {
            if let Some(shape) = &added {
                self.backlog().arrive(shape, 1);
            }
            self.queue_lacks.store(true, Ordering::Release);
        }
    }

    async fn tell_queue(&self, batch: Vec<FeedItem>) {
        crash::point("before_queue");
        let mut adds = Vec::new();
        let mut removes = Vec::new();
        // Claims first: a job that comes back may be claimed anew as soon as it is there.
        let settled: Vec<JobId> = batch.iter().filter_map(FeedItem::settled).collect();
        if !settled.is_empty() {
            let told = self.parts.queue.confirm(self.parts.fence.epoch, &settled).await;
            self.note_told(told.map(drop));
        }
        for item in batch {
            // A job may come and go within a batch: what came before is told first.
            match item {
                FeedItem::Add(entry) => {
                    self.tell_removes(&mut removes).await;
                    adds.push(entry);
                }
                FeedItem::Remove(job, shape) => {
                    self.tell_adds(&mut adds).await;
                    removes.push((job, shape));
                }
                FeedItem::Settle(_) => {}
            }
        }
        self.tell_adds(&mut adds).await;
        self.tell_removes(&mut removes).await;
    }

    async fn tell_adds(&self, adds: &mut Vec<Entry>) {
        if adds.is_empty() {
            return;
        }
        let entries = std::mem::take(adds);
        let told = self.parts.queue.enqueue(self.parts.fence.epoch, &entries).await;
        let mut arrived: HashMap<&Shape, u64> = HashMap::new();
        for entry in &entries {
            *arrived.entry(&entry.shape).or_default() += 1;
            if told.is_ok() {
                let priority = entry.priority.to_string();
                self.parts.metrics.jobs_enqueued.with_label_values(&[&priority]).inc();
            }
        }
        {
            let mut backlog = self.backlog();
            for (shape, jobs) in arrived {
                backlog.arrive(shape, jobs);
            }
        }
        self.nudges.schedule.notify_one();
        self.note_told(told.map(drop));
    }

    async fn tell_removes(&self, removes: &mut Vec<(JobId, Shape)>) {
        if removes.is_empty() {
            return;
        }
        let jobs = std::mem::take(removes);
        let told = self.parts.queue.remove(self.parts.fence.epoch, &jobs).await;
        self.note_told(told.map(drop));
    }

    fn note_told(&self, told: Result<(), QueueError>) {
        if let Err(error) = told {
            tracing::warn!(%error, "The ready queue could not be told of a change; it will be reconciled.");
            self.note_queue_failure(&error);
        }
    }
}
