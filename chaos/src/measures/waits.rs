//! How long jobs waited for their workers, read from a history.

use std::collections::BTreeMap;

use crate::history::{Act, History, Outcome, Request};

/// When each job was accepted, and how long it took from its submission until a worker first began it, in microseconds;
/// one that nobody has begun waits for ever.
pub(super) fn waits(history: &History) -> Vec<(u64, u64)> {
    let mut sent = BTreeMap::new();
    for call in &history.calls {
        if let (Request::Submit { numbers, .. }, Outcome::Ok { .. }) = (&call.request, &call.outcome) {
            numbers.iter().for_each(|number| {
                sent.entry(*number).or_insert(call.start);
            });
        }
    }
    let mut begun = BTreeMap::new();
    for (at, _, act) in &history.acts {
        // Second attempts wait because they are meant to.
        if let Act::Start { number, attempt: 1, .. } = act {
            begun.entry(*number).or_insert(*at);
        }
    }
    let wait = |number, sent| begun.get(number).map_or(u64::MAX, |at: &u64| at.saturating_sub(sent));
    sent.iter().map(|(number, sent)| (*sent, wait(number, *sent))).collect()
}

/// The 99th percentile in milliseconds of those submitted from `from` to before `to`, if there are any.
#[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
pub(super) fn p99_ms(waits: &[(u64, u64)], from: u64, to: u64) -> Option<f64> {
    let mut within: Vec<u64> =
        waits.iter().filter(|(sent, _)| (from..to).contains(sent)).map(|(_, wait)| *wait).collect();
    within.sort_unstable();
    let place = (within.len() * 99).div_ceil(100).saturating_sub(1);
    within.get(place).map(|wait| *wait as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::p99_ms;

    #[test]
    fn the_percentile_is_of_those_that_were_submitted_in_the_stretch() {
        let waits: Vec<(u64, u64)> = (1..=200).map(|number| (number, number * 1000)).collect();
        assert_eq!(p99_ms(&waits, 1, 101), Some(99.0));
        assert_eq!(p99_ms(&waits, 101, 201), Some(199.0));
        assert_eq!(p99_ms(&waits, 7, 8), Some(7.0), "of one it is that one");
        assert_eq!(p99_ms(&waits, 300, 400), None);
    }
}
