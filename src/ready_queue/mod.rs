//! The ready queue: an index in Redis of the jobs in status `queued`, in the order of dispatch.
//!
//! Jobs with the same requirements share a [`Shape`](crate::domain::matching::Shape) and one sorted
//! set, ordered by priority, then by submission time, then by id. A further set orders the shapes by
//! their best jobs. [`ReadyQueue::claim`] merges the sets of the shapes that free workers can run, so
//! its cost lies in shapes and jobs taken, and a job that nobody can run holds up only its own shape.
//!
//! What holds:
//! - The index is no authority. It may be lost, duplicated or forged at any time; whoever acts on it
//!   lets PostgreSQL decide. It is rebuilt through this module, which knows nothing of PostgreSQL.
//! - Every change carries the leader's epoch. One below the stored epoch is refused and changes
//!   nothing ([`QueueError::Fenced`]).
//! - Every change is one script per batch and so happens entirely or not at all.
//! - A job is in its shape's set or among the claims, and counts in the depth of its priority in both:
//!   the sum of [`ReadyQueue::depth`] is [`ReadyQueue::total`] unless a key was evicted.
//! - A key under its names that is of another kind than its own is thrown away by whoever meets it, and
//!   the index counts as incomplete. The operation fails once.
//! - An error is an error: no operation answers 0 or an empty list when Redis could not be asked.
//!
//! Keys, all beginning `<prefix>:{<prefix>}:` so that a cluster keeps them in one slot: `epoch`,
//! `generation`, `shapes` (sorted set, name → best score), `depth` (hash, priority → jobs), `claims` (hash, id → time,
//! score, shape) and `shape:<name>` (sorted set, one per shape with waiting jobs).
//!
//! What it does not do: decide who may run a job, wait for delayed jobs, or keep anything of a job but
//! its id and rank.

mod audit;
mod claim;
mod connection;
mod enqueue;
mod error;
mod inspect;
mod keys;
mod rebuild;
mod score;
mod scripts;
mod version;

pub use audit::{QueueAudit, RegisteredShape, StoredClaim, StoredEntry};
pub use claim::{Claim, Group, MAX_CLAIM, MAX_CLAIMS_LISTED, Offer};
pub use connection::ReadyQueue;
pub use enqueue::Entry;
pub use error::QueueError;
pub use inspect::MAX_PEEK;
pub use score::Score;
