//! What can go wrong with a command or a query, in terms that a caller can act on.

use std::fmt::Display;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::domain::job::JobStatus;
use crate::domain::transition::Refusal;
use crate::domain::validate::FieldError;
use crate::storage::StorageError;

/// Why a command or query was not carried out. Texts are public; causes are logged where they happen.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum ServiceError {
    /// Fields break their bounds.
    #[error("{} of the request's fields are invalid", .0.len())]
    Invalid(Vec<FieldError>),
    /// No such thing.
    #[error("{kind} {id} does not exist")]
    NotFound {
        /// Job, worker or member.
        kind: String,
        /// The id that was asked for.
        id: String,
    },
    /// The caller may not do this.
    #[error("{0}")]
    Forbidden(String),
    /// The state machine does not allow it.
    #[error("{0}")]
    Conflict(Conflict),
    /// The ready queue is full.
    #[error("there is no room: the queue holds {limit} jobs at the most")]
    QueueFull {
        /// `queue.max_queue_size`.
        limit: u64,
    },
    /// More work arrives than can be stored; nothing was done.
    #[error("the leader has more requests waiting than it may hold")]
    Overloaded,
    /// More event streams than a replica keeps open.
    #[error("this replica has its maximum of {limit} event streams open")]
    TooManyStreams {
        /// How many there may be.
        limit: u64,
    },
    /// Nobody leads at the moment; nothing was done.
    #[error("there is no leader at the moment")]
    NoLeader,
    /// A store did not answer; nothing was done.
    #[error("{reason}")]
    Unavailable {
        /// Which one, and what is wrong with it.
        #[serde(alias = "store")]
        reason: String,
    },
    /// The request may or may not have been carried out.
    #[error("the outcome of the request is unknown: the connection to the leader or to PostgreSQL broke")]
    OutcomeUnknown,
    /// A defect; the cause is in the log.
    #[error("an internal error happened; the log of the replica tells more")]
    Internal,
}

/// Why a transition was refused.
#[derive(Debug, Clone, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum Conflict {
    /// The job's state does not allow it.
    #[error("a job that is {from} cannot be {action}")]
    State {
        /// The state that the job is in.
        from: JobStatus,
        /// What was tried.
        action: String,
    },
    /// A worker's lease stands in the way.
    #[error("worker {0} holds the job; only its reports and a cancellation can change it")]
    Held(String),
    /// An idempotency key stands for another submission.
    #[error("the idempotency key was used for another submission in the last 24 hours")]
    KeyInUse,
    /// The reporter's lease is not the current one.
    #[error("the lease is not current: {0}")]
    StaleLease(String),
    /// The group of replicas does not allow the change.
    #[error("{0}")]
    Group(String),
    /// The worker was taken out of service.
    #[error("worker {0} was removed; it may register again")]
    Removed(String),
}

impl ServiceError {
    /// Nothing was done, and the same request may succeed later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::NoLeader
            | Self::Unavailable { .. }
            | Self::Overloaded
            | Self::TooManyStreams { .. }
            | Self::QueueFull { .. } => true,
            Self::Invalid(_)
            | Self::NotFound { .. }
            | Self::Forbidden(_)
            | Self::Conflict(_)
            | Self::OutcomeUnknown
            | Self::Internal => false,
        }
    }

    /// A job that is not there.
    pub fn no_job(id: impl ToString) -> Self {
        Self::NotFound { kind: "job".to_owned(), id: id.to_string() }
    }

    /// A worker that somebody else has registered.
    pub fn not_owner(id: impl Display) -> Self {
        Self::Forbidden(format!("worker {id} was registered by somebody else"))
    }

    /// A replica that is not there.
    pub fn no_member(id: impl ToString) -> Self {
        Self::NotFound { kind: "member".to_owned(), id: id.to_string() }
    }

    /// A worker that is not there.
    pub fn no_worker(id: impl ToString) -> Self {
        Self::NotFound { kind: "worker".to_owned(), id: id.to_string() }
    }
}

impl From<Refusal> for ServiceError {
    fn from(refusal: Refusal) -> Self {
        Self::Conflict(match refusal {
            Refusal::NotHolder => {
                Conflict::StaleLease("another attempt has replaced it, or it has ended".to_owned())
            }
            Refusal::LeaseExpired => Conflict::StaleLease("its deadline has passed".to_owned()),
            Refusal::Illegal { from, action } => Conflict::State { from, action: action.to_owned() },
            Refusal::HeldByWorker(worker) => Conflict::Held(worker.to_string()),
        })
    }
}

impl From<StorageError> for ServiceError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Fenced | StorageError::ForeignCluster(_) => Self::NoLeader,
            StorageError::OutcomeUnknown(_) => Self::OutcomeUnknown,
            StorageError::Unavailable(ref cause) => {
                tracing::warn!(%cause, "PostgreSQL did not answer a request.");
                Self::Unavailable { reason: error.to_string() }
            }
            StorageError::PageTooLarge => {
                Self::Invalid(vec![FieldError::new("page_size", error.to_string())])
            }
            StorageError::TooOld { .. } | StorageError::Url(_) => {
                Self::Unavailable { reason: error.to_string() }
            }
            StorageError::Rejected(cause) | StorageError::Unexpected(cause) => {
                tracing::error!(%cause, "PostgreSQL refused a statement that should be valid.");
                Self::Internal
            }
        }
    }
}
