//! `cortex.ClientService`: what clients call that prefer gRPC to REST.

use std::pin::Pin;
use std::time::Duration;

use cortex_client::proto::client_service_server::ClientService;
use cortex_client::proto::{
    CancelJobRequest, CancelJobResponse, GetJobRequest, GetStatsRequest, Job, JobChange, JobStats,
    ListJobsRequest, ListJobsResponse, RetryJobRequest, SubmitJobRequest, SubmitJobResponse,
    SubmitJobsRequest, SubmitJobsResponse, WatchJobRequest,
};
use futures::{Stream, StreamExt, stream};
use tokio::time::{Instant, sleep_until};
use tonic::{Request, Response, Status};

use super::jobs::{good_until, invalid};
use super::{replies, requests};
use crate::api::gate::GoodUntil;
use crate::api::problem::status;
use crate::domain::job::JobDraft;
use crate::services::error::ServiceError;
use crate::services::facade::{Services, Stored};
use crate::services::watching::JobWatch;

type Answer<T> = Result<Response<T>, Status>;

/// Longest that one stream may stay open, whatever deadline its caller names: a day.
const WATCH_AT_MOST: Duration = Duration::from_secs(86_400);

/// Serves clients.
pub struct Clients {
    services: Services,
}

impl Clients {
    /// Serves them with these use cases.
    pub(super) fn new(services: Services) -> Self {
        Self { services }
    }
}

#[tonic::async_trait]
impl ClientService for Clients {
    type WatchJobStream = Pin<Box<dyn Stream<Item = Result<JobChange, Status>> + Send>>;

    async fn submit_job(&self, request: Request<SubmitJobRequest>) -> Answer<SubmitJobResponse> {
        let SubmitJobRequest { job, idempotency_key } = request.into_inner();
        let mut noted = Vec::new();
        let draft = requests::draft(job.unwrap_or_default(), &mut noted);
        let key = requests::key(idempotency_key);
        let Stored { jobs, repeated } = self.services.submit_job(draft, noted, key).await.map_err(status)?;
        let job = jobs.into_iter().next().ok_or_else(|| status(ServiceError::Internal))?;
        Ok(Response::new(SubmitJobResponse { job: Some(replies::job(job)), repeated }))
    }

    async fn submit_jobs(&self, request: Request<SubmitJobsRequest>) -> Answer<SubmitJobsResponse> {
        let SubmitJobsRequest { jobs, idempotency_key } = request.into_inner();
        let mut noted = Vec::new();
        let mut drafts: Vec<JobDraft> = Vec::with_capacity(jobs.len());
        for (index, job) in jobs.into_iter().enumerate() {
            let mut wrong = Vec::new();
            drafts.push(requests::draft(job, &mut wrong));
            noted.extend(wrong.into_iter().map(|error| error.within("jobs", index)));
        }
        let key = requests::key(idempotency_key);
        let stored = self.services.submit_batch(drafts, noted, key).await.map_err(status)?;
        let jobs = stored.jobs.iter().map(replies::submitted).collect();
        Ok(Response::new(SubmitJobsResponse { jobs, repeated: stored.repeated }))
    }

    async fn get_job(&self, request: Request<GetJobRequest>) -> Answer<Job> {
        let id = requests::job_id(&request.into_inner().job_id).map_err(invalid)?;
        let job = self.services.queries.job(id).await.map_err(status)?;
        Ok(Response::new(replies::job(job)))
    }

    async fn list_jobs(&self, request: Request<ListJobsRequest>) -> Answer<ListJobsResponse> {
        let request = request.into_inner();
        let without_payloads = request.without_payloads;
        let wanted = requests::page(request).map_err(invalid)?;
        let jobs = self.services.queries.jobs(&wanted.filter, wanted.page, wanted.page_size).await;
        Ok(Response::new(replies::list(jobs.map_err(status)?, without_payloads)))
    }

    async fn cancel_job(&self, request: Request<CancelJobRequest>) -> Answer<CancelJobResponse> {
        let id = requests::job_id(&request.into_inner().job_id).map_err(invalid)?;
        self.services.cancel_job(id).await.map_err(status)?;
        Ok(Response::new(CancelJobResponse {}))
    }

    async fn retry_job(&self, request: Request<RetryJobRequest>) -> Answer<Job> {
        let id = requests::job_id(&request.into_inner().job_id).map_err(invalid)?;
        let job = self.services.retry_job(id).await.map_err(status)?;
        Ok(Response::new(replies::job(job)))
    }

    async fn watch_job(&self, request: Request<WatchJobRequest>) -> Answer<Self::WatchJobStream> {
        let limit =
            requests::deadline(request.metadata().as_ref()).unwrap_or(WATCH_AT_MOST).min(WATCH_AT_MOST);
        let good = good_until(&request)?;
        let WatchJobRequest { job_id, after } = request.into_inner();
        let (id, after) = requests::watch(&job_id, &after).map_err(invalid)?;
        let watch = self.services.watch_job(id, after).await.map_err(status)?;
        Ok(Response::new(watched(watch, limit, good)))
    }

    async fn get_stats(&self, _: Request<GetStatsRequest>) -> Answer<JobStats> {
        let stats = self.services.queries.stats().await.map_err(status)?;
        Ok(Response::new(replies::stats(&stats)))
    }
}

/// The changes of a job until its end, for as long as the caller waits and may.
fn watched(
    watch: Option<JobWatch>,
    limit: Duration,
    good: GoodUntil,
) -> <Clients as ClientService>::WatchJobStream {
    let until = Instant::now() + limit;
    let messages = stream::unfold(watch, move |watch| async move {
        let mut watch = watch?;
        let next = tokio::select! {
            biased;
            () = good.expired() => return Some((vec![Err(GoodUntil::status())], None)),
            () = sleep_until(until) => {
                return Some((vec![Err(Status::deadline_exceeded("the call's deadline has passed"))], None));
            }
            next = watch.next() => next,
        };
        match next {
            Some(Ok(updates)) => {
                let messages = updates.iter().map(|update| Ok(replies::change(update))).collect();
                Some((messages, Some(watch)))
            }
            Some(Err(error)) => Some((vec![Err(status(error))], None)),
            None if watch.has_ended() => None,
            None => Some((vec![Err(Status::unavailable("this replica is about to stop"))], None)),
        }
    });
    messages.flat_map(stream::iter).boxed()
}
