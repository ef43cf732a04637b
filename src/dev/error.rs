//! Why the embedded default could not start, in words for its user.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use crate::config::ConfigError;

/// Lines of a child's log that an error quotes.
const QUOTED_LINES: usize = 15;

/// A failure while starting or stopping child processes.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    /// A program that is needed is not installed.
    #[error("{program} is missing: install it with `{install}`, or name a running one with {instead}")]
    Missing {
        /// For example `PostgreSQL`.
        program: &'static str,
        /// The command that installs it.
        install: &'static str,
        /// The option that makes it unnecessary.
        instead: &'static str,
    },
    /// A port that was asked for is in use.
    #[error("port {port} ({purpose}) is taken: stop what listens there, or choose another port{option}")]
    PortTaken {
        /// The port.
        port: u16,
        /// Who was to listen there.
        purpose: String,
        /// How to choose another, with a leading ` with `, or nothing.
        option: String,
    },
    /// No block of free ports was found.
    #[error("no {count} consecutive free ports between 20000 and 31999")]
    NoFreePorts {
        /// How many were asked for.
        count: u16,
    },
    /// Another process uses the data directory.
    #[error("the data directory {} is in use by another `cortex dev` (process {holder})", .path.display())]
    InUse {
        /// The data directory.
        path: PathBuf,
        /// Its process id, as far as known.
        holder: String,
    },
    /// The options contradict each other or are out of range.
    #[error("{0}")]
    Options(String),
    /// The configuration of a replica, `--set` included, is refused.
    #[error("the replicas cannot be started: {0}")]
    Config(#[from] ConfigError),
    /// A child process ended or did not become ready.
    #[error("{what}; the end of {} says:\n{tail}", .log.display())]
    Child {
        /// What happened.
        what: String,
        /// Its log.
        log: PathBuf,
        /// The last lines of its log.
        tail: String,
    },
    /// Something happened that leaves no log to quote.
    #[error("{0}")]
    Failed(String),
    /// The operating system refused something.
    #[error("cannot {doing}: {source}")]
    Io {
        /// What was attempted.
        doing: String,
        /// The refusal.
        source: std::io::Error,
    },
}

impl DevError {
    pub(super) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    pub(super) fn child(what: impl Display, log: &Path) -> Self {
        let text = std::fs::read(log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(QUOTED_LINES)..].join("\n");
        Self::Child { what: what.to_string(), log: log.to_owned(), tail }
    }
}
