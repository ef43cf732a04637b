//! How an operation on the ready queue can fail.

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::security;

/// Why an operation on the ready queue failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum QueueError {
    /// A leader with a higher epoch has written: the caller leads no more. Nothing was changed.
    #[error("the ready queue belongs to a leader with the higher epoch {stored}")]
    Fenced {
        /// The epoch that Redis holds.
        stored: i64,
    },
    /// Redis could not be reached, did not answer in time or cannot serve now. A change may have been
    /// made or not.
    #[error("Redis is unavailable: {}", reason(.0))]
    Unavailable(#[source] RedisError),
    /// Redis lacks what the scripts need.
    #[error("Redis {found} is too old: CORTEX needs Redis {needed} or newer")]
    TooOld {
        /// The version that was found.
        found: String,
        /// The oldest that will do.
        needed: u32,
    },
    /// Redis refused the request or gave an answer that makes no sense; trying again will not help.
    #[error("Redis gave an unexpected answer: {0}")]
    Protocol(String),
    /// The URL or the prefix cannot be used.
    #[error("the ready queue is misconfigured: {0}")]
    Config(String),
}

impl QueueError {
    /// Whether the same call may succeed later.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unavailable(_) => true,
            Self::Fenced { .. } | Self::TooOld { .. } | Self::Protocol(_) | Self::Config(_) => false,
        }
    }
}

impl From<RedisError> for QueueError {
    fn from(error: RedisError) -> Self {
        if error.code() == Some("FENCED") {
            let stored = error.detail().and_then(|detail| detail.split_whitespace().next()?.parse().ok());
            return stored
                .map_or_else(|| Self::Protocol(error.to_string()), |stored| Self::Fenced { stored });
        }
        if is_unavailable(&error) { Self::Unavailable(error) } else { Self::Protocol(error.to_string()) }
    }
}

/// What is wrong, as far as anybody may know. The whole story is in the error's source.
fn reason(error: &RedisError) -> &'static str {
    match error.kind() {
        ErrorKind::AuthenticationFailed => "it refuses the user or the password",
        ErrorKind::Server(ServerErrorKind::BusyLoading) => "it is loading its data",
        ErrorKind::Server(ServerErrorKind::ReadOnly) => "it is a replica, which takes no writes",
        ErrorKind::Server(ServerErrorKind::MasterDown) => "it is a replica that has lost its master",
        ErrorKind::Server(ServerErrorKind::ClusterDown) => "its cluster does not serve all slots",
        ErrorKind::Server(ServerErrorKind::NoPerm) => "its user may not do what the ready queue needs",
        ErrorKind::Io if error.is_timeout() => "it did not answer in time",
        ErrorKind::Io if security::is_tls_failure(error) => "TLS with it failed",
        ErrorKind::Io | ErrorKind::ClusterConnectionNotFound => "it cannot be reached",
        _ => match error.code() {
            Some("OOM") => "its memory is full",
            Some("MISCONF") => "it cannot save its data",
            Some("BUSY") => "it is busy with a script",
            Some("NOREPLICAS") => "it has fewer replicas than it wants",
            Some("NOAUTH" | "WRONGPASS") => "it refuses the user or the password",
            _ => "it does not serve",
        },
    }
}

/// A wrong password counts too: the operator can set it right in Redis while CORTEX keeps trying.
fn is_unavailable(error: &RedisError) -> bool {
    match error.kind() {
        // The second: none of the nodes of a cluster.
        ErrorKind::Io | ErrorKind::ClusterConnectionNotFound | ErrorKind::AuthenticationFailed => true,
        ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ReadOnly
            | ServerErrorKind::NoPerm,
        ) => true,
        // BUSY: a slow script of someone else; MISCONF: the disk; OOM: `maxmemory` without eviction.
        _ => matches!(error.code(), Some("BUSY" | "MISCONF" | "OOM" | "NOREPLICAS" | "NOAUTH" | "WRONGPASS")),
    }
}

#[cfg(test)]
mod tests {
    use redis::make_extension_error;

    use super::*;

    fn from_server(code: &str, detail: &str) -> QueueError {
        make_extension_error(code.to_owned(), Some(detail.to_owned())).into()
    }

    #[test]
    fn a_fence_names_the_stored_epoch_and_is_final() {
        let error = from_server("FENCED", "17");
        assert!(matches!(error, QueueError::Fenced { stored: 17 }), "{error:?}");
        assert!(!error.retryable());
    }

    #[test]
    fn what_passes_is_retryable_and_what_does_not_is_not() {
        for code in ["OOM", "MISCONF", "BUSY"] {
            assert!(from_server(code, "").retryable(), "{code}");
        }
        assert!(QueueError::from(RedisError::from(std::io::Error::other("gone"))).retryable());
        assert!(!from_server("WRONGTYPE", "a string").retryable());
    }
}
