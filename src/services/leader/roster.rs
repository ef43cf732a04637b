//! Who is a worker: taken in, taken in again, drained, removed.

use super::Leader;
use crate::domain::ids::WorkerId;
use crate::domain::transition::JobEvent;
use crate::domain::worker::{NewWorker, Worker};
use crate::security::Caller;
use crate::services::crash;
use crate::services::error::{Conflict, ServiceError};

impl Leader {
    /// Registers a worker, which is the caller's from then on. What it ran before under the same hostname and
    /// port is lost.
    pub(super) async fn register(&self, by: &Caller, new: NewWorker) -> Result<(Worker, bool), ServiceError> {
        let core = &self.core;
        let together = core.roster.read().await;
        let (worker, created) = core
            .transaction("register_worker", || async {
                let mut transaction = core.begin().await?;
                let (mut worker, created) = transaction.register_worker(&new).await?;
                worker.owner = transaction.own_worker(worker.id, by.subject()).await?;
                if by.owns(worker.owner.as_deref()) {
                    transaction.commit().await?;
                }
                Ok((worker, created))
            })
            .await?;
        if !by.owns(worker.owner.as_deref()) {
            tracing::warn!(%by, worker_id = %worker.id, "A worker that is somebody else's was to be registered.");
            return Err(ServiceError::not_owner(worker.id));
        }
        let now = core.now();
        let lost = {
            let mut fleet = core.fleet();
            let lost = fleet.leases_of(worker.id);
            // Before the leases end: their jobs may come back at once, and only to what the worker is now.
            fleet.admit(&worker, core.parts.worker_timeout, now, now);
            lost
        };
        drop(together);
        let lost = lost.into_iter().map(|(job, lease)| (job, JobEvent::WorkerLost { lease }));
        self.apply_all(lost).await?;
        self.core.nudges.schedule.notify_one();
        tracing::info!(worker_id = %worker.id, name = worker.name, created, "A worker registered.");
        Ok((worker, created))
    }

    /// Sees that the worker is the caller's, and takes it in if it is registered but was counted as lost.
    pub(super) async fn admit_known(&self, by: &Caller, id: WorkerId) -> Result<(), ServiceError> {
        let core = &self.core;
        let owned = core.fleet().owned(id, by);
        match owned {
            Some(true) => return Ok(()),
            Some(false) => return Err(ServiceError::not_owner(id)),
            None => {}
        }
        let _together = core.roster.read().await;
        let worker = core.parts.database.worker(id).await?;
        let worker = worker.ok_or_else(|| ServiceError::no_worker(id))?;
        if !by.owns(worker.owner.as_deref()) {
            return Err(ServiceError::not_owner(id));
        }
        if worker.removed_at.is_some() {
            return Err(ServiceError::Conflict(Conflict::Removed(id.to_string())));
        }
        let now = core.now();
        let mut fleet = core.fleet();
        // Another call of its may have been faster, and have attached its session.
        if !fleet.knows(id) {
            fleet.recall(&worker, core.parts.worker_timeout, now, now);
            tracing::info!(worker_id = %id, "A worker that had gone silent is back.");
        }
        Ok(())
    }

    /// Gives a worker nothing new until it registers again. What it runs it keeps; what has not reached it goes back.
    pub(super) async fn drain(&self, id: WorkerId) -> Result<Worker, ServiceError> {
        let core = &self.core;
        let alone = core.roster.write().await;
        let drained = core
            .transaction("drain_worker", || async {
                let mut transaction = core.begin().await?;
                let worker = transaction.drain_worker(id).await?;
                transaction.commit().await.map(|()| worker)
            })
            .await?;
        let worker = drained.ok_or_else(|| ServiceError::no_worker(id))?;
        if worker.removed_at.is_some() {
            return Err(ServiceError::Conflict(Conflict::Removed(id.to_string())));
        }
        let unreached = core.fleet().drain(id);
        drop(alone);
        self.apply_all(unreached.into_iter().map(|(job, lease)| (job, JobEvent::NotFetched { lease })))
            .await?;
        tracing::info!(worker_id = %id, name = worker.name, "A worker is drained.");
        Ok(worker)
    }

    /// Takes a worker out of service: what it runs is lost, and nothing that it says counts until it registers again.
    pub(super) async fn remove(&self, id: WorkerId) -> Result<(), ServiceError> {
        let core = &self.core;
        let alone = core.roster.write().await;
        let found = core
            .transaction("remove_worker", || async {
                let mut transaction = core.begin().await?;
                let found = transaction.remove_worker(id).await?;
                transaction.commit().await.map(|()| found)
            })
            .await?;
        if !found {
            return Err(ServiceError::no_worker(id));
        }
        crash::point("removed");
        let lost = core.fleet().dismiss(id);
        drop(alone);
        // `reap_leases` ends what cannot be ended now, and so does the next leader: nobody holds them any more. It
        // does not know why, and counts them as lost.
        self.apply_all(lost.into_iter().map(|(job, lease)| (job, JobEvent::WorkerRemoved { lease }))).await?;
        tracing::info!(worker_id = %id, "A worker was removed.");
        Ok(())
    }
}
