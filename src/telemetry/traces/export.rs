//! The way of spans to a collector: a bounded queue, a thread that empties it, and a count of what became of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry_otlp::{WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanExporter, SpanProcessor,
};
use prometheus::{IntCounter, IntCounterVec};
use tonic::transport::{ClientTlsConfig, Endpoint};

/// Spans that may wait; more are dropped.
const MOST_WAITING: usize = 8_192;
/// Spans in one request to the collector.
const BATCH: usize = 512;
/// How long spans gather.
const GATHER: Duration = Duration::from_secs(1);
/// How long the collector may take to take a batch.
const EXPORT_WITHIN: Duration = Duration::from_secs(10);
/// How long a connection to it may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Spans cannot be exported as configured.
#[derive(Debug, thiserror::Error)]
#[error("the OTLP endpoint cannot be used: {0}")]
pub struct ExportError(String);

/// Where spans go, and what they say of their origin.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// OTLP over gRPC.
    pub endpoint: String,
    /// Attributes of the process, such as `service.name`; they override those of the environment.
    pub origin: Vec<(&'static str, String)>,
}

/// The queue, and the thread behind it.
pub(super) struct Pipeline {
    processor: BatchSpanProcessor,
    tally: Arc<Tally>,
}

/// What became of spans.
#[derive(Debug)]
struct Tally {
    waiting: AtomicUsize,
    exported: IntCounter,
    failed: IntCounter,
    dropped: IntCounter,
    /// Each is said once, until a batch is taken again.
    said_dropping: AtomicBool,
    said_failing: AtomicBool,
}

/// Counts what the exporter does.
#[derive(Debug)]
struct Counting<E> {
    exporter: E,
    tally: Arc<Tally>,
}

impl Pipeline {
    /// Starts the thread. The connection is made when there is something to send. Needs a runtime.
    pub(super) fn start(options: &ExportOptions, counts: &IntCounterVec) -> Result<Self, ExportError> {
        let failed = |error: &dyn std::fmt::Display| ExportError(error.to_string());
        let mut endpoint = Endpoint::from_shared(options.endpoint.clone())
            .map_err(|_| ExportError("it is no URL".to_owned()))?;
        if endpoint.uri().scheme_str() == Some("https") {
            endpoint = endpoint
                .tls_config(ClientTlsConfig::new().with_native_roots())
                .map_err(|error| failed(&error))?;
        }
        let channel = endpoint.connect_timeout(CONNECT_WITHIN).timeout(EXPORT_WITHIN).connect_lazy();
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_channel(channel)
            .with_timeout(EXPORT_WITHIN)
            .build()
            .map_err(|error| failed(&error))?;
        let tally = Arc::new(Tally::new(counts));
        // One batch more than may wait, so that it never drops by itself.
        let limits = BatchConfigBuilder::default()
            .with_max_queue_size(MOST_WAITING + BATCH)
            .with_max_export_batch_size(BATCH)
            .with_scheduled_delay(GATHER)
            .build();
        let mut processor = BatchSpanProcessor::new(Counting { exporter, tally: Arc::clone(&tally) }, limits);
        let origin = options.origin.iter().map(|(key, value)| KeyValue::new(*key, value.clone()));
        processor.set_resource(&Resource::builder().with_attributes(origin).build());
        Ok(Self { processor, tally })
    }

    /// Takes a span. Never waits: a span for which there is no room is dropped.
    pub(super) fn push(&self, span: SpanData) {
        if self.tally.make_room() {
            self.processor.on_end(span);
        }
    }

    /// Sends what waits, as long as there is time, and ends the thread. Blocks.
    pub(super) fn stop(&self, within: Duration) {
        // What could not be sent was counted, or ends with the process.
        if let Err(error) = self.processor.shutdown_with_timeout(within) {
            tracing::warn!(%error, "Not all spans could be sent before the end.");
        }
    }
}

impl Tally {
    fn new(counts: &IntCounterVec) -> Self {
        let count = |result: &str| counts.with_label_values(&[result]);
        Self {
            waiting: AtomicUsize::new(0),
            exported: count("exported"),
            failed: count("failed"),
            dropped: count("dropped"),
            said_dropping: AtomicBool::new(false),
            said_failing: AtomicBool::new(false),
        }
    }

    fn make_room(&self) -> bool {
        let room = |waiting: usize| (waiting < MOST_WAITING).then_some(waiting + 1);
        if self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room).is_ok() {
            return true;
        }
        self.dropped.inc();
        if !self.said_dropping.swap(true, Ordering::Relaxed) {
            tracing::warn!(limit = MOST_WAITING, "Spans are dropped: too many wait for the collector.");
        }
        false
    }

    fn note(&self, spans: u64, result: &OTelSdkResult) {
        match result {
            Ok(()) => {
                self.exported.inc_by(spans);
                // Not with every batch while more wait than there is room for.
                if self.waiting.load(Ordering::Relaxed) < MOST_WAITING / 10 {
                    self.said_dropping.store(false, Ordering::Relaxed);
                }
                if self.said_failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("The collector takes spans again.");
                }
            }
            Err(error) => {
                self.failed.inc_by(spans);
                if !self.said_failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "The collector does not take spans; jobs go on without them.");
                }
            }
        }
    }
}

impl<E: SpanExporter> SpanExporter for Counting<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.tally.waiting.fetch_sub(spans, Ordering::Relaxed);
        let result = self.exporter.export(batch).await;
        self.tally.note(spans as u64, &result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Metrics;

    #[test]
    fn what_finds_no_room_is_counted_as_dropped() {
        let metrics = Metrics::new();
        let tally = Tally::new(&metrics.trace_spans);
        assert!((0..MOST_WAITING).all(|_| tally.make_room()));
        assert!(!tally.make_room() && !tally.make_room());
        assert_eq!(metrics.trace_spans.with_label_values(&["dropped"]).get(), 2);
        tally.waiting.fetch_sub(1, Ordering::Relaxed);
        assert!(tally.make_room());
    }

    #[tokio::test]
    async fn an_endpoint_that_is_no_url_is_refused() {
        let options = ExportOptions { endpoint: "http://a b".to_owned(), origin: Vec::new() };
        let error = Pipeline::start(&options, &Metrics::new().trace_spans).err().unwrap();
        assert_eq!(error.to_string(), "the OTLP endpoint cannot be used: it is no URL");
    }
}
