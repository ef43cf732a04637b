//! Typed client and worker runtime for CORTEX.
//!
//! | module | what it gives |
//! | --- | --- |
//! | [`jobs`] | [`JobsClient`]: the REST surface, typed, over any number of replicas |
//! | [`worker`] | [`Worker`]: runs a [`Handler`] for every job it is given, through failovers |
//! | [`exec`] | [`ExecHandler`]: a shell command per job |
//! | [`sleep`] | [`SleepHandler`]: for demonstrations and measurements |
//! | [`proto`] | the generated gRPC messages and client |
//!
//! # Submitting
//!
//! ```no_run
//! # async fn example() -> Result<(), cortex_client::ClientError> {
//! use cortex_client::{JobsClient, NewJob};
//!
//! let client = JobsClient::new("http://127.0.0.1:8080,http://127.0.0.1:8081")?;
//! let job = client
//!     .submit(&NewJob::new("greet", "echo", "1", serde_json::json!({"name": "Ada"})))
//!     .await?;
//! println!("{} is {}", job.id, client.get(&job.id).await?.status);
//! # Ok(())
//! # }
//! ```
//!
//! # Working
//!
//! ```no_run
//! # async fn example() -> Result<(), cortex_client::WorkerError> {
//! use cortex_client::{AssignedJob, CancellationToken, Handler, Identity, JobFailure, Worker};
//!
//! struct Echo;
//!
//! impl Handler for Echo {
//!     async fn run(
//!         &self,
//!         job: AssignedJob,
//!         _cancel: CancellationToken,
//!     ) -> Result<serde_json::Value, JobFailure> {
//!         job.input()
//!     }
//! }
//!
//! let worker = Worker::builder()
//!     .endpoints("http://127.0.0.1:9090,http://127.0.0.1:9091")
//!     .identity(Identity::reserve("echo-1")?)
//!     .models(["echo"])
//!     .slots(4)
//!     .build()?;
//! let shutdown = CancellationToken::new();
//! worker.run(Echo, shutdown).await
//! # }
//! ```
//!
//! # Effects outside
//!
//! A job may run more than once: a worker that is cut off does not know that its lease is lost, and another one runs
//! the job meanwhile. Only one of them has its success acknowledged, and hears so:
//!
//! ```no_run
//! use cortex_client::{AssignedJob, CancellationToken, Handler, JobFailure, Settled};
//!
//! struct Invoices {
//!     to_send: std::sync::mpsc::Sender<String>,
//! }
//!
//! impl Handler for Invoices {
//!     async fn run(
//!         &self,
//!         job: AssignedJob,
//!         _cancel: CancellationToken,
//!     ) -> Result<serde_json::Value, JobFailure> {
//!         job.input()
//!     }
//!
//!     fn settled(&self, end: Settled) {
//!         if end.is_completed() {
//!             let _ = self.to_send.send(end.job_id);
//!         }
//!     }
//! }
//! ```
//!
//! # Features
//!
//! `server` (off by default) adds `proto::job_service_server`, the trait and
//! router for whoever serves the protocol.
//!
//! # What it does not do
//!
//! No TLS yet, and no knowledge of who leads: any replica takes any request.

#![warn(clippy::expect_used, clippy::unwrap_used)]

mod backoff;
mod endpoints;
pub mod exec;
pub mod jobs;
pub mod proto;
mod random;
pub mod sleep;
pub mod worker;

pub use endpoints::InvalidEndpoint;
pub use exec::ExecHandler;
pub use jobs::{
    ClientError, ClusterMember, ClusterStatus, Execution, Explanation, FieldError, Health, Job, JobFilter,
    JobList, JobStats, JobUpdate, JobsClient, JobsClientBuilder, NewJob, NewMember, Paused, PriorityView,
    Problem, QueueView, WorkerInfo, WorkerList,
};
pub use sleep::SleepHandler;
pub use tokio_util::sync::CancellationToken;
pub use worker::{
    AssignedJob, Handler, Identity, JobFailure, ReportOutcome, Settled, Worker, WorkerBuilder, WorkerError,
};
