//! Every metric of a replica, declared once: field, name, labels, buckets and help together.
//!
//! Each [`Metrics`] has a registry of its own, so that tests and several replicas in one process do not
//! meet. Series whose label values are known beforehand exist from the start, at zero.

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// Microseconds to seconds: work inside the process and the stores, in seconds.
const FAST: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Milliseconds to a day: what a job waits and runs, in seconds.
const SLOW: &[f64] = &[
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0,
    14_400.0, 86_400.0,
];
/// Items in one batch.
const SIZES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0];
/// Not a histogram.
const NONE: &[f64] = &[];

macro_rules! declare_metrics {
    ($($field:ident: $kind:ty = $name:literal [$($label:literal),*] $buckets:ident, $help:literal;)+) => {
        /// All metrics of one replica.
        pub struct Metrics {
            registry: Registry,
            $(
                #[doc = concat!($help, " `", $name, "`, labels: ", stringify!($($label),*), ".")]
                pub $field: $kind,
            )+
        }

        impl Metrics {
            fn declared(registry: Registry) -> prometheus::Result<Self> {
                $(
                    let $field = <$kind>::declare($name, &[$($label),*], $buckets, $help)?;
                    registry.register(Box::new($field.clone()))?;
                )+
                Ok(Self { registry, $($field),+ })
            }
        }
    };
}

declare_metrics! {
    jobs_scheduled: IntCounterVec = "cortex_jobs_scheduled_total" ["priority"] NONE,
        "Leases given, by the job's priority.";
    jobs_assigned: IntCounter = "cortex_jobs_assigned_total" [] NONE,
        "Leases given, whether the job had waited in the ready queue or not.";
    scheduling_duration: Histogram = "cortex_scheduling_duration_seconds" [] FAST,
        "Duration of one scheduling round.";
    queue_depth: IntGaugeVec = "cortex_queue_depth" ["priority"] NONE,
        "Jobs in the ready queue.";
    event_streams: IntGauge = "cortex_event_streams" [] NONE,
        "Open streams of jobs' changes at this replica.";
    jobs_enqueued: IntCounterVec = "cortex_jobs_enqueued_total" ["priority"] NONE,
        "Jobs put into the ready queue.";
    jobs_dequeued: IntCounterVec = "cortex_jobs_dequeued_total" ["priority"] NONE,
        "Jobs taken from the ready queue.";
    jobs_retried: IntCounterVec = "cortex_jobs_retried_total" ["attempt"] NONE,
        "Retries, by their number: a job's first is 1.";
    jobs_queued: IntCounter = "cortex_jobs_queued_total" [] NONE,
        "Transitions into the state queued.";
    jobs_finished: IntCounterVec = "cortex_jobs_finished_total" ["status"] NONE,
        "Jobs that reached a final state.";
    job_wait: Histogram = "cortex_job_wait_seconds" [] SLOW,
        "Time from submission, or from when an attempt was due, until it was assigned.";
    job_run: Histogram = "cortex_job_run_seconds" [] SLOW,
        "Run time of completed attempts.";
    dispatch: Histogram = "cortex_dispatch_seconds" [] FAST,
        "Time from eligible to on the wire to a worker.";
    workers: IntGaugeVec = "cortex_workers" ["status"] NONE,
        "Registered workers.";
    worker_cpu: GaugeVec = "cortex_worker_cpu_usage_percent" ["worker"] NONE,
        "What a worker last said of its CPU, by hostname:port; the first 1000 of those that are online.";
    worker_memory: GaugeVec = "cortex_worker_memory_usage_mb" ["worker"] NONE,
        "What a worker last said of its memory, as for its CPU.";
    worker_gpu: GaugeVec = "cortex_worker_gpu_usage_percent" ["worker"] NONE,
        "What a worker last said of its GPU, as for its CPU.";
    leader: IntGauge = "cortex_leader" [] NONE,
        "1 while this replica leads, else 0.";
    raft_term: IntGauge = "cortex_raft_term" [] NONE,
        "Current Raft term.";
    raft_applied: IntGauge = "cortex_raft_applied_index" [] NONE,
        "Index of the last Raft log entry that this replica has applied.";
    failovers: IntCounter = "cortex_failovers_total" [] NONE,
        "Times this replica took over leadership.";
    fenced_writes: IntCounter = "cortex_fenced_writes_total" [] NONE,
        "Writes that a store refused because a newer leader exists.";
    takeover: HistogramVec = "cortex_takeover_seconds" ["phase"] FAST,
        "Duration of each phase of taking over leadership.";
    batch_size: HistogramVec = "cortex_batch_size" ["batcher"] SIZES,
        "Requests that shared one transaction.";
    transaction: HistogramVec = "cortex_transaction_seconds" ["name"] FAST,
        "Duration of database transactions, retries included.";
    loop_runs: IntCounterVec = "cortex_loop_runs_total" ["loop", "result"] NONE,
        "Runs of the leader's loops.";
    genome_request: HistogramVec = "cortex_genome_request_seconds" ["outcome"] FAST,
        "Duration of requests to the model registry: known, unknown or unavailable.";
    http_requests: IntCounterVec = "cortex_http_requests_total" ["method", "route", "status"] NONE,
        "HTTP requests answered.";
    http_request: HistogramVec = "cortex_http_request_seconds" ["method", "route"] FAST,
        "Duration of HTTP requests.";
    grpc_requests: IntCounterVec = "cortex_grpc_requests_total" ["method", "code"] NONE,
        "gRPC calls answered.";
    trace_spans: IntCounterVec = "cortex_trace_spans_total" ["result"] NONE,
        "Spans by what became of them: exported, failed (the collector did not take them) or dropped (too many waited).";
    grpc_request: HistogramVec = "cortex_grpc_request_seconds" ["method"] FAST,
        "Duration of gRPC calls.";
}

impl Metrics {
    /// New metrics in a new registry, with those of the process (`process_*`).
    #[expect(clippy::expect_used, reason = "the message proves it")]
    pub fn new() -> Self {
        let registry = Registry::new();
        registry
            .register(Box::new(ProcessCollector::for_self()))
            .and_then(|()| Self::declared(registry))
            .map(Self::with_known_series)
            .expect("the names are valid and distinct: they are constants, and a test registers them all")
    }

    /// All metrics in the Prometheus text format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut text = String::new();
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "Some metrics could not be rendered.");
        }
        text
    }

    fn with_known_series(self) -> Self {
        for priority in 1..=10 {
            let label = [priority.to_string()];
            for counter in [&self.jobs_scheduled, &self.jobs_enqueued, &self.jobs_dequeued] {
                counter.with_label_values(&label);
            }
            self.queue_depth.with_label_values(&label);
        }
        for status in ["completed", "failed", "timeout", "cancelled"] {
            self.jobs_finished.with_label_values(&[status]);
        }
        for result in ["exported", "failed", "dropped"] {
            self.trace_spans.with_label_values(&[result]);
        }
        for status in ["idle", "busy", "offline", "unhealthy"] {
            self.workers.with_label_values(&[status]);
        }
        self
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// What all kinds of metrics are declared through.
trait Declare: Collector + Clone + Sized {
    fn declare(name: &str, labels: &[&str], buckets: &[f64], help: &str) -> prometheus::Result<Self>;
}

macro_rules! declare_kind {
    ($kind:ty, |$name:ident, $labels:ident, $buckets:ident, $help:ident| $new:expr) => {
        impl Declare for $kind {
            fn declare(
                $name: &str,
                $labels: &[&str],
                $buckets: &[f64],
                $help: &str,
            ) -> prometheus::Result<Self> {
                $new
            }
        }
    };
}

declare_kind!(IntCounter, |name, _labels, _buckets, help| Self::new(name, help));
declare_kind!(IntGauge, |name, _labels, _buckets, help| Self::new(name, help));
declare_kind!(GaugeVec, |name, labels, _buckets, help| Self::new(Opts::new(name, help), labels));
declare_kind!(IntCounterVec, |name, labels, _buckets, help| Self::new(Opts::new(name, help), labels));
declare_kind!(IntGaugeVec, |name, labels, _buckets, help| Self::new(Opts::new(name, help), labels));
declare_kind!(Histogram, |name, _labels, buckets, help| {
    Self::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))
});
declare_kind!(HistogramVec, |name, labels, buckets, help| {
    Self::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), labels)
});

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_metrics_register_and_render_with_their_labels() {
        let metrics = Metrics::new();
        metrics.jobs_retried.with_label_values(&["1"]).inc();
        metrics.http_requests.with_label_values(&["GET", "/api/v1/jobs", "200"]).inc();
        metrics.takeover.with_label_values(&["fence"]).observe(0.2);
        metrics.dispatch.observe(0.003);
        let text = metrics.render();
        for line in [
            "cortex_queue_depth{priority=\"10\"} 0",
            "cortex_jobs_finished_total{status=\"timeout\"} 0",
            "cortex_workers{status=\"idle\"} 0",
            "cortex_jobs_retried_total{attempt=\"1\"} 1",
            "cortex_http_requests_total{method=\"GET\",route=\"/api/v1/jobs\",status=\"200\"} 1",
            "cortex_takeover_seconds_count{phase=\"fence\"} 1",
            "cortex_dispatch_seconds_bucket{le=\"0.005\"} 1",
            "cortex_leader 0",
            "# TYPE process_resident_memory_bytes gauge",
        ] {
            assert!(text.lines().any(|candidate| candidate == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn two_sets_of_metrics_do_not_meet() {
        let (one, other) = (Metrics::new(), Metrics::new());
        one.failovers.inc();
        assert_eq!(other.failovers.get(), 0);
    }
}
