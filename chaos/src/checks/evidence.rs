//! A history, indexed once for all judges.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::history::{
    Act, Audit, Call, Ending, Execution, FaultRun, Final, History, Job, Outcome, Request, Says,
};

/// Contradiction between two looks at the difference of the clocks that their slow drift explains, in microseconds.
const DRIFT: i64 = 100_000;

/// All that is known of a run.
pub(super) struct Evidence<'a> {
    /// As it was read.
    pub history: &'a History,
    /// What the stores say; `None` if the run ended before they were read.
    pub stores: Option<Stores<'a>>,
    /// How times of the stores and of the harness are to be compared, if they can be.
    pub clock: Option<Clock>,
    /// Every submission of a job, by `input_data.number`, in the order of sending.
    pub submissions: HashMap<u64, Vec<&'a Call>>,
    /// Reports with their answers, in the order of sending.
    pub reports: Vec<Report<'a>>,
    /// Runs by workers, by lease.
    pub runs: HashMap<Uuid, Vec<Run<'a>>>,
}

/// What the stores say, by job and by lease.
pub(super) struct Stores<'a> {
    /// As it was read.
    pub last: &'a Final,
    /// By job.
    pub trails: HashMap<Uuid, Trail<'a>>,
    /// By token.
    pub leases: HashMap<Uuid, Lease<'a>>,
}

/// What happened to one job.
#[derive(Default)]
pub(super) struct Trail<'a> {
    /// Its row.
    pub job: Option<&'a Job>,
    /// Its executions, by the time of their grant.
    pub executions: Vec<&'a Execution>,
    /// Every change, in order.
    pub changes: Vec<&'a Audit>,
    /// Calls to cancel it, whatever came of them.
    pub cancels: Vec<&'a Call>,
    /// Calls to try it again, whatever came of them.
    pub retries: Vec<&'a Call>,
}

/// What happened to one lease.
#[derive(Default)]
pub(super) struct Lease<'a> {
    /// Its row.
    pub execution: Option<&'a Execution>,
    /// The changes of jobs by which it was granted: one, if all is well.
    pub granted: Vec<&'a Audit>,
    /// The change by which it ended.
    pub ended: Option<&'a Audit>,
    /// Until when it was good, as last said.
    pub expires: Option<DateTime<Utc>>,
}

/// A report with its answer.
pub(super) struct Report<'a> {
    /// Who reports.
    pub worker: &'a str,
    /// Its number.
    pub number: u64,
    /// The job.
    pub job: Uuid,
    /// The lease.
    pub lease: Uuid,
    /// What it says.
    pub says: &'a Says,
    /// Index of the replica; `None` on a session.
    pub replica: Option<usize>,
    /// When it was sent, or a moment before.
    pub sent: u64,
    /// When it was answered.
    pub answered: Option<u64>,
    /// Whether it was acknowledged, if an answer came.
    pub acknowledged: Option<bool>,
}

/// A run of a job by a worker, in the worker's words.
pub(super) struct Run<'a> {
    /// Who.
    pub worker: &'a str,
    /// Which job.
    pub job: Uuid,
    /// Which attempt.
    pub attempt: i32,
    /// `input_data.number`.
    pub number: u64,
    /// When it began.
    pub began: u64,
    /// When and how it ended.
    pub ended: Option<(u64, Ending)>,
}

/// The wall clock of PostgreSQL less the clock of the harness, in microseconds: somewhere in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clock {
    low: i64,
    high: i64,
}

/// Whether a job with this status has come to an end.
pub(super) fn is_end(status: &str) -> bool {
    matches!(status, "completed" | "failed" | "cancelled" | "timeout")
}

/// Whether a call may have had an effect.
pub(super) fn attempted(call: &Call) -> bool {
    !matches!(call.outcome, Outcome::Refused { .. })
}

/// A time of the harness, as it is told.
pub(super) fn time(at: u64) -> String {
    format!("{}.{:03} s", at / 1_000_000, at / 1_000 % 1_000)
}

/// Whether a fault was under way at this time, or not long enough ago.
pub(super) fn in_fault(fault: &FaultRun, at: u64, after: u64) -> bool {
    let over = fault.over.or(fault.healed).unwrap_or(u64::MAX);
    fault.begun <= at && at <= over.saturating_add(after)
}

impl<'a> Evidence<'a> {
    /// Indexes a history.
    pub fn of(history: &'a History) -> Self {
        let mut submissions: HashMap<u64, Vec<&Call>> = HashMap::new();
        for call in &history.calls {
            if let Request::Submit { numbers, .. } = &call.request {
                for number in numbers {
                    submissions.entry(*number).or_default().push(call);
                }
            }
        }
        let stores = history.last.as_ref().map(|last| Stores::of(last, &history.calls));
        let clock = stores.as_ref().and_then(|stores| Clock::of(&submissions, stores));
        let (reports, runs) = acts(history);
        Self { history, stores, clock, submissions, reports, runs }
    }
}

fn acts(history: &History) -> (Vec<Report<'_>>, HashMap<Uuid, Vec<Run<'_>>>) {
    let (mut reports, mut places) = (Vec::new(), HashMap::new());
    let mut runs: HashMap<Uuid, Vec<Run<'_>>> = HashMap::new();
    for (at, worker, act) in &history.acts {
        match act {
            Act::Start { job, lease, attempt, number } => runs.entry(*lease).or_default().push(Run {
                worker,
                job: *job,
                attempt: *attempt,
                number: *number,
                began: *at,
                ended: None,
            }),
            Act::End { lease, end, .. } => {
                let own = |run: &&mut Run<'_>| run.worker == worker && run.ended.is_none();
                if let Some(run) = runs.entry(*lease).or_default().iter_mut().rfind(own) {
                    run.ended = Some((*at, *end));
                }
            }
            Act::Report { report, job, lease, says, replica, .. } => {
                places.insert(*report, reports.len());
                reports.push(Report {
                    worker,
                    number: *report,
                    job: *job,
                    lease: *lease,
                    says,
                    replica: *replica,
                    sent: *at,
                    answered: None,
                    acknowledged: None,
                });
            }
            Act::Answer { report, acknowledged, .. } => {
                if let Some(place) = places.get(report) {
                    let report: &mut Report<'_> = &mut reports[*place];
                    (report.answered, report.acknowledged) = (Some(*at), *acknowledged);
                }
            }
            Act::Effect { .. } | Act::Attached { .. } | Act::Gone { .. } => {}
        }
    }
    (reports, runs)
}

impl Report<'_> {
    /// Who was told, in words.
    pub fn whom(&self) -> String {
        self.replica.map_or_else(|| "its session".to_owned(), |replica| format!("replica {}", replica + 1))
    }
}

impl<'a> Stores<'a> {
    fn of(last: &'a Final, calls: &'a [Call]) -> Self {
        let mut trails: HashMap<Uuid, Trail<'a>> = HashMap::with_capacity(last.jobs.len());
        for job in &last.jobs {
            trails.entry(job.id).or_default().job = Some(job);
        }
        let mut leases: HashMap<Uuid, Lease<'a>> = HashMap::with_capacity(last.executions.len());
        for execution in &last.executions {
            trails.entry(execution.job_id).or_default().executions.push(execution);
            let lease = leases.entry(execution.id).or_default();
            lease.execution = Some(execution);
            lease.expires = execution.lease_expires_at;
        }
        for change in &last.audit {
            trails.entry(change.job_id).or_default().changes.push(change);
            if change.old_lease != change.new_lease {
                if let Some(lease) = change.old_lease {
                    leases.entry(lease).or_default().ended.get_or_insert(change);
                }
                if let Some(lease) = change.new_lease {
                    leases.entry(lease).or_default().granted.push(change);
                }
            }
        }
        for call in calls {
            match &call.request {
                Request::Cancel { job } => trails.entry(*job).or_default().cancels.push(call),
                Request::Retry { job } => trails.entry(*job).or_default().retries.push(call),
                _ => {}
            }
        }
        Self { last, trails, leases }
    }

    /// The jobs in the order of their submission.
    pub fn in_order(&self) -> impl Iterator<Item = (&'a Job, &Trail<'a>)> {
        self.last.jobs.iter().filter_map(|job| Some((job, self.trails.get(&job.id)?)))
    }
}

impl Trail<'_> {
    /// Whether a call to try the job again may have had an effect.
    pub fn may_be_retried(&self) -> bool {
        self.retries.iter().any(|call| attempted(call))
    }
}

impl Clock {
    /// A job is stored between the first request for it and any answer that names it.
    fn of(submissions: &HashMap<u64, Vec<&Call>>, stores: &Stores<'_>) -> Option<Self> {
        let mut clock = Self { low: i64::MIN, high: i64::MAX };
        for job in &stores.last.jobs {
            let number = job.number.and_then(|number| u64::try_from(number).ok());
            let Some(calls) = number.and_then(|number| submissions.get(&number)) else { continue };
            let Some(first) = calls.first() else { continue };
            let stored = job.submitted_at.timestamp_micros();
            clock.high = clock.high.min(stored - first.start.cast_signed());
            let answered = calls.iter().filter(|call| matches!(call.outcome, Outcome::Ok { .. }));
            if let Some(end) = answered.filter_map(|call| call.end).min() {
                clock.low = clock.low.max(stored - end.cast_signed());
            }
        }
        if clock.low == i64::MIN || clock.high == i64::MAX || clock.low - clock.high > DRIFT {
            return None;
        }
        Some(Self { low: clock.low.min(clock.high), high: clock.high.max(clock.low) })
    }

    /// The earliest time of the harness at which the stores' clock may have shown this.
    pub fn earliest(self, at: DateTime<Utc>) -> i64 {
        at.timestamp_micros() - self.high
    }

    /// The latest.
    pub fn latest(self, at: DateTime<Utc>) -> i64 {
        at.timestamp_micros() - self.low
    }

    /// Whether it was certainly before this time of the harness.
    pub fn is_before(self, at: DateTime<Utc>, harness: u64) -> bool {
        self.latest(at) < harness.cast_signed()
    }

    /// Whether it was certainly after this time of the harness.
    pub fn is_after(self, at: DateTime<Utc>, harness: u64) -> bool {
        self.earliest(at) > harness.cast_signed()
    }

    /// Whether it may have been during this call; one without an end goes on.
    pub fn may_be_within(self, at: DateTime<Utc>, start: u64, end: Option<u64>) -> bool {
        !self.is_before(at, start) && !end.is_some_and(|end| self.is_after(at, end))
    }

    /// About when it was, told in times of the harness.
    pub fn tell(self, at: DateTime<Utc>) -> String {
        let middle = self.earliest(at).midpoint(self.latest(at));
        time(u64::try_from(middle).unwrap_or(0))
    }
}
