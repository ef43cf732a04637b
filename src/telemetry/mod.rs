//! What an operator sees: logs, metrics and traces.

pub mod logging;
pub mod metrics;
pub mod traces;

pub use metrics::Metrics;
pub use traces::Tracer;
