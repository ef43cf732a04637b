//! How long to wait between attempts: exponential with full jitter, so that
//! many clients that lost the same replica do not return in step.

use std::time::Duration;

use rand::Rng;

use crate::random;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(2);

/// The waits of one sequence of failures.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// A random wait between nothing and the current ceiling, which doubles
    /// from 50 ms to 2 s.
    pub(crate) fn next(&mut self, random: &mut impl Rng) -> Duration {
        let ceiling = self.ceiling();
        self.failures = self.failures.saturating_add(1);
        ceiling.mul_f64(random.random::<f64>())
    }

    /// Starts over after a success.
    pub(crate) fn reset(&mut self) {
        self.failures = 0;
    }

    /// Sleeps for the next wait.
    pub(crate) async fn pause(&mut self) {
        // Bound to a statement: the generator may not live across the await.
        let wait = self.next(&mut random::generator());
        tokio::time::sleep(wait).await;
    }

    fn ceiling(&self) -> Duration {
        FIRST.saturating_mul(2u32.saturating_pow(self.failures)).min(LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn the_ceiling_doubles_from_fifty_milliseconds_to_two_seconds() {
        let mut backoff = Backoff::default();
        let mut random = StdRng::seed_from_u64(1);
        let mut ceilings = Vec::new();
        for _ in 0..8 {
            ceilings.push(backoff.ceiling().as_millis());
            let ceiling = backoff.ceiling();
            assert!(backoff.next(&mut random) <= ceiling);
        }
        assert_eq!(ceilings, [50, 100, 200, 400, 800, 1600, 2000, 2000]);
        backoff.reset();
        assert_eq!(backoff.ceiling(), FIRST);
    }

    #[test]
    fn a_long_outage_does_not_overflow() {
        let mut backoff = Backoff { failures: u32::MAX };
        assert!(backoff.next(&mut StdRng::seed_from_u64(1)) <= LONGEST);
    }
}
