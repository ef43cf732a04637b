//! What the API needs from the rest of the process.

use std::sync::Arc;
use std::time::Duration;

use super::gate::Gate;
use super::guard::Observe;
use crate::domain::ambient::Ambient;
use crate::services::facade::Services;
use crate::services::inspect::Inspect;
use crate::telemetry::Tracer;

/// Everything that the handlers call. Cheap to clone, for it is cloned several times for each request.
#[derive(Clone)]
pub struct Api(Arc<Parts>);

/// What an [`Api`] is made of.
pub struct Parts {
    /// The use cases.
    pub services: Services,
    /// Health and cluster views.
    pub inspect: Arc<dyn Inspect>,
    /// Renders the metrics in Prometheus' text format, if they are to be shown.
    pub metrics: Option<Arc<dyn Fn() -> String + Send + Sync>>,
    /// Is told about every request.
    pub observer: Arc<dyn Observe>,
    /// Measures how long requests take.
    pub ambient: Arc<dyn Ambient>,
    /// Who may call.
    pub gate: Gate,
    /// Notes requests that are traced.
    pub tracer: Tracer,
    /// Bounds on what one request may cost.
    pub limits: Limits,
    /// `server.grpc_reflection`: whether gRPC describes itself.
    pub grpc_reflection: bool,
}

impl Api {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl std::ops::Deref for Api {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// Bounds on what one request may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest request body or message in bytes (`limits.max_body_bytes`).
    pub max_body_bytes: usize,
    /// Longest that a REST request may take; a gRPC call may take as much on top of what it asked to wait.
    pub request_timeout: Duration,
    /// Longest that clearing the queue may take: it goes through all jobs that wait.
    pub clear_timeout: Duration,
}

impl Default for Limits {
    /// 1 MiB, 30 seconds, 10 minutes.
    fn default() -> Self {
        let (request_timeout, clear_timeout) = (Duration::from_secs(30), Duration::from_secs(600));
        Self { max_body_bytes: 1 << 20, request_timeout, clear_timeout }
    }
}
