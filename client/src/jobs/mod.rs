//! The REST surface, typed.

mod client;
mod error;
mod models;
mod queues;
mod transport;

pub use client::{JobsClient, JobsClientBuilder};
pub use error::{ClientError, FieldError, Problem};
pub use models::{
    ClusterMember, ClusterStatus, Execution, Explanation, Health, Job, JobFilter, JobList, JobStats,
    JobUpdate, NewJob, WorkerInfo, WorkerList,
};
pub use queues::{NewMember, Paused, PriorityView, QueueView};
