//! What a run has to say: one line of JSON.

use std::fs;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Clock ticks per second in `/proc`: fixed by Linux' interface to user space.
const TICKS_PER_SECOND: f64 = 100.0;

/// One run. Times in milliseconds are of what the workload is about: calls where it submits, from the start of
/// a submission to the start of its job where it runs jobs.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// The workload's name.
    pub workload: &'static str,
    /// Jobs that count.
    pub jobs: u64,
    /// How long it took.
    pub seconds: f64,
    /// The one by the other.
    pub jobs_per_s: f64,
    /// Half of them took no longer.
    pub p50_ms: f64,
    /// 99 of 100 took no longer.
    pub p99_ms: f64,
    /// None took longer.
    pub max_ms: f64,
    /// Processor time of the whole machine.
    pub cpu_s: f64,
    /// The part of it that this process spent.
    pub cpu_client_s: f64,
    /// Processor time that the machine wanted and that its host gave to others.
    pub cpu_stolen_s: f64,
    /// Submissions that were told to come again later.
    pub refused: u64,
    /// Jobs of this run, without those that warmed up, that PostgreSQL holds as the run wants them: stored, or
    /// completed.
    pub verified: u64,
    /// Submissions in flight.
    pub in_flight: usize,
    /// Workers.
    pub workers: usize,
    /// Jobs at a time, each.
    pub slots: usize,
    /// Size of a job's input, about.
    pub payload_bytes: usize,
}

/// Times of many jobs, in microseconds; up to 10 minutes, to three digits.
pub(super) fn times() -> Histogram<u64> {
    #[expect(clippy::expect_used, reason = "the bounds are constants, and a test makes one")]
    Histogram::new_with_bounds(1, 600_000_000, 3).expect("the bounds are in order")
}

#[expect(clippy::cast_precision_loss, reason = "milliseconds for people")]
pub(super) fn percentile_ms(times: &Histogram<u64>, percentile: f64) -> f64 {
    if times.is_empty() { 0.0 } else { times.value_at_percentile(percentile) as f64 / 1000.0 }
}

/// Processor time so far, in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cpu {
    /// Of the machine.
    pub machine: f64,
    /// Of this process.
    pub process: f64,
    /// What the machine's host gave to others.
    pub stolen: f64,
}

impl Cpu {
    /// Reads `/proc`; zero where that does not exist.
    pub(super) fn now() -> Self {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // All but idle time and time that others took.
        Self {
            machine: of_machine(&stat, &[0, 1, 2, 5, 6]),
            process: process(&own).unwrap_or(0.0),
            stolen: of_machine(&stat, &[7]),
        }
    }

    /// What was spent since.
    pub(super) fn since(self) -> Self {
        let now = Self::now();
        Self {
            machine: now.machine - self.machine,
            process: now.process - self.process,
            stolen: now.stolen - self.stolen,
        }
    }
}

/// Fields of the first line, together.
fn of_machine(stat: &str, fields: &[usize]) -> f64 {
    let line = stat.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|field| field.parse().ok()).collect();
    fields.iter().filter_map(|at| ticks.get(*at)).sum::<f64>() / TICKS_PER_SECOND
}

/// User and system time. The fields are counted behind the command's name, which may contain anything.
fn process(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).filter_map(|field| field.parse::<f64>().ok());
    Some((times.next()? + times.next()?) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_read_past_idle_time() {
        let stat = "cpu  100 20 30 900 900 5 5 7 0 0\ncpu0 1";
        assert!((of_machine(stat, &[0, 1, 2, 5, 6]) - 1.6).abs() < f64::EPSILON);
        assert!((of_machine(stat, &[7]) - 0.07).abs() < f64::EPSILON);
        assert_eq!(process("7 (a b) c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0"), Some(3.0));
        let before = Cpu::now();
        assert!(before.machine > 0.0 && before.since().machine >= 0.0);
    }

    #[test]
    fn percentiles_are_in_milliseconds() {
        let mut some = times();
        assert!(percentile_ms(&some, 50.0).abs() < f64::EPSILON);
        (1..=100).for_each(|n| some.record(n * 1_000).unwrap());
        assert!((percentile_ms(&some, 50.0) - 50.0).abs() < 0.1);
        assert!((percentile_ms(&some, 100.0) - 100.0).abs() < 0.2);
    }
}
