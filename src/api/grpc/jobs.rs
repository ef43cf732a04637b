//! `cortex.JobService`, the five calls of a worker.

use cortex_client::proto::job_service_server::JobService;
use cortex_client::proto::{
    HeartbeatRequest, HeartbeatResponse, JobCompletion, JobCompletionResponse, JobStatusUpdate,
    JobStatusUpdateResponse, PollJobRequest, PollJobResponse, SessionRequest, WorkerRegistration,
    WorkerRegistrationResponse,
};
use tonic::{Request, Response, Status, Streaming};

use super::parse;
use super::session::{self, SessionStream};
use crate::api::gate::GoodUntil;
use crate::api::problem::{Problem, status};
use crate::domain::ids::JobId;
use crate::domain::trace::TraceContext;
use crate::domain::transition::JobEvent;
use crate::domain::validate::FieldError;
use crate::services::command::Assignment;
use crate::services::error::ServiceError;
use crate::services::facade::Services;

type Answer<T> = Result<Response<T>, Status>;

/// Serves workers.
pub struct Jobs {
    services: Services,
}

impl Jobs {
    /// Serves them with these use cases.
    pub(super) fn new(services: Services) -> Self {
        Self { services }
    }

    /// Passes a report on. A refused one is an answer, not an error: the worker has to drop the job.
    async fn report(&self, id: JobId, event: JobEvent) -> Result<(bool, String), Status> {
        match self.services.report(id, event).await {
            Ok(applied) if applied.repeated => Ok((true, "was accepted before".to_owned())),
            Ok(_) => Ok((true, String::new())),
            Err(ServiceError::Conflict(conflict)) => Ok((false, conflict.to_string())),
            Err(error) => Err(status(error)),
        }
    }
}

#[tonic::async_trait]
impl JobService for Jobs {
    type SessionStream = SessionStream;

    async fn session(&self, request: Request<Streaming<SessionRequest>>) -> Answer<SessionStream> {
        session::open(&self.services, request).await.map(Response::new)
    }

    async fn register_worker(
        &self,
        request: Request<WorkerRegistration>,
    ) -> Answer<WorkerRegistrationResponse> {
        let peer = request.remote_addr().map(|address| address.ip());
        let draft = parse::registration(request.into_inner(), peer).map_err(invalid)?;
        let (worker, created) = self.services.register_worker(draft).await.map_err(status)?;
        let message = if created { "registered" } else { "registered again; earlier leases are lost" };
        Ok(Response::new(WorkerRegistrationResponse {
            worker_id: worker.id.to_string(),
            success: true,
            message: message.to_owned(),
        }))
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Answer<HeartbeatResponse> {
        let heartbeat = parse::heartbeat(&request.into_inner()).map_err(invalid)?;
        let answer = self.services.heartbeat(heartbeat).await.map_err(status)?;
        let texts = |ids: Vec<JobId>| ids.iter().map(JobId::to_string).collect();
        Ok(Response::new(HeartbeatResponse {
            acknowledged: true,
            pending_jobs: texts(answer.pending_jobs),
            cancelled_jobs: texts(answer.cancelled_jobs),
            draining: answer.draining,
        }))
    }

    /// Dropping the call loses no job: one that was on its way is given again, or goes back to the queue.
    async fn poll_job(&self, request: Request<PollJobRequest>) -> Answer<PollJobResponse> {
        let (worker_id, wait) = parse::poll(&request.into_inner()).map_err(invalid)?;
        let assignment = self.services.poll_job(worker_id, wait).await.map_err(status)?;
        Ok(Response::new(assignment.map(shown).unwrap_or_default()))
    }

    async fn update_job_status(&self, request: Request<JobStatusUpdate>) -> Answer<JobStatusUpdateResponse> {
        let (id, event) = parse::status_update(&request.into_inner(), None).map_err(invalid)?;
        let (acknowledged, message) = self.report(id, event).await?;
        Ok(Response::new(JobStatusUpdateResponse { acknowledged, message }))
    }

    async fn complete_job(&self, request: Request<JobCompletion>) -> Answer<JobCompletionResponse> {
        let (id, event) = parse::completion(&request.into_inner(), None).map_err(invalid)?;
        let (acknowledged, message) = self.report(id, event).await?;
        Ok(Response::new(JobCompletionResponse { acknowledged, message }))
    }
}

/// How long a stream may go on that is opened by this call.
pub(super) fn good_until<T>(request: &Request<T>) -> Result<GoodUntil, Status> {
    // The gate lets nothing pass without.
    request.extensions().get().copied().ok_or_else(|| status(ServiceError::Internal))
}

pub(super) fn invalid(errors: Vec<FieldError>) -> Status {
    Problem::invalid(errors).into()
}

pub(super) fn shown(assignment: Assignment) -> PollJobResponse {
    let trace = assignment.trace.as_deref();
    PollJobResponse {
        has_job: true,
        job_id: assignment.job_id.to_string(),
        job_name: assignment.job_name,
        model_name: assignment.model_name,
        model_version: assignment.model_version,
        input_data: assignment.input_data.bytes(),
        timeout_seconds: i32::try_from(assignment.timeout_seconds).unwrap_or(i32::MAX),
        execution_id: assignment.lease.to_string(),
        attempt_number: i32::try_from(assignment.attempt_number).unwrap_or(i32::MAX),
        traceparent: trace.map(TraceContext::traceparent).unwrap_or_default(),
        tracestate: trace.map(|trace| trace.tracestate().to_owned()).unwrap_or_default(),
    }
}
