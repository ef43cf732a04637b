//! Reports: sent again, to one replica after the other, until the server has
//! answered.

use std::{sync::atomic::Ordering, time::Duration};

use tokio_util::sync::CancellationToken;
use tonic::Code;
use tracing::{debug, error, info, warn};

use super::{
    core::{CALL_DEADLINE, Core},
    held::HeldJob,
    link::{Connection, Failure, Remedy},
};
use crate::{
    backoff::Backoff,
    proto::{JobCompletion, JobStatusUpdate},
};

/// How long a completion is still sent after the server took the job away: it
/// will be refused, and if nobody is there to refuse it, it does not matter.
const LOST_REPORT_TIME: Duration = Duration::from_secs(10);

/// Which lease a report is about.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    pub(super) job_id: String,
    pub(super) execution_id: String,
    pub(super) attempt: i32,
}

/// What became of a report.
#[derive(Debug)]
pub(super) enum Delivery {
    Acknowledged,
    /// The lease is not this worker's any more, with the reason.
    Refused(String),
    /// The server cannot take it, now or later.
    Unacceptable(Failure),
    /// It was not answered, and then not needed any more.
    Obsolete,
}

/// A report of either kind.
#[derive(Debug, Clone)]
enum Report {
    Status(JobStatusUpdate),
    Completion(JobCompletion),
}

impl Core {
    /// Reports a job as `running` or `rejected`, until `obsolete` fires.
    pub(super) async fn report_status(
        &self,
        lease: &Lease,
        status: &str,
        message: &str,
        obsolete: &CancellationToken,
    ) -> Delivery {
        let update = JobStatusUpdate {
            job_id: lease.job_id.clone(),
            status: status.to_owned(),
            message: message.to_owned(),
            execution_id: lease.execution_id.clone(),
            attempt_number: lease.attempt,
            ..JobStatusUpdate::default()
        };
        self.deliver(Report::Status(update), obsolete).await
    }

    /// Gives a job back that was not started.
    pub(super) async fn reject(&self, lease: &Lease) {
        let delivery =
            self.report_status(lease, "rejected", "the worker is shutting down", &self.giving_up).await;
        debug!(job_id = %lease.job_id, ?delivery, "gave a job back");
    }

    /// Reports the end of a job and lets go of it.
    pub(super) async fn complete(&self, completion: JobCompletion, held: HeldJob) {
        let job_id = completion.job_id.clone();
        tokio::select! {
            () = self.deliver_completion(completion) => {}
            () = lost_for_long(&held.lost) => {
                info!(%job_id, "the end of a job that was taken away stays unreported");
            }
            () = self.giving_up.cancelled() => {
                self.unreported.fetch_add(1, Ordering::Relaxed);
                error!(%job_id, "the end of a job could not be reported before the worker stopped");
            }
        }
    }

    async fn deliver_completion(&self, completion: JobCompletion) {
        let job_id = &completion.job_id;
        let report = Report::Completion(completion.clone());
        let failure = match self.deliver(report, &self.giving_up).await {
            Delivery::Acknowledged => return debug!(%job_id, "a completion was acknowledged"),
            Delivery::Obsolete => return,
            Delivery::Refused(reason) => {
                return warn!(%job_id, %reason, "a completion was refused and is dropped");
            }
            Delivery::Unacceptable(failure) => failure,
        };
        error!(%job_id, %failure, "the server cannot take a completion");
        if completion.success && concerns_content(&failure) {
            // Left to itself the job would only end with its timeout.
            let report = Report::Completion(without_output(completion));
            let delivery = self.deliver(report, &self.giving_up).await;
            info!(?delivery, "reported the job as failed instead");
        }
    }

    /// Sends a report until it is answered, or it has become obsolete when an
    /// attempt ends without an answer.
    async fn deliver(&self, mut report: Report, obsolete: &CancellationToken) -> Delivery {
        let mut backoff = Backoff::default();
        loop {
            let connection = self.link.current();
            report.set_worker_id(&self.session.current().worker_id);
            let failure = match report.send(&connection).await {
                Ok((true, _)) => return Delivery::Acknowledged,
                Ok((false, reason)) => return Delivery::Refused(reason),
                Err(failure) => failure,
            };
            match failure.remedy() {
                Remedy::Elsewhere | Remedy::Later => {
                    debug!(%failure, "a report was not answered, it is sent again");
                    tokio::select! {
                        // The connection is left in any case.
                        biased;
                        () = self.recover(&connection, &failure, &mut backoff) => {}
                        () = obsolete.cancelled() => return Delivery::Obsolete,
                    }
                }
                Remedy::Stale | Remedy::Unknown => return Delivery::Refused(failure.to_string()),
                Remedy::Never => return Delivery::Unacceptable(failure),
            }
        }
    }
}

impl Report {
    fn set_worker_id(&mut self, id: &str) {
        let field = match self {
            Self::Status(update) => &mut update.worker_id,
            Self::Completion(completion) => &mut completion.worker_id,
        };
        id.clone_into(field);
    }

    /// Whether it was acknowledged, and what the server had to say.
    async fn send(&self, connection: &Connection) -> Result<(bool, String), Failure> {
        match self.clone() {
            Self::Status(update) => connection
                .call(CALL_DEADLINE, update, |mut client, request| async move {
                    client.update_job_status(request).await
                })
                .await
                .map(|answer| (answer.acknowledged, answer.message)),
            Self::Completion(completion) => connection
                .call(CALL_DEADLINE, completion, |mut client, request| async move {
                    client.complete_job(request).await
                })
                .await
                .map(|answer| (answer.acknowledged, answer.message)),
        }
    }
}

/// What to report when the server cannot take a job's output.
fn without_output(completion: JobCompletion) -> JobCompletion {
    JobCompletion {
        success: false,
        output_data: bytes::Bytes::new(),
        error_message: "the server did not accept the output".to_owned(),
        error_code: "bad_output".to_owned(),
        ..completion
    }
}

/// Whether a failure may be due to what a report contains rather than to who
/// sent it.
fn concerns_content(failure: &Failure) -> bool {
    match failure {
        Failure::Answered(status) | Failure::Broken(status) => {
            matches!(status.code(), Code::InvalidArgument | Code::OutOfRange)
        }
        Failure::Left | Failure::Silence => false,
    }
}

async fn lost_for_long(lost: &CancellationToken) {
    lost.cancelled().await;
    tokio::time::sleep(LOST_REPORT_TIME).await;
}
