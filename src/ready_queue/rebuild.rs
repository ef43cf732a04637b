//! Noticing that Redis lost the queue, and filling it again.
//!
//! A rebuild is [`ReadyQueue::begin_rebuild`], [`ReadyQueue::enqueue`] for every queued job in
//! PostgreSQL, [`ReadyQueue::mark_whole`]. Until the mark is set the queue counts as incomplete, but
//! what is in it is handed out.

use crate::domain::ids::Epoch;

use super::connection::ReadyQueue;
use super::error::QueueError;
use super::scripts;

impl ReadyQueue {
    /// The generation that the last finished rebuild set; `None` if Redis is new, was emptied, or a
    /// rebuild was cut short. Raises the fence: a new leader calls this first.
    ///
    /// # Errors
    /// [`QueueError::Fenced`], or Redis failed.
    pub async fn generation(&self, epoch: Epoch) -> Result<Option<String>, QueueError> {
        self.script(&self.fenced(&scripts::GENERATION, epoch)).await
    }

    /// Sets the epoch back to one that PostgreSQL has confirmed, when Redis holds a higher one from
    /// elsewhere, and marks the queue as incomplete.
    ///
    /// # Errors
    /// Redis failed.
    pub async fn reset(&self, epoch: Epoch) -> Result<(), QueueError> {
        self.script(&self.fenced(&scripts::RESET, epoch)).await
    }

    /// Begins a rebuild that will end with `generation`. Takes the old one away, so that a rebuild that is
    /// cut short is noticed. Jobs in place stay.
    ///
    /// # Errors
    /// [`QueueError::Fenced`], or Redis failed.
    pub async fn begin_rebuild(&self, epoch: Epoch, generation: &str) -> Result<(), QueueError> {
        self.script(self.fenced(&scripts::BEGIN_REBUILD, epoch).arg(generation)).await
    }

    /// Ends the rebuild that began with `generation`, which must not be empty: counts the depth anew and
    /// sets the generation. Answers the number of jobs, waiting and claimed, or `None` if Redis was
    /// emptied meanwhile, or another rebuild has begun: then nothing was done.
    ///
    /// # Errors
    /// [`QueueError::Fenced`], [`QueueError::Config`] for an empty generation, or Redis failed.
    pub async fn mark_whole(&self, epoch: Epoch, generation: &str) -> Result<Option<u64>, QueueError> {
        if generation.is_empty() {
            return Err(QueueError::Config("a generation must not be empty".to_owned()));
        }
        self.script(self.fenced(&scripts::RECOUNT, epoch).arg(generation)).await
    }

    /// Counts the depth anew, as after an eviction, and drops empty shapes. Answers the number of jobs,
    /// waiting and claimed.
    ///
    /// # Errors
    /// [`QueueError::Fenced`], or Redis failed.
    pub async fn recount(&self, epoch: Epoch) -> Result<u64, QueueError> {
        self.script(self.fenced(&scripts::RECOUNT, epoch).arg("")).await
    }
}
