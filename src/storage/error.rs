//! What can go wrong in PostgreSQL, sorted by what a caller can do about it.

use thiserror::Error;

use crate::security::{self, Unsealed};

/// Most bytes that the jobs of one page may have.
pub(super) const PAGE_BYTES: usize = 64 << 20;
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
    /// The jobs of a page take more memory together than is given for one.
    #[error("must be less here: the jobs of the page have more than {} MiB together", PAGE_BYTES >> 20)]
    PageTooLarge,
    /// The URL of the database cannot be used.
    #[error("the URL of the database cannot be used: {}", .0.to_string().trim_start_matches("error with configuration: "))]
    Url(#[source] sqlx::Error),
    /// PostgreSQL lacks what the statements need.
    #[error("PostgreSQL {found} is too old: CORTEX needs PostgreSQL 14 or newer")]
    TooOld {
        /// The version that was found.
        found: String,
    },
    /// PostgreSQL is away, overloaded, lets nobody in, or gave up in favour of another transaction.
    #[error("PostgreSQL is unavailable: {}", reason(.0))]
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

    /// What went wrong with a COMMIT, or a statement that commits by itself: where the connection broke, nobody knows
    /// whether it did. A pooler tells so in the name of its server, by an error of class 08.
    pub(super) fn of_commit(error: sqlx::Error) -> Self {
        let broke = match &error {
            sqlx::Error::Database(error) => error.code().is_some_and(|code| code.starts_with("08")),
            _ => true,
        };
        match Self::from(error) {
            Self::Unavailable(error) if broke => Self::OutcomeUnknown(error),
            error => error,
        }
    }

    /// Waiting will not help: PostgreSQL is too old, lets this user not in, or has no such database.
    pub fn is_final(&self) -> bool {
        match self {
            Self::TooOld { .. } | Self::Url(_) | Self::Unexpected(_) => true,
            Self::Unavailable(sqlx::Error::Database(error)) => {
                error.code().is_some_and(|code| code.starts_with("28") || code == "3D000")
            }
            Self::Unavailable(_)
            | Self::Fenced
            | Self::ForeignCluster(_)
            | Self::OutcomeUnknown(_)
            | Self::PageTooLarge
            | Self::Rejected(_) => false,
        }
    }

    /// Nothing was done, and the same call may succeed later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unavailable(_) => true,
            Self::Fenced
            | Self::ForeignCluster(_)
            | Self::OutcomeUnknown(_)
            | Self::TooOld { .. }
            | Self::Url(_)
            | Self::PageTooLarge
            | Self::Rejected(_)
            | Self::Unexpected(_) => false,
        }
    }
}

/// What is wrong, as far as anybody may know. The whole story is in the error's source.
fn reason(error: &sqlx::Error) -> &'static str {
    match error {
        sqlx::Error::Database(error) => reason_given(&error.code().unwrap_or_default()),
        sqlx::Error::PoolTimedOut => "no connection was free or could be opened in time",
        sqlx::Error::Tls(_) => "TLS with it failed",
        sqlx::Error::Io(error) if security::is_tls_failure(error) => "TLS with it failed",
        sqlx::Error::Io(_) => "it cannot be reached",
        _ => "it does not serve",
    }
}

/// The same by the SQLSTATE that PostgreSQL gave.
fn reason_given(code: &str) -> &'static str {
    match (code, code.get(..2).unwrap_or_default()) {
        ("53100", _) => "its disk is full",
        ("53200", _) => "it is out of memory",
        ("53300", _) => "it takes no more connections",
        ("25006" | "0A000", _) => "it is read-only, as a standby is",
        ("57014", _) => "a statement took too long",
        ("55P03", _) => "a lock was not free in time",
        ("57P01" | "57P02" | "57P03", _) => "it is starting or stopping",
        ("3D000", _) => "it has no such database",
        (_, "28") => "it refuses the user or the password",
        (_, "08") => "the connection broke",
        (_, "40") => "other transactions were in the way",
        _ => "it does not serve",
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
            // Data exceptions, broken constraints, and what is larger than PostgreSQL takes.
            (_, "22" | "23" | "54") => Self::Rejected(error),
            // Connection, login, resources, operator intervention, system, serialization, lock timeout; no such
            // database, a server that takes no writes, idle for too long.
            (_, "08" | "28" | "53" | "57" | "58" | "40" | "55")
            | ("3D000" | "25006" | "25P03" | "25P04", _) => Self::Unavailable(error),
            _ => Self::Unexpected(error),
        }
    }
}
