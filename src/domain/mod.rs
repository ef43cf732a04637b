//! The rules of CORTEX, pure: no runtime, no store, no clock of their own.
//!
//! Everything here takes its inputs, time and randomness included, as arguments and returns a
//! decision; callers do the I/O.

pub mod ambient;
pub mod changes;
pub mod event;
pub mod execution;
pub mod explain;
pub mod idempotency;
pub mod ids;
pub mod job;
pub mod matching;
pub mod pause;
pub mod payload;
pub mod placement;
pub mod queue;
pub mod requirements;
pub mod retry;
pub mod trace;
pub mod transition;
pub mod validate;
pub mod worker;
