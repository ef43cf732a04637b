//! Storing submissions, hundreds in one transaction.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use prometheus::Histogram;
use tokio::sync::oneshot;

use super::direct::Newcomer;
use super::dispatch::{FETCH_SECONDS, Placed};
use super::feed::FeedItem;
use super::{Core, Leader, SUBMISSION_SLOTS};
use crate::domain::changes::JobChange;
use crate::domain::job::{JobStatus, NewJob};
use crate::domain::trace::TraceContext;
use crate::ready_queue::Entry;
use crate::services::batcher::{Batcher, Limits, Stage};
use crate::services::command::{Accepted, Assignment};
use crate::services::crash;
use crate::services::error::ServiceError;
use crate::storage::{Claim, Inserted, Insertion, StorageError};
use crate::telemetry::traces;

type Reply = oneshot::Sender<Result<Vec<Accepted>, ServiceError>>;
/// What became of a job, and the worker that has a slot reserved for it.
type Stored = (Inserted, Option<Placed>);

/// One caller's jobs.
pub(super) struct Submission {
    jobs: Vec<NewJob>,
    /// The trace that they belong to.
    trace: Option<Box<TraceContext>>,
    room: Room,
    came: Instant,
    reply: Reply,
}

/// Jobs that are being stored; they count until the room is dropped.
pub(super) struct Room {
    arriving: Arc<AtomicU64>,
    jobs: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.arriving.fetch_sub(self.jobs, Ordering::AcqRel);
    }
}

impl Leader {
    /// Stores jobs, all or none. They are answered as accepted; by then they are on their way into the
    /// ready queue.
    pub(super) async fn submit(&self, jobs: Vec<NewJob>) -> Result<Vec<Accepted>, ServiceError> {
        self.submit_into(self.core.take_room(jobs.len())?, jobs).await
    }

    /// Stores jobs for which there is room.
    pub(super) async fn submit_into(
        &self,
        room: Room,
        jobs: Vec<NewJob>,
    ) -> Result<Vec<Accepted>, ServiceError> {
        let came = self.core.now();
        let bytes = jobs.iter().map(size).sum();
        let (reply, answer) = oneshot::channel();
        let span = self.core.trace_submission(&jobs);
        let own = span.as_ref().map(|span| span.context().clone());
        let trace = own.or_else(traces::current).map(Box::new);
        let stored = async {
            self.submissions.push(Submission { jobs, trace, room, came, reply }, bytes)?;
            answer.await.unwrap_or(Err(ServiceError::OutcomeUnknown))
        };
        let stored = stored.await;
        if let (Some(mut span), Err(error)) = (span, &stored) {
            span.fail(error.to_string());
        }
        stored
    }
}

/// About how many bytes a job takes.
fn size(job: &NewJob) -> usize {
    let texts = [&job.input_data, &job.metadata, &job.tags].map(|payload| payload.as_str().len());
    512 + texts.iter().sum::<usize>()
}

pub(super) fn start(leader: &Weak<Leader>, stage: &Stage, sizes: &Histogram) -> Batcher<Submission> {
    let leader = Weak::clone(leader);
    Batcher::start(stage, Limits::default(), &SUBMISSION_SLOTS, sizes, move |slot, batch| {
        let leader = leader.upgrade();
        async move {
            match leader {
                Some(leader) => leader.store_submissions(slot, batch).await,
                // Dropped with their replies: nothing was done.
                None => drop(batch),
            }
        }
    })
}

impl Leader {
    async fn store_submissions(&self, slot: i16, batch: Vec<Submission>) {
        let core = &self.core;
        match self.insert(slot, &batch).await {
            Ok(stored) => {
                crash::point("submitted");
                let mut stored = stored.into_iter();
                batch.into_iter().for_each(|submission| self.accept(submission, &mut stored));
                core.nudges.schedule.notify_one();
            }
            // Checked values that PostgreSQL refuses all the same must not fail their neighbours.
            Err(StorageError::Rejected(_)) if batch.len() > 1 => {
                for submission in batch {
                    let alone = [submission];
                    let stored = self.insert(slot, &alone).await;
                    let [submission] = alone;
                    match stored {
                        Ok(stored) => self.accept(submission, &mut stored.into_iter()),
                        Err(error) => drop(submission.reply.send(Err(error.into()))),
                    }
                }
            }
            Err(error) => {
                let error = ServiceError::from(error);
                for submission in batch {
                    drop(submission.reply.send(Err(error.clone())));
                }
            }
        }
    }

    /// Stores the jobs of a batch, those under a lease that a worker takes at once. Answers job by job.
    async fn insert(&self, slot: i16, batch: &[Submission]) -> Result<Vec<Stored>, StorageError> {
        let core = &self.core;
        let jobs: Vec<&NewJob> = batch.iter().flat_map(|submission| &submission.jobs).collect();
        let traces = batch
            .iter()
            .flat_map(|submission| std::iter::repeat_n(submission.trace.as_deref(), submission.jobs.len()));
        let _open = core.dispatching.begin().await;
        let ready = jobs.iter().copied().map(|job| job.run_at.is_none().then(|| Newcomer::of(job)));
        let placed = core.place_directly(&ready.collect::<Vec<_>>());
        let insertion = |((job, placed), trace): ((_, &Option<Placed>), _)| Insertion {
            job,
            claim: placed.as_ref().map(|placed| placed.claim),
            trace,
        };
        let insertions: Vec<Insertion<'_>> =
            jobs.iter().copied().zip(&placed).zip(traces).map(insertion).collect();
        let inserted = core
            .transaction("submit_jobs", || {
                let parts = &core.parts;
                parts.database.insert_jobs(parts.fence, slot, &insertions, FETCH_SECONDS)
            })
            .await;
        match inserted {
            Ok(inserted) => Ok(inserted.into_iter().zip(placed).collect()),
            Err(error) => {
                core.unreserve(placed.into_iter().flatten());
                Err(error)
            }
        }
    }

    /// After the commit: jobs to their workers or into the ready queue, then the answer.
    fn accept(&self, submission: Submission, stored: &mut impl Iterator<Item = Stored>) {
        let core = &self.core;
        let mut accepted = Vec::with_capacity(submission.jobs.len());
        let stored: Vec<Stored> = stored.take(submission.jobs.len()).collect();
        core.announce(|| {
            submission.jobs.iter().zip(&stored).filter_map(|(job, (stored, _))| change(job, stored))
        });
        for (job, (inserted, placed)) in submission.jobs.into_iter().zip(stored) {
            let Inserted { submitted_at, new, assigned_to } = inserted;
            accepted.push(Accepted { submitted_at, assigned_to });
            match placed {
                Some(placed) if new => {
                    core.parts.metrics.jobs_queued.inc();
                    core.count_assignment(job.priority, 0, submission.came);
                    let trace = submission.trace.as_deref();
                    let trace = trace.map(|trace| core.trace_assignment(trace, &placed.claim, 1, 0));
                    self.give(assignment(job, placed.claim, trace), placed.poller);
                }
                Some(placed) => core.unreserve([placed]),
                None if new && job.run_at.is_some() => {
                    core.waiting.fetch_add(1, Ordering::Release);
                    let due = job.run_at.unwrap_or(submitted_at);
                    core.promote_at((due - submitted_at).to_std().unwrap_or(Duration::ZERO));
                }
                None if new => {
                    core.parts.metrics.jobs_queued.inc();
                    core.waiting.fetch_add(1, Ordering::Release);
                    let (job_id, shape, priority) = (job.id, job.shape, job.priority);
                    core.feed(FeedItem::Add(Entry { job_id, shape, priority, submitted_at }));
                }
                None => {}
            }
        }
        drop(submission.room);
        drop(submission.reply.send(Ok(accepted)));
    }
}

impl Core {
    /// What jobs take that are stored already.
    pub(super) fn no_room(&self) -> Room {
        Room { arriving: Arc::clone(&self.arriving), jobs: 0 }
    }

    /// Room for jobs that are to be stored: with those that wait and those that are being stored, no more than
    /// may wait.
    pub(super) fn take_room(&self, jobs: usize) -> Result<Room, ServiceError> {
        let (jobs, limit) = (jobs as u64, self.parts.max_queue_size);
        // A job counts as waiting before its room is dropped, so it is seen here or there.
        let taken = self.arriving.fetch_update(Ordering::AcqRel, Ordering::Acquire, |arriving| {
            let waiting = u64::try_from(self.waiting.load(Ordering::Acquire)).unwrap_or(0);
            let all = waiting.saturating_add(arriving).saturating_add(jobs);
            (limit == 0 || all <= limit).then_some(arriving + jobs)
        });
        match taken {
            Ok(_) => Ok(Room { arriving: Arc::clone(&self.arriving), jobs }),
            Err(_) => Err(ServiceError::QueueFull { limit }),
        }
    }
}

/// What a submission has changed.
fn change(job: &NewJob, stored: &Inserted) -> Option<JobChange> {
    let status = match (stored.assigned_to, job.run_at) {
        (Some(_), _) => JobStatus::Assigned,
        (None, Some(_)) => JobStatus::Pending,
        (None, None) => JobStatus::Queued,
    };
    let change = JobChange { job_id: job.id, status, worker_id: stored.assigned_to, at: stored.submitted_at };
    stored.new.then_some(change)
}

/// What a worker needs of a job that it takes at its submission.
fn assignment(job: NewJob, claim: Claim, trace: Option<Box<TraceContext>>) -> Assignment {
    Assignment {
        lease: claim.lease,
        attempt_number: 1,
        worker_id: claim.worker_id,
        job_id: job.id,
        job_name: job.name,
        model_name: job.model_name,
        model_version: job.model_version,
        input_data: job.input_data,
        timeout_seconds: job.timeout_seconds,
        trace,
    }
}
