//! What the API calls: one method per use case, whichever replica it runs on.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;

use super::command::{
    Accepted, Answer, Applied, Assignment, Command, Commands, Hear, Heard, Heartbeat, HeartbeatAnswer,
    PollJob, Pulse, SubmitOnce, Submitted,
};
use super::control::Control;
use super::error::ServiceError;
use super::queries::Queries;
use super::sessions::{Closing, Session, Sessions};
use super::watching::Watching;
use crate::domain::ambient::Ambient;
use crate::domain::idempotency::{IdempotencyKey, KeyDraft, fingerprint};
use crate::domain::ids::{DeliveryId, JobId, LeaseId, SessionId, WorkerId};
use crate::domain::job::{Job, JobDefaults, JobDraft, NewJob};
use crate::domain::transition::{JobEvent, JobPatch};
use crate::domain::validate::{FieldError, Validator};
use crate::domain::worker::{Worker, WorkerDraft};
use crate::genome::Genome;
use crate::security::Caller;

/// Most jobs of one batch.
pub const MAX_BATCH: usize = 1_000;

type Result<T> = std::result::Result<T, ServiceError>;

/// The use cases of a replica. Reads are answered here, writes by whoever leads.
#[derive(Clone)]
pub struct Services {
    pub(super) commands: Arc<dyn Commands>,
    pub(super) control: Arc<dyn Control>,
    pub(super) ambient: Arc<dyn Ambient>,
    defaults: Arc<JobDefaults>,
    pub(super) genome: Option<Genome>,
    /// Reads from PostgreSQL.
    pub queries: Queries,
    sessions: Arc<Sessions>,
    /// Who follows changes of jobs here.
    pub watching: Arc<Watching>,
}

impl Services {
    /// Puts the use cases together.
    pub fn new(
        commands: Arc<dyn Commands>,
        control: Arc<dyn Control>,
        ambient: Arc<dyn Ambient>,
        defaults: JobDefaults,
        queries: Queries,
        sessions: Arc<Sessions>,
    ) -> Self {
        let watching = Watching::new(Arc::clone(&commands));
        Self {
            commands,
            control,
            ambient,
            defaults: Arc::new(defaults),
            genome: None,
            queries,
            sessions,
            watching,
        }
    }

    /// The same with submissions checked against this registry from now on.
    #[must_use]
    pub fn with_genome(self, genome: Option<Genome>) -> Self {
        Self { genome, ..self }
    }

    /// Checks a submission and stores it. The job is returned as accepted: `pending`, and on its way to
    /// the ready queue. `noted` is what was found before, where a field could not even be read.
    pub async fn submit_job(
        &self,
        draft: JobDraft,
        noted: Vec<FieldError>,
        key: Option<KeyDraft>,
    ) -> Result<Stored> {
        let mut v = Validator::default();
        let key = Key::check(&mut v, key, std::slice::from_ref(&draft));
        v.absorb::<()>(Err(noted));
        let new = self.check_job(draft).map_err(|mut wrong| {
            wrong.retain(|error| !v.has(&error.field));
            wrong
        });
        let new = v.absorb(new);
        let mut jobs = vec![v.finish(new).map_err(ServiceError::Invalid)?];
        self.check_models(&mut jobs, key.as_ref().map(|key| &key.key), |error, _| error).await?;
        self.store(jobs, key).await
    }

    /// Checks submissions and stores all of them or, if one field of one of them breaks a bound, none. Errors
    /// name fields as `jobs[0].name`; `noted` are those that were found before, where a draft could not even be
    /// read.
    pub async fn submit_batch(
        &self,
        drafts: Vec<JobDraft>,
        noted: Vec<FieldError>,
        key: Option<KeyDraft>,
    ) -> Result<Stored> {
        if !(1..=MAX_BATCH).contains(&drafts.len()) {
            let message = format!("must be 1 to {MAX_BATCH} jobs, are {}", drafts.len());
            return Err(ServiceError::Invalid(vec![FieldError::new("jobs", message)]));
        }
        let mut v = Validator::default();
        let key = Key::check(&mut v, key, &drafts);
        let mut jobs = Vec::with_capacity(drafts.len());
        let unread: HashSet<String> = noted.iter().map(|error| error.field.clone()).collect();
        let mut errors = v.finish(Some(())).err().unwrap_or_default();
        errors.extend(noted);
        for (index, draft) in drafts.into_iter().enumerate() {
            match self.check_job(draft) {
                Ok(job) => jobs.push(job),
                Err(_) if unread.contains(&format!("jobs[{index}]")) => {}
                Err(wrong) => {
                    let wrong = wrong.into_iter().map(|error| error.within("jobs", index));
                    errors.extend(wrong.filter(|error| !unread.contains(&error.field)));
                }
            }
        }
        if !errors.is_empty() {
            return Err(ServiceError::Invalid(errors));
        }
        let named = |error: FieldError, index| error.within("jobs", index);
        self.check_models(&mut jobs, key.as_ref().map(|key| &key.key), named).await?;
        self.store(jobs, key).await
    }

    /// Checks a submission and gives it an id. Whoever submits it is its creator where it names none.
    fn check_job(&self, mut draft: JobDraft) -> std::result::Result<NewJob, Vec<FieldError>> {
        if draft.created_by.as_ref().is_none_or(Value::is_null) {
            draft.created_by = Caller::current().and_then(|by| by.subject().map(Value::from));
        }
        draft.check(JobId(self.ambient.uuid()), &self.defaults)
    }

    async fn store(&self, jobs: Vec<NewJob>, key: Option<Key>) -> Result<Stored> {
        let Some(Key { key, fingerprint }) = key else {
            return Ok(Stored { jobs: self.submit_jobs(jobs).await?, repeated: false });
        };
        let once = Box::new(SubmitOnce { key, fingerprint, jobs: jobs.clone() });
        match self.execute(Command::SubmitOnce(once)).await? {
            Answer::SubmitOnce(Submitted::Now(accepted)) if accepted.len() == jobs.len() => {
                Ok(Stored { jobs: shown(jobs, accepted), repeated: false })
            }
            Answer::SubmitOnce(Submitted::Before(ids)) => {
                Ok(Stored { jobs: self.queries.jobs_of(&ids).await?, repeated: true })
            }
            _ => Err(ServiceError::Internal),
        }
    }

    /// Stores checked jobs, all or none.
    async fn submit_jobs(&self, jobs: Vec<NewJob>) -> Result<Vec<Job>> {
        match self.execute(Command::SubmitJobs(jobs.clone())).await? {
            Answer::SubmitJobs(accepted) if accepted.len() == jobs.len() => Ok(shown(jobs, accepted)),
            _ => Err(ServiceError::Internal),
        }
    }

    /// Calls a job off.
    pub async fn cancel_job(&self, id: JobId) -> Result<()> {
        self.report(id, JobEvent::Cancel).await.map(drop)
    }

    /// Makes a job due at once; an ended one is revived and spends a retry.
    pub async fn retry_job(&self, id: JobId) -> Result<Job> {
        self.apply_for_job(id, JobEvent::Retry).await
    }

    /// Drives a job from outside.
    pub async fn patch_job(&self, id: JobId, patch: JobPatch) -> Result<Job> {
        if let Some(worker) = patch.assigned_worker_id {
            let registered = match self.queries.worker(worker).await {
                Ok(worker) => worker.removed_at.is_none(),
                Err(ServiceError::NotFound { .. }) => false,
                Err(error) => return Err(error),
            };
            if !registered {
                let error = FieldError::new("assigned_worker_id", "must be the id of a registered worker");
                return Err(ServiceError::Invalid(vec![error]));
            }
        }
        self.apply_for_job(id, JobEvent::Patch(patch)).await
    }

    /// Takes a worker's report. A stale lease is [`super::error::Conflict::StaleLease`].
    pub async fn report(&self, id: JobId, event: JobEvent) -> Result<Applied> {
        match self.execute(Command::ApplyEvent(id, event)).await? {
            Answer::ApplyEvent(applied) => Ok(applied),
            _ => Err(ServiceError::Internal),
        }
    }

    /// Registers a worker; `true` says that its hostname and port were new.
    pub async fn register_worker(&self, draft: WorkerDraft) -> Result<(Worker, bool)> {
        let new = draft.check(WorkerId(self.ambient.uuid())).map_err(ServiceError::Invalid)?;
        match self.execute(Command::RegisterWorker(new)).await? {
            Answer::RegisterWorker(worker, created) => Ok((*worker, created)),
            _ => Err(ServiceError::Internal),
        }
    }

    /// Gives a worker nothing new until it registers again.
    pub async fn drain_worker(&self, id: WorkerId) -> Result<Worker> {
        match self.execute(Command::DrainWorker(id)).await? {
            Answer::DrainWorker(worker) => Ok(*worker),
            _ => Err(ServiceError::Internal),
        }
    }

    /// Takes a worker out of service until it registers again.
    pub async fn remove_worker(&self, id: WorkerId) -> Result<()> {
        match self.execute(Command::RemoveWorker(id)).await? {
            Answer::RemoveWorker => Ok(()),
            _ => Err(ServiceError::Internal),
        }
    }

    /// Takes a sign of life.
    pub async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<HeartbeatAnswer> {
        match self.execute(Command::Heartbeat(heartbeat)).await? {
            Answer::Heartbeat(answer) => Ok(answer),
            _ => Err(ServiceError::Internal),
        }
    }

    /// Collects a job for a worker, waiting up to `wait` for one.
    pub async fn poll_job(&self, worker_id: WorkerId, wait: Duration) -> Result<Option<Assignment>> {
        let delivery = DeliveryId(self.ambient.uuid());
        match self.execute(Command::PollJob(PollJob { worker_id, delivery, wait })).await? {
            Answer::PollJob(assignment) => Ok(assignment.map(|assignment| *assignment)),
            _ => Err(ServiceError::Internal),
        }
    }

    /// Opens a session of a worker that is registered and holds these leases.
    pub async fn open_session(
        &self,
        worker_id: WorkerId,
        held: Vec<(JobId, LeaseId)>,
        credits: u32,
    ) -> Result<Arc<Session>> {
        let id = SessionId(self.ambient.uuid());
        let session = self.sessions.open(caller()?, worker_id, id, held, credits.into())?;
        let mut opening = Opening { services: self, session: Arc::clone(&session), done: false };
        // Goes on when its caller goes away, so that the leader is told of the end after the beginning.
        let (attaching, commands) = (Arc::clone(&session), Arc::clone(&self.commands));
        let attached = tokio::spawn(async move { attaching.attach(&*commands).await });
        tokio::select! {
            attached = attached => attached.unwrap_or(Err(ServiceError::Internal))?,
            () = session.closed() => return Err(ServiceError::NoLeader),
        }
        opening.done = true;
        Ok(session)
    }

    /// Takes what a worker said on its session. Answers what came of each report.
    pub async fn hear(
        &self,
        of: &Session,
        granted: u64,
        events: Vec<(JobId, JobEvent)>,
        pulse: Option<Pulse>,
    ) -> Result<Vec<Result<Applied>>> {
        let (worker_id, session, by) = (of.worker_id, of.id, of.by.clone());
        let hear = Hear { worker_id, session, granted, events, pulse };
        let way = of.attached_by();
        match self.commands.execute(by, Command::Hear(hear)).await {
            Ok(Answer::Hear(Heard { outcomes, is_attached })) => {
                if !is_attached {
                    self.sessions.attach_anew(of, way);
                }
                Ok(outcomes)
            }
            Ok(_) => Err(ServiceError::Internal),
            Err(error) => {
                of.close_if_unwelcome(&error);
                Err(error)
            }
        }
    }

    /// Ends a session: its worker gets nothing more by it. The first reason stands.
    pub fn end_session(&self, session: Arc<Session>, reason: Closing) {
        session.close(reason);
        self.sessions.forget(&session);
        let commands = Arc::clone(&self.commands);
        tokio::spawn(async move { session.detach(&*commands).await });
    }

    pub(super) async fn execute(&self, command: Command) -> Result<Answer> {
        self.commands.execute(caller()?, command).await
    }

    async fn apply_for_job(&self, id: JobId, event: JobEvent) -> Result<Job> {
        let applied = self.report(id, event).await?;
        applied.job.map(|job| *job).ok_or(ServiceError::Internal)
    }
}

/// Jobs that were submitted.
#[derive(Debug)]
pub struct Stored {
    /// In the order of submission: as accepted, or as they are now where they were stored before.
    pub jobs: Vec<Job>,
    /// The same was submitted before under the same key; nothing was stored now.
    pub repeated: bool,
}

/// A checked idempotency key, and what is submitted under it.
struct Key {
    key: IdempotencyKey,
    fingerprint: Vec<u8>,
}

impl Key {
    fn check(v: &mut Validator, draft: Option<KeyDraft>, jobs: &[JobDraft]) -> Option<Self> {
        let key = draft?.check().map_err(|error| v.reject(error.field, error.message)).ok()?;
        Some(Self { key, fingerprint: fingerprint(jobs) })
    }
}

fn shown(jobs: Vec<NewJob>, accepted: Vec<Accepted>) -> Vec<Job> {
    let shown =
        |(job, accepted): (NewJob, Accepted)| Job::accepted(job, accepted.submitted_at, accepted.assigned_to);
    jobs.into_iter().zip(accepted).map(shown).collect()
}

/// On whose behalf the request is carried out. One that came past the gate of the API is nobody's.
fn caller() -> Result<Caller> {
    Caller::current().ok_or_else(|| ServiceError::Forbidden("nobody has asked for this".to_owned()))
}

/// Ends a session whose opening fails, or is given up.
struct Opening<'a> {
    services: &'a Services,
    session: Arc<Session>,
    done: bool,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        if !self.done {
            self.services.end_session(Arc::clone(&self.session), Closing::Gone);
        }
    }
}
