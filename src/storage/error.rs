//! What can go wrong in PostgreSQL, sorted by what a caller can do about it.

use thiserror::Error;

use crate::security::Unsealed;

/// SQLSTATE raised by the fence.
const FENCED: &str = "CX001";
/// SQLSTATE raised when the database belongs to another Raft group.
const FOREIGN_CLUSTER: &str = "CX002";

/// A failed statement or transaction.
#[derive(Debug, Error)]
pub enum StorageError {
    /// Another leader has taken over; stop leading.
    #[error("the write was fenced off: another leader has taken over")]
    Fenced,
    /// The database belongs to another Raft group.
    #[error("{0}")]
    ForeignCluster(String),
    /// The connection broke while COMMIT was under way.
    #[error("the outcome of a commit is unknown")]
    OutcomeUnknown(#[source] sqlx::Error),
    /// PostgreSQL did not accept the values; the same values will never be accepted.
    #[error("PostgreSQL refused the values")]
    Rejected(#[source] sqlx::Error),
    /// PostgreSQL is away, overloaded, or gave up in favour of another transaction.
    #[error("PostgreSQL is unavailable")]
    Unavailable(#[source] sqlx::Error),
    /// A statement or row that this code does not expect: a defect, or a database of another version.
    #[error("PostgreSQL and this version of CORTEX disagree")]
    Unexpected(#[source] sqlx::Error),
}

impl StorageError {
    /// PostgreSQL did not answer in time; nobody knows what it did.
    pub(crate) fn timed_out() -> Self {
        Self::OutcomeUnknown(sqlx::Error::PoolTimedOut)
    }

    /// Nothing was done, and the same call may succeed later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unavailable(_) => true,
            Self::Fenced
            | Self::ForeignCluster(_)
            | Self::OutcomeUnknown(_)
            | Self::Rejected(_)
            | Self::Unexpected(_) => false,
        }
    }
}

/// What cannot be sealed is not stored.
impl From<Unsealed> for StorageError {
    fn from(error: Unsealed) -> Self {
        Self::Unavailable(sqlx::Error::Encode(error.into()))
    }
}

impl From<sqlx::Error> for StorageError {
    fn from(error: sqlx::Error) -> Self {
        let sqlx::Error::Database(database) = &error else {
            return match error {
                sqlx::Error::ColumnDecode { .. }
                | sqlx::Error::ColumnNotFound(_)
                | sqlx::Error::Decode(_)
                | sqlx::Error::Encode(_)
                | sqlx::Error::TypeNotFound { .. } => Self::Unexpected(error),
                _ => Self::Unavailable(error),
            };
        };
        let code = database.code().unwrap_or_default();
        match (code.as_ref(), code.get(..2).unwrap_or_default()) {
            (FENCED, _) => Self::Fenced,
            (FOREIGN_CLUSTER, _) => Self::ForeignCluster(database.message().to_owned()),
            // Data exceptions and broken constraints.
            (_, "22" | "23") => Self::Rejected(error),
            // Connection, resources, operator intervention, system, serialization, lock timeout.
            (_, "08" | "53" | "57" | "58" | "40" | "55") | ("25P03" | "25P04", _) => Self::Unavailable(error),
            _ => Self::Unexpected(error),
        }
    }
}
