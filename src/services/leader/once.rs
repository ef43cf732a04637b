//! Submissions under an idempotency key.
//!
//! First there must be room for the jobs, then the key is made to stand for their ids, then they are stored as any
//! others. Whoever comes again with the key is told those ids, and stores the jobs if the first request got no further
//! than its key. So nobody stores a second set, whatever broke in between and whoever leads; and who sends no key pays
//! nothing.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Histogram;
use tokio::sync::oneshot;

use super::upkeep::UpkeepError;
use super::{Core, Leader};
use crate::domain::idempotency::IdempotencyKey;
use crate::domain::ids::JobId;
use crate::domain::job::NewJob;
use crate::services::batcher::{Batcher, Limits, Stage};
use crate::services::command::{SubmitOnce, Submitted};
use crate::services::crash;
use crate::services::error::{Conflict, ServiceError};
use crate::storage::{HeldKey, KeyClaim};

/// Keys that one transaction forgets.
const FORGET: i64 = 1_000;

/// One caller's key.
pub(super) struct Keyed {
    key: IdempotencyKey,
    fingerprint: Vec<u8>,
    jobs: Vec<JobId>,
    reply: oneshot::Sender<Result<Option<HeldKey>, ServiceError>>,
}

/// One committer: of two submissions with the same key the second has to see the first.
pub(super) fn start(core: &Arc<Core>, stage: &Stage, sizes: &Histogram) -> Batcher<Keyed> {
    let core = Arc::clone(core);
    Batcher::start(stage, Limits::default(), &[0], sizes, move |_, batch| {
        let core = Arc::clone(&core);
        async move { core.claim_keys(batch).await }
    })
}

impl Leader {
    /// Stores jobs, all or none, unless the key stands for a submission already: then that one is made sure of.
    pub(super) async fn submit_once(&self, submission: SubmitOnce) -> Result<Submitted, ServiceError> {
        let SubmitOnce { key, fingerprint, mut jobs } = submission;
        let own: Vec<JobId> = jobs.iter().map(|job| job.id).collect();
        let room = match self.core.take_room(jobs.len()) {
            Ok(room) => room,
            Err(full) => return self.answer_without_room(&key, &fingerprint, jobs, full).await,
        };
        let held = self.claim_key(key, fingerprint, own.clone()).await?;
        crash::point("key_claimed");
        let Some(held) = held else { return self.submit_into(room, jobs).await.map(Submitted::Now) };
        if !held.stands_for(own.len()) {
            return Err(ServiceError::Conflict(Conflict::KeyInUse));
        }
        // A copy of the very command, which asks for what the first one was answered.
        if held.jobs == own {
            return self.submit_into(room, jobs).await.map(Submitted::Now);
        }
        if !held.stored {
            for (job, id) in jobs.iter_mut().zip(&held.jobs) {
                job.id = *id;
            }
            self.submit_into(room, jobs).await?;
        }
        Ok(Submitted::Before(held.jobs))
    }

    /// What was stored before needs no room, and is answered as it would be with room. Where there is none, no key is left
    /// behind.
    async fn answer_without_room(
        &self,
        key: &IdempotencyKey,
        fingerprint: &[u8],
        jobs: Vec<NewJob>,
        full: ServiceError,
    ) -> Result<Submitted, ServiceError> {
        match self.core.parts.database.held_key(key, fingerprint).await? {
            Some(held) if !held.stands_for(jobs.len()) => Err(ServiceError::Conflict(Conflict::KeyInUse)),
            Some(held) if held.stored && jobs.iter().map(|job| &job.id).eq(&held.jobs) => {
                self.submit_into(self.core.no_room(), jobs).await.map(Submitted::Now)
            }
            Some(held) if held.stored => Ok(Submitted::Before(held.jobs)),
            _ => Err(full),
        }
    }

    async fn claim_key(
        &self,
        key: IdempotencyKey,
        fingerprint: Vec<u8>,
        jobs: Vec<JobId>,
    ) -> Result<Option<HeldKey>, ServiceError> {
        let bytes = key.scope.len() + key.key.len() + jobs.len() * size_of::<JobId>();
        let (reply, answer) = oneshot::channel();
        self.keys.push(Keyed { key, fingerprint, jobs, reply }, bytes)?;
        answer.await.unwrap_or(Err(ServiceError::OutcomeUnknown))
    }

    /// Forgets a page of the idempotency keys that count no more. Answers when to go on, or `None` if none is left.
    pub async fn forget_keys(&self) -> Result<Option<Duration>, UpkeepError> {
        let core = &self.core;
        let began = core.now();
        let gone = core
            .transaction("forget_keys", || async {
                let mut transaction = core.begin().await?;
                let gone = transaction.forget_keys(FORGET).await?;
                transaction.commit().await.map(|()| gone)
            })
            .await?;
        // As long a pause as the work took: others have something to do, too.
        let more = gone >= FORGET.unsigned_abs();
        Ok(more.then(|| core.now().saturating_duration_since(began)))
    }
}

impl Core {
    async fn claim_keys(&self, mut batch: Vec<Keyed>) {
        while !batch.is_empty() {
            // A key that comes twice: the second one meets the first in the next statement.
            let mut seen = HashSet::with_capacity(batch.len());
            let (now, later): (Vec<Keyed>, Vec<Keyed>) =
                batch.into_iter().partition(|item| seen.insert(item.key.clone()));
            self.claim_different_keys(now).await;
            batch = later;
        }
    }

    async fn claim_different_keys(&self, batch: Vec<Keyed>) {
        let claims: Vec<KeyClaim<'_>> = batch
            .iter()
            .map(|item| KeyClaim { key: &item.key, fingerprint: &item.fingerprint, jobs: &item.jobs })
            .collect();
        let held = self
            .transaction("claim_keys", || self.parts.database.claim_keys(self.parts.fence, &claims))
            .await;
        match held {
            Ok(held) => {
                for (item, held) in batch.into_iter().zip(held) {
                    drop(item.reply.send(Ok(held)));
                }
            }
            Err(error) => {
                let error = ServiceError::from(error);
                for item in batch {
                    drop(item.reply.send(Err(error.clone())));
                }
            }
        }
    }
}
