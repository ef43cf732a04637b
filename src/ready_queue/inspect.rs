//! Looking into the queue without changing it. Any replica may, so nothing here is fenced.

use redis::Value;

use crate::domain::ids::JobId;
use crate::domain::matching::Shape;

use super::connection::{CHUNK, ReadyQueue, Repeat, Request};
use super::enqueue::by_shape;
use super::error::QueueError;
use super::scripts;

/// Most jobs that one [`ReadyQueue::peek`] answers.
pub const MAX_PEEK: usize = 1000;

impl ReadyQueue {
    /// The number of jobs by priority, waiting and claimed: index 0 is priority 1, index 9 is 10.
    ///
    /// Counters: cheap, and right unless Redis evicted a key. Where their sum differs from
    /// [`total`](Self::total) for long, [`recount`](Self::recount) sets them right.
    ///
    /// # Errors
    /// Redis failed.
    pub async fn depth(&self) -> Result<[u64; 10], QueueError> {
        let mut command = redis::cmd("HMGET");
        command.arg(&self.keys().depth).arg((1..=10).collect::<Vec<u16>>());
        let counters: Vec<Option<i64>> = self.command(&command).await?;
        let mut depth = [0; 10];
        for (slot, counter) in depth.iter_mut().zip(counters) {
            // Below zero only after the counters were evicted while jobs waited.
            *slot = counter.and_then(|count| u64::try_from(count).ok()).unwrap_or(0);
        }
        Ok(depth)
    }

    /// What a look finds in a queue that was whole all the while, as far as Redis itself knows. Nothing if Redis was
    /// emptied, even if it was rebuilt a moment later: an emptied queue is no empty one.
    ///
    /// # Errors
    /// Redis failed.
    pub async fn while_whole<T>(
        &self,
        look: impl Future<Output = Result<T, QueueError>>,
    ) -> Result<Option<T>, QueueError> {
        let mut command = redis::cmd("GET");
        command.arg(&self.keys().generation);
        let before: Option<String> = self.command(&command).await?;
        let found = look.await?;
        let after: Option<String> = self.command(&command).await?;
        Ok((before.is_some() && before == after).then_some(found))
    }

    /// The number of jobs, waiting and claimed: the real sizes, not counters.
    ///
    /// # Errors
    /// Redis failed.
    pub async fn total(&self) -> Result<u64, QueueError> {
        let (claims, shapes) = self.counts().await?;
        Ok(claims + shapes.iter().map(|(_, count)| count).sum::<u64>())
    }

    /// The shapes that have waiting jobs, and how many; claimed jobs do not count. In no order.
    ///
    /// # Errors
    /// Redis failed.
    pub async fn shapes(&self) -> Result<Vec<(Shape, u64)>, QueueError> {
        let (_, shapes) = self.counts().await?;
        // A name that is no shape was not written by CORTEX; nobody can claim from it.
        Ok(shapes.into_iter().filter_map(|(name, count)| Some((name.parse().ok()?, count))).collect())
    }

    /// The waiting jobs in the order of dispatch, of one priority or of all; at most `limit` and never
    /// more than [`MAX_PEEK`].
    ///
    /// # Errors
    /// Redis failed.
    pub async fn peek(&self, limit: usize, priority: Option<u8>) -> Result<Vec<JobId>, QueueError> {
        let priority = match priority {
            None => 0,
            Some(priority @ 1..=10) => priority,
            Some(_) => return Ok(Vec::new()),
        };
        if limit == 0 {
            return Ok(Vec::new());
        }
        let mut call = self.reading(&scripts::PEEK);
        call.arg(limit.min(MAX_PEEK)).arg(priority);
        let ids: Vec<String> = self.script(&call).await?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// One page of a shape's waiting jobs, in no order, and the cursor of the next page; begin with 0.
    ///
    /// A job that waits during the whole walk is named at least once, perhaps twice.
    ///
    /// # Errors
    /// Redis failed.
    pub async fn members_page(
        &self,
        shape: &Shape,
        cursor: u64,
    ) -> Result<(Vec<JobId>, Option<u64>), QueueError> {
        let mut command = redis::cmd("ZSCAN");
        command.arg(self.keys().shape(shape)).arg(cursor).arg("COUNT").arg(CHUNK);
        let (next, members): (u64, Vec<(String, String)>) = self.command(&command).await?;
        let ids = members.iter().filter_map(|(id, _)| id.parse().ok()).collect();
        Ok((ids, (next != 0).then_some(next)))
    }

    /// For each job whether it is in the queue, waiting or claimed. Asked in batches of 1000.
    ///
    /// # Errors
    /// Redis failed.
    pub async fn contains(&self, jobs: &[(JobId, Shape)]) -> Result<Vec<bool>, QueueError> {
        let mut found = Vec::with_capacity(jobs.len());
        for chunk in jobs.chunks(CHUNK) {
            found.extend(self.contains_chunk(chunk).await?);
        }
        Ok(found)
    }

    async fn contains_chunk(&self, jobs: &[(JobId, Shape)]) -> Result<Vec<bool>, QueueError> {
        let shapes = by_shape(jobs);
        // One transaction: a job that moves between set and claims would otherwise slip through.
        let mut pipeline = redis::pipe();
        pipeline.atomic();
        let claims = pipeline.cmd("HMGET").arg(&self.keys().claims);
        for (id, _) in jobs {
            claims.arg(id.to_string());
        }
        for (shape, indexes) in &shapes {
            let set = pipeline.cmd("ZMSCORE").arg(self.keys().shape(shape));
            for &index in indexes {
                set.arg(jobs[index].0.to_string());
            }
        }
        let answers: Vec<Vec<Value>> = self.send(Request::Pipeline(&pipeline), Repeat::Harmless).await?;
        let mut answers = answers.into_iter();
        let claimed = answers.next().unwrap_or_default();
        let mut found: Vec<bool> = claimed.iter().map(|record| *record != Value::Nil).collect();
        found.resize(jobs.len(), false);
        for (indexes, scores) in shapes.values().zip(answers) {
            for (&index, score) in indexes.iter().zip(scores) {
                found[index] |= score != Value::Nil;
            }
        }
        Ok(found)
    }

    /// The number of claims, and name and size of each shape that has waiting jobs.
    async fn counts(&self) -> Result<(u64, Vec<(String, u64)>), QueueError> {
        self.script(&self.reading(&scripts::COUNTS)).await
    }
}
