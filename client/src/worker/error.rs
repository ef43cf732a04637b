//! Why a worker stopped, or never started.

use crate::endpoints::InvalidEndpoint;

/// Why [`Worker::run`](super::Worker::run) or
/// [`WorkerBuilder::build`](super::WorkerBuilder::build) failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkerError {
    /// An address that cannot be used.
    #[error(transparent)]
    Endpoint(#[from] InvalidEndpoint),
    /// A setting that is out of range.
    #[error("invalid {setting}: {reason}")]
    Config {
        /// The setting.
        setting: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The worker's own address could not be found or reserved.
    #[error("no identity could be reserved: {0}")]
    Identity(#[from] std::io::Error),
    /// The server does not want this worker.
    #[error("the registration was refused: {0}")]
    Refused(String),
    /// The drain ended before every completion was acknowledged.
    #[error("stopped with {jobs} unreported jobs; their leases run out at the server")]
    Unreported {
        /// How many jobs.
        jobs: usize,
    },
}
