//! Times and limits of forwarding.

use std::fmt;
use std::time::Duration;

use tonic::transport::ClientTlsConfig;

/// How commands are carried.
#[derive(Clone)]
pub struct ForwardConfig {
    /// `cluster.forward_timeout_ms`: how long a command looks for a leader that takes it, tries again
    /// included. A long poll has its own wait on top. Default 2 s.
    pub timeout: Duration,
    /// How long a leader that has the command may take to answer while its connection lives; again a
    /// long poll's wait comes on top. Default 10 s.
    pub answer_timeout: Duration,
    /// How long a connection may take to come about, and as long again until the leader accepts the
    /// stream. Default 500 ms.
    pub connect_timeout: Duration,
    /// How often a silent connection is probed. Default 1 s.
    pub keep_alive_interval: Duration,
    /// How long a probe may stay unanswered before the connection counts as broken. Default 1 s.
    pub keep_alive_timeout: Duration,
    /// `cluster.secret`: shown to the leader, and asked of followers. Never logged.
    pub secret: Option<String>,
    /// `cluster.tls`: what is shown to the leader, and who must have signed what it shows.
    pub tls: Option<ClientTlsConfig>,
    /// Bounds of queues and batches.
    pub limits: Limits,
}

/// Bounds of the queues and batches, each counted per lane: reports, long polls and submissions.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Commands that wait on a follower to be sent. Beyond it callers get `Overloaded`. Default 8192.
    pub queued: usize,
    /// Their size in bytes. Default 32 MiB.
    pub queued_bytes: usize,
    /// Commands that were sent and not answered; the leader refuses more with `Overloaded`.
    /// Default 4096.
    pub in_flight: usize,
    /// Commands in one message. Default 512.
    pub batch: usize,
    /// Their size in bytes; a larger command travels alone. Default 384 KiB, which makes a message of
    /// all three lanes a little more than 1 MiB.
    pub batch_bytes: usize,
}

impl Default for ForwardConfig {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(2),
            answer_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_millis(500),
            keep_alive_interval: Duration::from_secs(1),
            keep_alive_timeout: Duration::from_secs(1),
            secret: None,
            tls: None,
            limits: Limits::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self { queued: 8_192, queued_bytes: 32 << 20, in_flight: 4_096, batch: 512, batch_bytes: 384 << 10 }
    }
}

impl fmt::Debug for ForwardConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForwardConfig")
            .field("timeout", &self.timeout)
            .field("answer_timeout", &self.answer_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .field("keep_alive_interval", &self.keep_alive_interval)
            .field("keep_alive_timeout", &self.keep_alive_timeout)
            .field("secret", &self.secret.as_ref().map(|_| "…"))
            .field("limits", &self.limits)
            .finish()
    }
}
