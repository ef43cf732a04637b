//! How many workers there are, and what they say of their machines, as gauges of the leader.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use crate::domain::execution::Usage;
use crate::domain::worker::WorkerStatus;
use crate::telemetry::Metrics;

/// Workers that are shown; the first ones by hostname and port. Each is three series.
const MOST_SHOWN: usize = 1_000;

/// The gauges that are there. They go with the leadership, and a worker's with the worker.
pub struct UsageGauges {
    metrics: Arc<Metrics>,
    shown: BTreeSet<String>,
    /// When those that are offline were counted.
    pub(super) counted: Option<Instant>,
}

impl UsageGauges {
    /// Shows nothing yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, shown: BTreeSet::new(), counted: None }
    }

    /// Shows these workers and no others.
    pub(super) fn show(&mut self, usage: BTreeMap<String, Usage>) {
        let mut gone = std::mem::take(&mut self.shown);
        for (worker, usage) in usage.into_iter().take(MOST_SHOWN) {
            self.set(&worker, usage);
            gone.remove(&worker);
            self.shown.insert(worker);
        }
        gone.iter().for_each(|worker| self.set(worker, Usage::default()));
    }

    /// Shows how many workers are in this state.
    pub(super) fn count(&self, status: WorkerStatus, count: i64) {
        self.metrics.workers.with_label_values(&[status.as_str()]).set(count);
    }

    /// A gauge for each number; none where there is no number.
    fn set(&self, worker: &str, usage: Usage) {
        for (gauge, value) in [
            (&self.metrics.worker_cpu, usage.cpu_usage_percent),
            (&self.metrics.worker_memory, usage.memory_usage_mb),
            (&self.metrics.worker_gpu, usage.gpu_usage_percent),
        ] {
            match value {
                Some(value) => gauge.with_label_values(&[worker]).set(value),
                // There may be none.
                None => drop(gauge.remove_label_values(&[worker])),
            }
        }
    }
}

impl Drop for UsageGauges {
    fn drop(&mut self) {
        self.show(BTreeMap::new());
        WorkerStatus::ALL.into_iter().for_each(|status| self.count(status, 0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(cpu: f64, gpu: Option<f64>) -> Usage {
        Usage { cpu_usage_percent: Some(cpu), memory_usage_mb: None, gpu_usage_percent: gpu }
    }

    fn lines(metrics: &Metrics) -> Vec<String> {
        let text = metrics.render();
        text.lines().filter(|line| line.starts_with("cortex_worker_")).map(str::to_owned).collect()
    }

    #[test]
    fn each_number_of_each_worker_is_a_gauge_that_goes_with_it() {
        let metrics = Arc::new(Metrics::new());
        let mut gauges = UsageGauges::new(Arc::clone(&metrics));
        gauges
            .show([("a:1".to_owned(), usage(12.5, Some(3.0))), ("b:1".to_owned(), usage(1.0, None))].into());
        assert_eq!(
            lines(&metrics),
            [
                "cortex_worker_cpu_usage_percent{worker=\"a:1\"} 12.5",
                "cortex_worker_cpu_usage_percent{worker=\"b:1\"} 1",
                "cortex_worker_gpu_usage_percent{worker=\"a:1\"} 3",
            ]
        );
        gauges.show([("a:1".to_owned(), usage(13.0, None))].into());
        assert_eq!(lines(&metrics), ["cortex_worker_cpu_usage_percent{worker=\"a:1\"} 13"]);
        drop(gauges);
        assert_eq!(lines(&metrics), [""; 0], "another replica leads, and shows its own");
    }

    #[test]
    fn who_leads_no_more_counts_no_workers() {
        let metrics = Arc::new(Metrics::new());
        let gauges = UsageGauges::new(Arc::clone(&metrics));
        let counts = || WorkerStatus::ALL.map(|of| metrics.workers.with_label_values(&[of.as_str()]).get());
        WorkerStatus::ALL.into_iter().for_each(|status| gauges.count(status, 7));
        assert_eq!(counts(), [7; 4]);
        drop(gauges);
        assert_eq!(counts(), [0; 4]);
    }

    #[test]
    fn no_more_workers_are_shown_than_a_thousand() {
        let metrics = Arc::new(Metrics::new());
        let mut gauges = UsageGauges::new(Arc::clone(&metrics));
        let fleet = |from: usize| (from..from + 1_500).map(|n| (format!("w-{n:05}:1"), usage(1.0, None)));
        gauges.show(fleet(0).collect());
        gauges.show(fleet(700).collect());
        assert_eq!(lines(&metrics).len(), MOST_SHOWN);
        assert!(lines(&metrics)[0].contains("w-00700"));
    }
}
