//! The office of a real leader: what is in PostgreSQL and Redis, and the loops.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Office;
use crate::loops::{self, Surroundings};
use crate::services::batcher::Stage;
use crate::services::leader::{End, Leader, LeaderParts};
use crate::storage::{Fence, StorageError};

/// What a leader is given, for each leadership anew.
pub struct Stores {
    /// For the leader itself; the fence is filled in per leadership.
    pub leader: LeaderParts,
    /// `scheduler.poll_interval`.
    pub poll_interval: Duration,
    /// `retention.finished_jobs`: how long finished jobs are kept, if not for ever.
    pub retention: Option<Duration>,
    /// `queue.metrics_interval`: how often the queue's metrics are recorded, if at all.
    pub metrics_interval: Option<Duration>,
    /// `retention.queue_metrics`: how long they are kept, if not for ever.
    pub metrics_retention: Option<Duration>,
}

impl Office for Stores {
    type Leader = Leader;

    fn prepare(&self) {
        let database = self.leader.database.clone();
        drop(tokio::spawn(async move { database.warm_up().await }));
    }

    fn stand_by(&self) {
        let database = self.leader.database.clone();
        drop(tokio::spawn(async move { database.rehearse().await }));
    }

    async fn take_over(
        &self,
        fence: Fence,
        term: i64,
        leader_id: i64,
        stage: &Stage,
    ) -> Result<Arc<Leader>, StorageError> {
        let parts = LeaderParts { fence, ..self.leader.clone() };
        Leader::take_over(parts, term, leader_id, stage).await
    }

    fn start_loops(
        &self,
        leader: Arc<Leader>,
        acting: watch::Receiver<bool>,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> impl Future<Output = ()> + Send + 'static {
        let surroundings = Surroundings {
            leader,
            acting,
            stop,
            metrics: Arc::clone(&self.leader.metrics),
            poll_interval: self.poll_interval,
            scheduling: self.leader.scheduling,
            retention: self.retention,
            metrics_interval: self.metrics_interval,
            metrics_retention: self.metrics_retention,
        };
        async move {
            surroundings.leader.take_over_queue().await;
            loops::start(&surroundings, &tasks);
        }
    }

    fn ended(leader: &Leader) -> watch::Receiver<Option<End>> {
        leader.ended()
    }

    fn dismiss(leader: &Leader) {
        leader.dismiss();
    }

    async fn falls_silent(&self, patience: Duration) {
        self.leader.database.falls_silent(patience).await;
    }
}
