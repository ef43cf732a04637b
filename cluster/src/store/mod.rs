//! The durable part of a member: vote, log, committed index and snapshot, in
//! one redb file.
//!
//! Every write is one transaction that is on disk before it is answered, in two
//! phases: a commit that was answered and can't be read back is then told apart
//! from one that never finished, so damage is reported instead of silently
//! forgetting a vote.

mod database;
mod head;
mod log;
mod machine;
#[cfg(feature = "planted-defects")]
pub(crate) mod unsynced;

pub(crate) use database::Store;
pub use database::StoreError;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use database::StoredSnapshot;
pub(crate) use log::LogStore;
pub(crate) use machine::StateMachine;

#[cfg(test)]
mod tests;
