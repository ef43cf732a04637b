//! How long jobs waited for their workers, read from a history.

use std::collections::BTreeMap;

use crate::history::{Act, History, Outcome, Request};

/// When each job was submitted and how long it took until a worker began it, in microseconds.
pub(super) fn waits(history: &History) -> Vec<(u64, u64)> {
    let mut sent = BTreeMap::new();
    for call in &history.calls {
        if let (Request::Submit { numbers, .. }, Outcome::Ok { .. }) = (&call.request, &call.outcome) {
            numbers.iter().for_each(|number| {
                sent.entry(*number).or_insert(call.start);
            });
        }
    }
    // Second attempts wait because they are meant to.
    let starts = history.acts.iter().filter_map(|(at, _, act)| match act {
        Act::Start { number, attempt: 1, .. } => Some((*at, *number)),
        _ => None,
    });
    starts
        .filter_map(|(at, number)| {
            let sent = *sent.get(&number)?;
            Some((sent, at.saturating_sub(sent)))
        })
        .collect()
}

/// The 99th percentile in milliseconds of those submitted from `from` to before `to`; 0 if there are none.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(super) fn p99_ms(waits: &[(u64, u64)], from: u64, to: u64) -> f64 {
    let mut within: Vec<u64> =
        waits.iter().filter(|(sent, _)| (from..to).contains(sent)).map(|(_, wait)| *wait).collect();
    within.sort_unstable();
    let place = (within.len() * 99).div_ceil(100).saturating_sub(1);
    within.get(place).map_or(0.0, |wait| *wait as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::p99_ms;

    #[test]
    fn the_percentile_is_of_those_that_were_submitted_in_the_stretch() {
        let waits: Vec<(u64, u64)> = (1..=200).map(|number| (number, number * 1000)).collect();
        assert!((p99_ms(&waits, 1, 101) - 99.0).abs() < f64::EPSILON);
        assert!((p99_ms(&waits, 101, 201) - 199.0).abs() < f64::EPSILON);
        assert!((p99_ms(&waits, 7, 8) - 7.0).abs() < f64::EPSILON, "of one it is that one");
        assert!(p99_ms(&waits, 300, 400).abs() < f64::EPSILON);
    }
}
