//! Traces: which trace work belongs to, the spans of this process, and their way to a collector.
//!
//! A trace begins with a submission, or with a caller's `traceparent`. Where nothing is traced, work costs a look at
//! an empty option; where spans are not exported, contexts are handed on all the same.

mod context;
mod export;
mod tracer;

pub use context::{current, scope};
pub use export::{ExportError, ExportOptions};
pub use tracer::{Span, SpanKind, Tracer};
