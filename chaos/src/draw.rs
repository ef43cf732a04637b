//! Randomness that a seed repeats.

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A stream of random choices. Streams of one seed with different names have nothing in common, so that one part of a
/// run may draw more without changing what the others draw.
#[derive(Debug, Clone)]
pub struct Draw(ChaCha8Rng);

impl Draw {
    /// The stream with this name.
    pub fn new(seed: u64, name: &str) -> Self {
        // FNV-1a: any fixed hash would do.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(hash);
        Self(rng)
    }

    /// A number from `low` to below `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        self.0.random_range(low..high)
    }

    /// An index below `count`.
    pub fn index(&mut self, count: usize) -> usize {
        self.0.random_range(0..count)
    }

    /// True with this probability in a hundred.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.between(0, 100) < chance
    }

    /// One of several.
    ///
    /// # Panics
    /// When there is none.
    pub fn choose<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        of.choose(&mut self.0).unwrap_or_else(|| panic!("nothing to choose from"))
    }

    /// A number of milliseconds from `low` to below `high`.
    pub fn milliseconds(&mut self, low: u64, high: u64) -> std::time::Duration {
        std::time::Duration::from_millis(self.between(low, high))
    }

    /// A UUID.
    pub fn uuid(&mut self) -> uuid::Uuid {
        uuid::Builder::from_random_bytes(self.0.random()).into_uuid()
    }
}
