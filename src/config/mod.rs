//! The configuration file, its `${VARIABLE}` expansion and the environment overrides.
//!
//! Values come from three layers, later ones win: the defaults documented in [`sections`], the YAML
//! file, and environment variables named `CORTEX__SECTION__KEY` (in any case). A value of the file may
//! contain `${VAR}` (an error when unset) and `${VAR:-default}` (when unset or empty); expansion happens
//! after YAML parsing, so no value can change the structure of the file, and is never repeated.
//!
//! A configuration is either whole or refused: [`ConfigError`] names every bad key at once, with what is
//! allowed there and where the value came from. Secrets appear neither in errors nor in `Debug` output.

mod error;
mod expand;
mod reader;
mod secret;
pub mod sections;
mod source;

pub use error::{ConfigError, Problem};
pub use secret::Secret;
pub use sections::{
    Advertise, Cluster, Config, Cors, Database, Genome, Limits, LogFormat, LogLevel, Observability,
    OnUnavailable, PeerTls, Pooler, Queue, RedisTls, Retention, Retry, Scheduler, Security, Seed, Server,
    Tls,
};
pub use source::Environment;
