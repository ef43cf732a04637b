//! Reports about jobs, and what becomes of those that tell of an end.

use super::JobFailure;
use crate::proto::session_report::Report;
use crate::proto::{JobCompletion, JobStatusUpdate};

/// The end of a job, as it was reported, and what became of the report. See `Handler::settled`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// The job's id.
    pub job_id: String,
    /// The lease token that it ran under.
    pub execution_id: String,
    /// From 1.
    pub attempt: i32,
    /// The failure that was reported; `None` if it was a success. Not always what the handler has answered: a job
    /// that was stopped, or whose output the server does not take, is reported as failed.
    pub failure: Option<JobFailure>,
    /// What became of the report.
    pub outcome: ReportOutcome,
}

/// What became of a report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReportOutcome {
    /// The server has accepted it, now or when it was sent before.
    Acknowledged,
    /// The server does not want it, mostly because the lease is not this worker's any more.
    Refused {
        /// Why, for people.
        reason: String,
    },
    /// Nobody knows: no answer came before the worker had to register anew or gave up. It may have been accepted;
    /// the job's state says so.
    Unknown,
}

impl Settled {
    /// Whether the job is completed, by this very attempt.
    pub fn is_completed(&self) -> bool {
        self.failure.is_none() && self.outcome == ReportOutcome::Acknowledged
    }

    /// What became of a report; `None` if it tells of no end.
    pub(super) fn of(report: Report, outcome: ReportOutcome) -> Option<Self> {
        let Report::Completion(completion) = report else { return None };
        let JobCompletion { job_id, execution_id, attempt_number: attempt, .. } = completion;
        let given = |text: String| (!text.is_empty()).then_some(text);
        let failure = (!completion.success).then(|| JobFailure {
            message: completion.error_message,
            code: given(completion.error_code),
            stack: given(completion.error_stack),
        });
        Some(Self { job_id, execution_id, attempt, failure, outcome })
    }
}

/// About how many bytes a report takes.
pub(super) fn size(report: &Report) -> usize {
    256 + match report {
        Report::Update(update) => update.message.len(),
        Report::Completion(completion) => {
            completion.output_data.len() + completion.error_stack.len() + completion.error_message.len()
        }
    }
}

pub(super) fn lease_of(report: &Report) -> &str {
    match report {
        Report::Update(update) => &update.execution_id,
        Report::Completion(completion) => &completion.execution_id,
    }
}

pub(super) fn update(
    lease: &str,
    job_id: &str,
    attempt: i32,
    status: &str,
    message: &str,
) -> JobStatusUpdate {
    JobStatusUpdate {
        job_id: job_id.to_owned(),
        status: status.to_owned(),
        message: message.to_owned(),
        execution_id: lease.to_owned(),
        attempt_number: attempt,
        ..JobStatusUpdate::default()
    }
}
