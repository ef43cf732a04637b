//! What this process uses, read from `/proc`; empty where that does not exist.

use std::{collections::HashMap, fs};

use tokio::time::Instant;

/// Clock ticks per second in `/proc`: fixed by Linux' interface to user space.
const TICKS_PER_SECOND: f64 = 100.0;

/// Measures between two samples.
#[derive(Debug, Default)]
pub(super) struct ProcessUsage {
    before: Option<(Instant, u64)>,
}

impl ProcessUsage {
    /// `cpu_usage_percent` of the whole machine since the last sample,
    /// `memory_usage_mb`, `load_average_1m`.
    pub(super) fn sample(&mut self) -> HashMap<String, f64> {
        let mut metrics = HashMap::new();
        let mut add = |name: &str, value: Option<f64>| {
            metrics.extend(value.map(|value| (name.to_owned(), value)));
        };
        add("cpu_usage_percent", self.cpu_percent());
        add("memory_usage_mb", read("/proc/self/status", memory_mb));
        add("load_average_1m", read("/proc/loadavg", first_number));
        metrics
    }

    #[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
    fn cpu_percent(&mut self) -> Option<f64> {
        let now = Instant::now();
        let ticks = read("/proc/self/stat", cpu_ticks)?;
        let (then, ticks_then) = self.before.replace((now, ticks))?;
        let elapsed = now.duration_since(then).as_secs_f64();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let used = ticks.saturating_sub(ticks_then) as f64 / TICKS_PER_SECOND;
        (elapsed > 0.0).then(|| (100.0 * used / elapsed / processors as f64).clamp(0.0, 100.0))
    }
}

fn read<T>(path: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
    parse(&fs::read_to_string(path).ok()?)
}

/// User and system time. The fields are counted behind the command's name,
/// which may contain anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11);
    let user: u64 = times.next()?.parse().ok()?;
    let system: u64 = times.next()?.parse().ok()?;
    Some(user + system)
}

fn memory_mb(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(first_number(line)? / 1024.0)
}

fn first_number(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_whatever_the_process_is_called() {
        let stat = "7 (a b) c) S 1 7 7 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 1 0 99 1 1";
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(memory_mb("Name:\tx\nVmRSS:\t  2048 kB\n"), Some(2.0));
        assert_eq!(first_number("0.25 0.1 0.0 1/2 3"), Some(0.25));
        assert_eq!(cpu_ticks("nonsense"), None);
    }

    #[test]
    fn the_second_sample_knows_the_processor_time() {
        let mut usage = ProcessUsage::default();
        assert!(!usage.sample().contains_key("cpu_usage_percent"));
        let second = usage.sample();
        assert!((0.0..=100.0).contains(&second["cpu_usage_percent"]));
        assert!(second["memory_usage_mb"] > 0.0);
    }
}
