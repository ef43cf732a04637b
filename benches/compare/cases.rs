//! The workloads of the table.

use crate::Options;
use crate::report::Bar;
use crate::stage::At;

/// What a workload is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Jobs a second: the more, the better.
    Rate,
    /// Milliseconds: the fewer, the better.
    Latency,
}

/// A workload.
#[derive(Debug)]
pub struct Case {
    /// What it is called on the command line and in the records.
    pub name: &'static str,
    /// What it is called in the table.
    pub title: &'static str,
    pub at: At,
    pub measure: Measure,
    arguments: &'static [&'static str],
    quick: &'static [&'static str],
    /// The same in the peers' harness.
    pub peer: Option<&'static str>,
    pub rate: Option<Bar>,
    pub p50: Option<Bar>,
    pub p99: Option<Bar>,
}

impl Case {
    /// The arguments of `cortex bench`.
    pub fn arguments(&self, options: &Options) -> &'static [&'static str] {
        options.size(self.arguments, self.quick)
    }
}

/// Sizes are those of the peers' harness. What measures latency comes first: it is measured on empty stores there, too.
pub const CASES: [Case; 8] = [
    Case {
        name: "latency",
        title: "idle: submit to handler",
        at: At::Leader,
        measure: Measure::Latency,
        arguments: &["latency", "--rate", "100", "--jobs", "1000"],
        quick: &["latency", "--rate", "100", "--jobs", "100"],
        peer: Some("W3"),
        rate: None,
        p50: Some(Bar::AtMost(2.5, 1.2)),
        p99: Some(Bar::AtMost(8.0, 3.0)),
    },
    Case {
        name: "latency-500",
        title: "at 500 jobs/s: submit to handler",
        at: At::Leader,
        measure: Measure::Latency,
        arguments: &["latency", "--rate", "500", "--seconds", "15"],
        quick: &["latency", "--rate", "500", "--seconds", "1"],
        peer: Some("W5"),
        rate: None,
        p50: Some(Bar::AtMost(3.0, 1.5)),
        p99: Some(Bar::AtMost(15.0, 5.0)),
    },
    Case {
        name: "limit",
        title: "limit: the statements alone, in batches of 500",
        at: At::Database,
        measure: Measure::Rate,
        arguments: &["limit", "--jobs", "50000"],
        quick: &["limit", "--jobs", "2000"],
        peer: None,
        rate: None,
        p50: None,
        p99: None,
    },
    Case {
        name: "submit",
        title: "submit singles, 64 in flight",
        at: At::Leader,
        measure: Measure::Rate,
        arguments: &["submit", "--jobs", "30000"],
        quick: &["submit", "--jobs", "500"],
        peer: Some("W2"),
        rate: Some(Bar::AtLeast(12_000.0, 25_000.0)),
        p50: None,
        p99: None,
    },
    Case {
        name: "submit-batch",
        title: "submit in 1000s",
        at: At::Leader,
        measure: Measure::Rate,
        arguments: &["submit-batch", "--jobs", "100000"],
        quick: &["submit-batch", "--jobs", "2000"],
        peer: Some("W2b"),
        rate: Some(Bar::AtLeast(50_000.0, 100_000.0)),
        p50: None,
        p99: None,
    },
    Case {
        name: "drain",
        title: "drain of 50,000",
        at: At::Leader,
        measure: Measure::Rate,
        arguments: &["drain", "--jobs", "50000"],
        quick: &["drain", "--jobs", "2000"],
        peer: Some("W1"),
        rate: Some(Bar::AtLeast(15_000.0, 60_000.0)),
        p50: None,
        p99: None,
    },
    Case {
        name: "pipeline",
        title: "pipeline: singles in, workers out",
        at: At::Leader,
        measure: Measure::Rate,
        arguments: &["pipeline", "--seconds", "20"],
        quick: &["pipeline", "--seconds", "1"],
        peer: Some("W4"),
        rate: Some(Bar::AtLeast(8_000.0, 15_000.0)),
        p50: None,
        p99: Some(Bar::AtMost(100.0, 50.0)),
    },
    Case {
        name: "pipeline-follower",
        title: "pipeline through a follower",
        at: At::Follower,
        measure: Measure::Rate,
        arguments: &["pipeline", "--seconds", "20"],
        quick: &["pipeline", "--seconds", "1"],
        peer: None,
        rate: None,
        p50: None,
        p99: None,
    },
];
