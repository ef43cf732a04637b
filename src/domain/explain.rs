//! Why a job is where it is, from what is known of it and of the workers.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::execution::{Execution, ExecutionStatus};
use super::ids::{JobId, WorkerId};
use super::job::{Job, JobStatus};
use super::matching::Mismatch;
use super::transition::{POISON, TIMEOUT};

/// Why a worker cannot take a job now.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Obstacle {
    /// All its slots are taken.
    Full,
    /// Its session grants no more jobs at the moment.
    NoCredits,
    /// It fetches its jobs with calls that wait, and none waits now.
    NotPolling,
    /// Its session has ended, and no other one has begun yet.
    Disconnected,
    /// It takes nothing new: it is about to leave, or was drained.
    Draining,
    /// It says that it is not well, or failed too often in a row.
    Unhealthy,
    /// The model is not among its models.
    Model,
    /// The job needs a GPU and it has none.
    Gpu,
    /// The job needs more memory than it has.
    Memory,
}

impl Obstacle {
    /// Whether it will never take such a job, however long the job waits.
    pub const fn is_lasting(self) -> bool {
        match self {
            Self::Model | Self::Gpu | Self::Memory => true,
            Self::Full
            | Self::NoCredits
            | Self::NotPolling
            | Self::Disconnected
            | Self::Draining
            | Self::Unhealthy => false,
        }
    }
}

impl From<Mismatch> for Obstacle {
    fn from(mismatch: Mismatch) -> Self {
        match mismatch {
            Mismatch::Model => Self::Model,
            Mismatch::Gpu => Self::Gpu,
            Mismatch::Memory => Self::Memory,
        }
    }
}

/// What the leader says of a job that waits, or would.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outlook {
    /// Whether jobs are given to workers at all (`scheduler.enabled`).
    pub scheduling: bool,
    /// Whether the jobs of its model are held back.
    pub paused: bool,
    /// The workers that are not offline.
    pub workers: Workers,
}

/// All workers, in view of one job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Workers {
    /// How many there are.
    pub total: u64,
    /// How many could take the job at once.
    pub able: u64,
    /// How many could not, by what keeps them from it.
    pub obstacles: BTreeMap<Obstacle, u64>,
    /// Some of them, those that are nearest to taking it first.
    pub list: Vec<Verdict>,
}

/// One worker, in view of one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Verdict {
    /// What keeps it from taking the job; absent if nothing does.
    pub obstacle: Option<Obstacle>,
    /// Which worker.
    pub worker_id: WorkerId,
}

impl Workers {
    /// Counts the verdicts and keeps at most `shown` of them.
    pub fn of(mut verdicts: Vec<Verdict>, shown: usize) -> Self {
        let mut obstacles: BTreeMap<Obstacle, u64> = BTreeMap::new();
        for obstacle in verdicts.iter().filter_map(|verdict| verdict.obstacle) {
            *obstacles.entry(obstacle).or_default() += 1;
        }
        let total = verdicts.len() as u64;
        let able = total - obstacles.values().sum::<u64>();
        verdicts.sort_unstable();
        verdicts.truncate(shown);
        Self { total, able, obstacles, list: verdicts }
    }

    /// Whether some worker may take the job, now or later.
    fn may_take_it(&self) -> bool {
        self.able > 0 || self.obstacles.keys().any(|obstacle| !obstacle.is_lasting())
    }
}

/// Why a job is where it is, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// Its time, or that of its retry, has not come.
    WaitsForItsTime,
    /// Its time has come, and it is about to be queued.
    IsDue,
    /// Nobody leads, so nobody is given jobs.
    NoLeader,
    /// Jobs are not given to workers (`scheduler.enabled`).
    SchedulingIsOff,
    /// The queue, or its model, is paused.
    IsPaused,
    /// No worker is online.
    NoWorkers,
    /// None of the workers has what it asks for.
    NoWorkerHasWhatItNeeds,
    /// Workers have what it asks for, and none can take it now.
    WorkersAreTaken,
    /// A worker can take it; it is about to be given one, after those ahead of it.
    IsNext,
    /// A worker has it and has not said yet that it runs.
    IsAssigned,
    /// A worker runs it.
    Runs,
    /// It is driven from outside.
    IsDrivenFromOutside,
    /// It has ended.
    HasEnded,
}

/// Where a job stands in the order of dispatch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Position {
    /// Queued jobs before it, whatever workers they need.
    pub ahead: i64,
    /// There are more than that; no more are counted.
    pub at_least: bool,
}

/// An attempt, without what it put out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "the columns of the specification's table")]
pub struct Attempt {
    pub attempt_number: u32,
    pub status: ExecutionStatus,
    pub worker_id: WorkerId,
    pub started_at: DateTime<Utc>,
    pub completed_at: Option<DateTime<Utc>>,
    pub duration_ms: Option<i64>,
    pub error_code: Option<String>,
    pub error_message: Option<String>,
}

/// What the retry policy said when the last attempt had failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct RetryState {
    /// Retries so far, with the one that is due.
    pub attempt_number: u32,
    /// When the next attempt is due.
    pub next_retry_at: Option<DateTime<Utc>>,
    /// The delay before it, in whole seconds, rounded up.
    pub backoff_seconds: Option<i64>,
    /// Whether there is another attempt.
    pub can_retry: bool,
    /// Why there is none: `max_retries_exceeded`, `error_not_retryable: ` and the error code, or `poison`.
    pub reason: Option<String>,
}

/// Why a job is where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Explanation {
    /// Which job.
    pub job_id: JobId,
    /// Where it is.
    pub status: JobStatus,
    /// Why.
    pub reason: Reason,
    /// The same for people.
    pub detail: String,
    /// When a `pending` job is due.
    pub due_at: Option<DateTime<Utc>>,
    /// Where a `queued` job stands.
    pub queue: Option<Position>,
    /// Who could take it; absent for a job that nobody is to take, and while nobody leads.
    pub workers: Option<Workers>,
    /// Retries that were spent.
    pub retry_count: u32,
    /// Retries that it has.
    pub max_retries: u32,
    /// What becomes of it after a failed attempt; absent where none was the last thing that happened to it.
    pub retry: Option<RetryState>,
    /// Its attempts so far, oldest first.
    pub attempts: Vec<Attempt>,
}

impl Explanation {
    /// Explains a job. `queue` is for a queued one; without an `outlook` nobody leads.
    pub fn of(
        job: &Job,
        attempts: Vec<Execution>,
        queue: Option<Position>,
        outlook: Option<Outlook>,
        now: DateTime<Utc>,
    ) -> Self {
        let reason = reason(job, outlook.as_ref(), now);
        let waits = matches!(job.status, JobStatus::Pending | JobStatus::Queued);
        let workers = outlook.filter(|_| waits).map(|outlook| outlook.workers);
        let detail = detail(reason, job, queue.as_ref(), workers.as_ref());
        Self {
            job_id: job.id,
            status: job.status,
            reason,
            detail,
            due_at: job.next_retry_at,
            queue,
            workers,
            retry_count: job.retry_count,
            max_retries: job.max_retries,
            retry: retry_state(job, attempts.last().and_then(|last| last.error_code.as_deref())),
            attempts: attempts.into_iter().map(Attempt::from).collect(),
        }
    }
}

impl From<Execution> for Attempt {
    fn from(execution: Execution) -> Self {
        Self {
            attempt_number: execution.attempt_number,
            status: execution.status,
            worker_id: execution.worker_id,
            started_at: execution.started_at,
            completed_at: execution.completed_at,
            duration_ms: execution.duration_ms,
            error_code: execution.error_code,
            error_message: execution.error_message,
        }
    }
}

fn retry_state(job: &Job, error_code: Option<&str>) -> Option<RetryState> {
    // One that is driven from outside has no attempts that would say so.
    let error_code = if job.status == JobStatus::Timeout { Some(TIMEOUT) } else { error_code };
    let (can_retry, reason) = match job.status {
        JobStatus::Pending if job.retry_count > 0 => (true, None),
        JobStatus::Failed | JobStatus::Timeout => (
            false,
            match error_code {
                Some(POISON) => Some(POISON.to_owned()),
                _ if job.retry_count >= job.max_retries => Some("max_retries_exceeded".to_owned()),
                code => code.map(|code| format!("error_not_retryable: {code}")),
            },
        ),
        _ => return None,
    };
    Some(RetryState {
        attempt_number: job.retry_count,
        next_retry_at: job.next_retry_at.filter(|_| can_retry),
        backoff_seconds: job.retry_backoff_seconds.filter(|_| can_retry),
        can_retry,
        reason,
    })
}

fn reason(job: &Job, outlook: Option<&Outlook>, now: DateTime<Utc>) -> Reason {
    match job.status {
        JobStatus::Pending if job.next_retry_at.is_some_and(|due| due > now) => Reason::WaitsForItsTime,
        JobStatus::Pending if outlook.is_some() => Reason::IsDue,
        JobStatus::Pending => Reason::NoLeader,
        JobStatus::Queued => match outlook {
            None => Reason::NoLeader,
            Some(Outlook { scheduling: false, .. }) => Reason::SchedulingIsOff,
            Some(Outlook { paused: true, .. }) => Reason::IsPaused,
            Some(Outlook { workers, .. }) if workers.total == 0 => Reason::NoWorkers,
            Some(Outlook { workers, .. }) if !workers.may_take_it() => Reason::NoWorkerHasWhatItNeeds,
            Some(Outlook { workers, .. }) if workers.able == 0 => Reason::WorkersAreTaken,
            Some(_) => Reason::IsNext,
        },
        JobStatus::Assigned => Reason::IsAssigned,
        JobStatus::Running if job.assigned_at.is_some() => Reason::Runs,
        JobStatus::Running => Reason::IsDrivenFromOutside,
        JobStatus::Completed | JobStatus::Failed | JobStatus::Cancelled | JobStatus::Timeout => {
            Reason::HasEnded
        }
    }
}

fn detail(reason: Reason, job: &Job, queue: Option<&Position>, workers: Option<&Workers>) -> String {
    let worker =
        || job.assigned_worker_id.map_or_else(|| "its driver".to_owned(), |id| format!("worker {id}"));
    let count = workers.map_or(0, |workers| workers.total);
    match reason {
        Reason::WaitsForItsTime => {
            let due = job.next_retry_at.map(|due| due.to_rfc3339()).unwrap_or_default();
            let what = if job.retry_count > 0 { "its next attempt" } else { "its time" };
            format!("The job waits for {what}, due at {due}.")
        }
        Reason::IsDue => "The job is due and about to be assigned or queued.".to_owned(),
        Reason::NoLeader => "No replica leads at the moment, so no jobs are given to workers.".to_owned(),
        Reason::SchedulingIsOff => "scheduler.enabled is false: no jobs are given to workers.".to_owned(),
        Reason::IsPaused => format!("Jobs of model {} are held back until the pause ends.", job.model_name),
        Reason::NoWorkers => "No worker is online.".to_owned(),
        Reason::NoWorkerHasWhatItNeeds => {
            format!("None of the {count} workers has the model, GPU or memory that the job needs.")
        }
        Reason::WorkersAreTaken => {
            let lasting = |(obstacle, count): (&Obstacle, &u64)| (!obstacle.is_lasting()).then_some(*count);
            let taken: u64 = workers.map_or(0, |all| all.obstacles.iter().filter_map(lasting).sum());
            format!("{taken} of the {count} workers could run the job, and none of them can take it now.")
        }
        Reason::IsNext => match queue {
            Some(Position { ahead, at_least }) if *ahead > 0 => {
                let more = if *at_least { "more than " } else { "" };
                format!("A worker can take the job; {more}{ahead} queued jobs are ahead of it.")
            }
            _ => "A worker can take the job; it is about to be given it.".to_owned(),
        },
        Reason::IsAssigned => format!("It was given to {}, which has not said yet that it runs.", worker()),
        Reason::Runs => format!("It is run by {}.", worker()),
        Reason::IsDrivenFromOutside => "A client drives the job by PATCH.".to_owned(),
        Reason::HasEnded => {
            let why = job.error_message.as_deref().filter(|_| job.status != JobStatus::Completed);
            let why = why.map(|why| format!(": {why:.500}")).unwrap_or_default();
            format!("The job has ended as {}{why}", job.status)
        }
    }
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
