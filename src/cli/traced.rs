//! The spans of `cortex worker`.

use std::sync::Arc;
use std::time::Duration;

use cortex_client::{AssignedJob, CancellationToken, Handler, JobFailure};
use serde_json::Value;

use crate::domain::ambient::System;
use crate::domain::trace::TraceContext;
use crate::telemetry::traces::{ExportError, ExportOptions, SpanKind};
use crate::telemetry::{Metrics, Tracer};

/// Runs jobs in spans of their own, under which the handler's work belongs. Jobs that are not traced run as they are.
pub(super) struct Traced<H> {
    pub(super) handler: H,
    pub(super) tracer: Tracer,
}

/// Sends spans to `endpoint`, if there is one.
pub(super) fn tracer(endpoint: Option<&str>, worker: &str) -> Result<Tracer, ExportError> {
    let Some(endpoint) = endpoint.filter(|endpoint| !endpoint.is_empty()) else { return Ok(Tracer::off()) };
    let mut origin = vec![("service.instance.id", worker.to_owned())];
    if std::env::var_os("OTEL_SERVICE_NAME").is_none() {
        origin.push(("service.name", "cortex-worker".to_owned()));
    }
    let options = ExportOptions { endpoint: endpoint.to_owned(), origin };
    Tracer::start(&options, 0.0, Arc::new(System), &Metrics::new().trace_spans)
}

impl<H: Handler> Handler for Traced<H> {
    async fn run(&self, mut job: AssignedJob, cancel: CancellationToken) -> Result<Value, JobFailure> {
        let parent = TraceContext::parse(&job.traceparent, Some(&job.tracestate));
        let span = parent.and_then(|parent| self.tracer.under(&parent, "worker.job.run", SpanKind::Consumer));
        let Some(mut span) = span else { return self.handler.run(job, cancel).await };
        span.set("cortex.job.id", job.id.clone());
        span.set("cortex.model.name", job.model_name.clone());
        span.set("cortex.job.attempt", i64::from(job.attempt));
        job.traceparent = span.context().traceparent();
        let result = self.handler.run(job, cancel).await;
        if let Err(failure) = &result {
            // Never the text: it is the job's own.
            span.fail(failure.code.clone().unwrap_or_else(|| "failed".to_owned()));
        }
        result
    }

    fn loaded_models(&self) -> Vec<String> {
        self.handler.loaded_models()
    }

    fn wind_up_time(&self) -> Duration {
        self.handler.wind_up_time()
    }
}
