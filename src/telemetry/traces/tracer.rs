//! Spans of this process.
//!
//! Most of them are about one job among hundreds that share a statement, begin in one task and end in another, and
//! belong under a span of another process. So each is put together by itself, and handed over when it is dropped.

use std::borrow::Cow;
use std::num::{NonZeroU64, NonZeroU128};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
pub use opentelemetry::trace::SpanKind;
use opentelemetry::trace::{SpanContext, SpanId as OtelSpanId, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use prometheus::IntCounterVec;

use super::context::current;
use super::export::{ExportError, ExportOptions, Pipeline};
use crate::domain::ambient::Ambient;
use crate::domain::ids::{JobId, LeaseId};
use crate::domain::trace::{SpanId, TraceContext};

/// Makes spans, or none where nothing is exported. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<Inner>>);

struct Inner {
    pipeline: Pipeline,
    ambient: Arc<dyn Ambient>,
    sample_ratio: f64,
    scope: InstrumentationScope,
}

/// A span that is under way. It ends when it is dropped.
pub struct Span {
    inner: Arc<Inner>,
    context: TraceContext,
    parent: Option<SpanId>,
    parent_is_remote: bool,
    name: Cow<'static, str>,
    kind: SpanKind,
    start: DateTime<Utc>,
    end: Option<DateTime<Utc>>,
    attributes: Vec<KeyValue>,
    status: Status,
    forgotten: bool,
}

impl Tracer {
    /// Makes no spans.
    pub fn off() -> Self {
        Self(None)
    }

    /// Sends spans to a collector. Of the traces that begin here `sample_ratio` are recorded, 0 to 1; for others their
    /// beginner has decided. Needs a runtime.
    ///
    /// # Errors
    /// When the endpoint cannot be used.
    pub fn start(
        options: &ExportOptions,
        sample_ratio: f64,
        ambient: Arc<dyn Ambient>,
        counts: &IntCounterVec,
    ) -> Result<Self, ExportError> {
        let pipeline = Pipeline::start(options, counts)?;
        let scope = InstrumentationScope::builder("cortex").with_version(env!("CARGO_PKG_VERSION")).build();
        Ok(Self(Some(Arc::new(Inner { pipeline, ambient, sample_ratio, scope }))))
    }

    /// Sends what waits, as long as there is time.
    pub async fn stop(&self, within: Duration) {
        if let Some(inner) = self.0.clone() {
            let stopped = tokio::task::spawn_blocking(move || inner.pipeline.stop(within)).await;
            debug_assert!(stopped.is_ok(), "the end of the pipeline panicked");
        }
    }

    /// The span of a request that came with a context, or begins a trace if it `begins` one. `None` where it is not
    /// recorded.
    pub fn serve(
        &self,
        incoming: Option<&TraceContext>,
        begins: bool,
        name: impl FnOnce() -> String,
    ) -> Option<Span> {
        let inner = self.0.as_ref()?;
        match incoming {
            Some(parent) if !parent.is_sampled() => None,
            Some(parent) => {
                let mut span = self.under(parent, name(), SpanKind::Server)?;
                span.parent_is_remote = true;
                Some(span)
            }
            None if begins && inner.ambient.unit() < inner.sample_ratio => {
                let trace_id = NonZeroU128::from(inner.random()) | u128::from(inner.random().get()) << 64;
                let context = TraceContext::new(trace_id, inner.random(), true);
                Some(Span::begin(inner, context, None, name().into(), SpanKind::Server))
            }
            None => None,
        }
    }

    /// A span under that of the present task.
    pub fn here(&self, name: impl Into<Cow<'static, str>>, kind: SpanKind) -> Option<Span> {
        self.0.as_ref()?;
        self.under(&current()?, name, kind)
    }

    /// The span of the storing of a submission, under that of the present task. Its name follows from its first job, so
    /// whoever stores the same again notes the same span.
    pub fn storing(&self, first: JobId, name: &'static str) -> Option<Span> {
        let inner = self.0.as_ref()?;
        let parent = current().filter(TraceContext::is_sampled)?;
        Some(Span::begin(inner, parent.of(first.0), Some(parent.span_id), name.into(), SpanKind::Internal))
    }

    /// A span under another one.
    pub fn under(
        &self,
        parent: &TraceContext,
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
    ) -> Option<Span> {
        let inner = self.0.as_ref().filter(|_| parent.is_sampled())?;
        let context = parent.under(inner.random());
        Some(Span::begin(inner, context, Some(parent.span_id), name.into(), kind))
    }

    /// The span of the attempt under a lease. Its name follows from the lease, so work that belongs under it finds it
    /// without asking.
    pub fn attempt(
        &self,
        parent: &TraceContext,
        lease: LeaseId,
        name: &'static str,
        kind: SpanKind,
    ) -> Option<Span> {
        let inner = self.0.as_ref().filter(|_| parent.is_sampled())?;
        Some(Span::begin(inner, parent.attempt(lease), Some(parent.span_id), name.into(), kind))
    }

    /// Where the work of an attempt belongs: under its span, if there is one.
    pub fn of_attempt(&self, context: TraceContext, lease: LeaseId) -> TraceContext {
        if self.0.is_some() && context.is_sampled() { context.attempt(lease) } else { context }
    }

    /// When something began that may turn out to be a part of a trace. `None` where nothing is exported.
    pub fn now(&self) -> Option<DateTime<Utc>> {
        self.0.as_ref().map(|inner| inner.ambient.now())
    }
}

impl Inner {
    fn random(&self) -> NonZeroU64 {
        loop {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below 2^32")]
            let half = || (self.ambient.unit() * f64::from(u32::MAX)) as u64;
            if let Some(number) = NonZeroU64::new(half() << 32 | half()) {
                return number;
            }
        }
    }
}

impl Span {
    fn begin(
        inner: &Arc<Inner>,
        context: TraceContext,
        parent: Option<SpanId>,
        name: Cow<'static, str>,
        kind: SpanKind,
    ) -> Self {
        Self {
            start: inner.ambient.now(),
            inner: Arc::clone(inner),
            context,
            parent,
            parent_is_remote: false,
            name,
            kind,
            end: None,
            attributes: Vec::new(),
            status: Status::Unset,
            forgotten: false,
        }
    }

    /// Where work within the span belongs.
    pub fn context(&self) -> &TraceContext {
        &self.context
    }

    /// It began and ended earlier than it was noted.
    pub fn lasted(&mut self, from: DateTime<Utc>, to: DateTime<Utc>) {
        self.start = from.min(to);
        self.end = Some(to);
    }

    /// Says more about it. No payload, no error text and no secret may be an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.attributes.push(KeyValue::new(key, value));
    }

    /// It is not worth to be sent.
    pub fn forget(mut self) {
        self.forgotten = true;
    }

    /// It has failed, for a reason that may be shown to anybody.
    pub fn fail(&mut self, reason: impl Into<Cow<'static, str>>) {
        self.status = Status::error(reason);
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if self.forgotten {
            return;
        }
        let end = self.end.unwrap_or_else(|| self.inner.ambient.now());
        let flags = if self.context.is_sampled() { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
        let state = self.context.tracestate().parse::<TraceState>().unwrap_or(TraceState::NONE);
        let (trace, span) = (self.context.trace_id.get(), self.context.span_id.get());
        let data = SpanData {
            span_context: SpanContext::new(TraceId::from(trace), OtelSpanId::from(span), flags, false, state),
            parent_span_id: self.parent.map_or(OtelSpanId::INVALID, |parent| OtelSpanId::from(parent.get())),
            parent_span_is_remote: self.parent_is_remote,
            span_kind: self.kind.clone(),
            name: std::mem::take(&mut self.name),
            start_time: SystemTime::from(self.start),
            end_time: SystemTime::from(end.max(self.start)),
            attributes: std::mem::take(&mut self.attributes),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: std::mem::replace(&mut self.status, Status::Unset),
            instrumentation_scope: self.inner.scope.clone(),
        };
        self.inner.pipeline.push(data);
    }
}
