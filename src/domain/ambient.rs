//! Time, ids and randomness, handed to the code that needs them.

use std::time::Instant;

use chrono::{DateTime, Utc};
use rand::Rng;
use uuid::Uuid;

/// What a process takes from its surroundings. Production uses [`System`]; tests bring their own.
pub trait Ambient: Send + Sync + 'static {
    /// Wall-clock time of this node. Never decides about leases: the database's clock does.
    fn now(&self) -> DateTime<Utc>;
    /// Monotonic time of this node.
    fn instant(&self) -> Instant;
    /// A new id, ordered by creation time (UUID version 7, RFC 9562).
    fn uuid(&self) -> Uuid;
    /// A number in `[0, 1)`.
    fn unit(&self) -> f64;
}

/// The operating system's clocks and randomness.
#[derive(Debug, Clone, Copy, Default)]
pub struct System;

#[expect(clippy::disallowed_methods, reason = "the one place where the ambient sources are read")]
impl Ambient for System {
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }

    fn instant(&self) -> Instant {
        Instant::now()
    }

    fn uuid(&self) -> Uuid {
        Uuid::now_v7()
    }

    fn unit(&self) -> f64 {
        rand::rng().random()
    }
}
