//! How an operation on the ready queue can fail.

use redis::{ErrorKind, RedisError, ServerErrorKind};

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
    #[error("Redis is unavailable")]
    Unavailable(#[source] RedisError),
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
            Self::Fenced { .. } | Self::Protocol(_) | Self::Config(_) => false,
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

/// A wrong password counts too: the operator can set it right in Redis while CORTEX keeps trying.
fn is_unavailable(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Io | ErrorKind::AuthenticationFailed => true,
        ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::TryAgain
            | ServerErrorKind::ReadOnly,
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
