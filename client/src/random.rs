//! Where this crate takes its randomness from. It spreads waits and workers and makes keys; no decision
//! that a test pins down rests on it.

use rand::Rng;

/// The thread's generator. It cannot live across an await.
#[expect(clippy::disallowed_methods, reason = "the one place of this crate where ambient randomness is read")]
pub(crate) fn generator() -> impl Rng {
    rand::rng()
}
