//! What workers ask of the leader: signs of life, jobs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use prometheus::Histogram;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::apply::reporter;
use super::dispatch::assignment;
use super::{Core, Leader};
use crate::domain::ids::{DeliveryId, LeaseId};
use crate::domain::transition::JobEvent;
use crate::security::Caller;
use crate::services::batcher::{Batcher, Limits, Stage};
use crate::services::command::{Assignment, Heartbeat, HeartbeatAnswer, PollJob};
use crate::services::crash;
use crate::services::error::ServiceError;
use crate::services::fleet::Polled;

/// How often a call whose time is up looks whether the job that was on its way still is.
const RECHECK: Duration = Duration::from_millis(20);

/// How a call's wait ended.
enum Waited {
    Job(Box<Assignment>),
    InVain,
    /// A job is there to be fetched.
    LookAgain,
}

/// A fetch that is to be written down before the job is handed over.
pub(super) struct Fetch {
    lease: LeaseId,
    delivery: DeliveryId,
    /// Whether the lease is live.
    reply: oneshot::Sender<Result<bool, ServiceError>>,
}

pub(super) fn start(core: &Arc<Core>, stage: &Stage, sizes: &Histogram) -> Batcher<Fetch> {
    let core = Arc::clone(core);
    Batcher::start(stage, Limits::default(), &[0], sizes, move |_, batch| {
        let core = Arc::clone(&core);
        async move { core.commit_fetches(batch).await }
    })
}

impl Leader {
    /// Takes a sign of life.
    pub(super) async fn heartbeat(
        &self,
        by: &Caller,
        heartbeat: Heartbeat,
    ) -> Result<HeartbeatAnswer, ServiceError> {
        self.admit_known(by, heartbeat.worker_id).await?;
        let now = self.core.now();
        let taken = self.core.fleet().heartbeat(&heartbeat, now);
        let (answer, given_back) = taken.ok_or_else(|| ServiceError::no_worker(heartbeat.worker_id))?;
        for (job, lease) in given_back {
            // Noticed again with the next heartbeat if there is no room now.
            drop(self.push_event(job, JobEvent::NotFetched { lease }, None));
        }
        Ok(answer)
    }

    /// Collects a job for a worker, or waits for one.
    pub(super) async fn poll(
        &self,
        by: &Caller,
        poll: PollJob,
    ) -> Result<Option<Box<Assignment>>, ServiceError> {
        let deadline = Instant::now() + poll.wait;
        loop {
            self.admit_known(by, poll.worker_id).await?;
            let polled =
                self.core.fleet().poll(poll.worker_id, poll.delivery, !poll.wait.is_zero(), self.core.now());
            match polled {
                Polled::Unknown => return Err(ServiceError::no_worker(poll.worker_id)),
                Polled::Again(lease) => {
                    if let Some(job) = self.core.load_assignment(lease).await? {
                        return Ok(Some(job));
                    }
                }
                Polled::Fetch(lease) => {
                    if let Some(job) = self.fetch(lease, poll.delivery).await? {
                        return Ok(Some(job));
                    }
                }
                Polled::Wait(receiver) => {
                    self.core.nudges.schedule.notify_one();
                    match self.wait_for_job(&poll, receiver, deadline).await? {
                        Waited::Job(job) => return Ok(Some(job)),
                        Waited::InVain => return Ok(None),
                        Waited::LookAgain => {}
                    }
                }
            }
        }
    }

    async fn wait_for_job(
        &self,
        poll: &PollJob,
        mut receiver: oneshot::Receiver<Box<Assignment>>,
        deadline: Instant,
    ) -> Result<Waited, ServiceError> {
        let mut ended = self.ended();
        // A worker that was given up meanwhile does not come back by a call that it made before.
        let judge = |job: Result<_, _>| match job {
            Ok(job) => Waited::Job(job),
            Err(_) if self.core.fleet().knows(poll.worker_id) => Waited::LookAgain,
            Err(_) => Waited::InVain,
        };
        tokio::select! {
            biased;
            job = &mut receiver => return Ok(judge(job)),
            () = tokio::time::sleep_until(deadline) => {}
            _ = ended.wait_for(Option::is_some) => return Err(ServiceError::NoLeader),
        }
        // A job may be on its way to this call: then its commit decides, and what was not committed
        // leaves the call waiting again.
        while !self.core.fleet().stop_waiting(poll.worker_id, poll.delivery) {
            if let Ok(job) = tokio::time::timeout(RECHECK, &mut receiver).await {
                return Ok(judge(job));
            }
        }
        Ok(receiver.try_recv().map_or(Waited::InVain, Waited::Job))
    }

    /// Writes down that the job is fetched, then hands it over. `None` if the lease has ended.
    async fn fetch(
        &self,
        lease: LeaseId,
        delivery: DeliveryId,
    ) -> Result<Option<Box<Assignment>>, ServiceError> {
        // Given back if this call goes away before the fetch is written down.
        let unfetch = Unfetch { core: &self.core, lease: Some(lease) };
        let (reply, answer) = oneshot::channel();
        self.fetches.push(Fetch { lease, delivery, reply }, 0)?;
        let live = answer.await.unwrap_or(Err(ServiceError::OutcomeUnknown))?;
        unfetch.keep();
        if !live {
            self.core.fleet().release(lease, true);
            return Ok(None);
        }
        let at_hand = self.core.fleet().fetched(lease, delivery, self.core.now());
        match at_hand {
            Some(job) => Ok(Some(job)),
            None => self.core.load_assignment(lease).await,
        }
    }

    /// A report is a sign of life, of a worker that must be registered.
    pub(super) async fn note_reporter(&self, by_whom: &Caller, event: &JobEvent) -> Result<(), ServiceError> {
        let Some(by) = reporter(event) else { return Ok(()) };
        self.admit_known(by_whom, by.worker_id).await?;
        let now = self.core.now();
        self.core.fleet().touch(by.worker_id, now);
        Ok(())
    }
}

impl Core {
    async fn commit_fetches(&self, batch: Vec<Fetch>) {
        let deliveries: Vec<_> = batch.iter().map(|fetch| (fetch.lease, fetch.delivery)).collect();
        let marked = self
            .transaction("fetch_jobs", || async {
                let mut transaction = self.begin().await?;
                let live = transaction.mark_delivered(&deliveries).await?;
                transaction.commit().await.map(|()| live)
            })
            .await;
        match marked {
            Ok(live) => {
                crash::point("fetched");
                let live: HashSet<LeaseId> = live.into_iter().collect();
                for fetch in batch {
                    drop(fetch.reply.send(Ok(live.contains(&fetch.lease))));
                }
            }
            Err(error) => {
                let error = ServiceError::from(error);
                for fetch in batch {
                    drop(fetch.reply.send(Err(error.clone())));
                }
            }
        }
    }

    async fn load_assignment(&self, lease: LeaseId) -> Result<Option<Box<Assignment>>, ServiceError> {
        let job = self.parts.database.assignment(lease).await?;
        if job.is_none() {
            self.fleet().release(lease, true);
        }
        Ok(job.map(|job| Box::new(assignment(job, &self.parts.tracer))))
    }
}

/// Puts a lease back among the unfetched ones unless the fetch is known to be written down.
struct Unfetch<'a> {
    core: &'a Core,
    lease: Option<LeaseId>,
}

impl Unfetch<'_> {
    fn keep(mut self) {
        self.lease = None;
    }
}

impl Drop for Unfetch<'_> {
    fn drop(&mut self) {
        if let Some(lease) = self.lease {
            self.core.fleet().unfetch(lease);
        }
    }
}
