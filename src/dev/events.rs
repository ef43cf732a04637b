//! What happens to a cluster while it starts and runs.

use std::path::PathBuf;
use std::sync::Arc;

/// Something that the user of a [`DevCluster`](super::DevCluster) may want to know at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DevEvent {
    /// A step of the start is done.
    Progress(String),
    /// Something is not as asked for, but works.
    Notice(String),
    /// A child process ended that was not told to by [`DevCluster::stop`](super::DevCluster::stop).
    Exited {
        /// For example `replica 1` or `worker demo-1`.
        name: String,
        /// Its process id.
        pid: u32,
        /// How it ended, for example `signal: 9 (SIGKILL)`.
        status: String,
        /// Its log.
        log: PathBuf,
    },
}

/// Takes events, from any thread; must not block.
pub(super) type EventSink = Arc<dyn Fn(DevEvent) + Send + Sync>;

pub(super) fn ignore() -> EventSink {
    Arc::new(|_| {})
}
