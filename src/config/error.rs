//! Everything that is wrong with a configuration.

use std::fmt;

/// One thing that is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Dotted path of the key; empty when the file as a whole is at fault.
    pub key: String,
    /// What is wrong and what is allowed.
    pub message: String,
    /// Where the value came from, for example `environment variable CORTEX__QUEUE__REDIS_URL`.
    pub origin: Option<String>,
}

/// A configuration that cannot be used, with all the reasons.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// At least one problem.
    pub problems: Vec<Problem>,
}

impl ConfigError {
    pub(super) fn whole(message: impl Into<String>, origin: &str) -> Self {
        let origin = Some(origin.to_owned());
        Self { problems: vec![Problem { key: String::new(), message: message.into(), origin }] }
    }
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.problems.len() == 1 { "problem" } else { "problems" };
        write!(f, "the configuration has {} {plural}:", self.problems.len())?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.message)?;
        match &self.origin {
            Some(origin) => write!(f, " (in {origin})"),
            None => Ok(()),
        }
    }
}
