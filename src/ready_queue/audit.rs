//! Looking for what is wrong in the queue: everything as it is stored, readable or not. Changes nothing.

use std::time::Duration;

use redis::Value;

use crate::domain::ids::JobId;
use crate::domain::matching::Shape;

use super::claim::claimed_ms;
use super::connection::{CHUNK, ReadyQueue, Repeat, Request};
use super::error::QueueError;
use super::score::Score;
use super::scripts;

/// Most claims that are counted within the script: Redis does nothing else meanwhile.
const MOST_CLAIMS: u32 = 50_000;

/// What the queue says of itself, and what its parts say; all from one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueAudit {
    /// The epoch that may write.
    pub epoch: Option<String>,
    /// The generation, if the queue is whole.
    pub generation: Option<String>,
    /// The counters by priority, as they are stored.
    pub depth: Vec<(String, i64)>,
    /// The real number of jobs, index 0 is priority 1; nothing where there are too many claims to count.
    pub counted: Option<[u64; 10]>,
    /// The shapes that are registered, best first.
    pub shapes: Vec<RegisteredShape>,
}

impl QueueAudit {
    /// Where the depth is not the number of jobs, as after an eviction: priority, depth and jobs. `None` where the
    /// jobs could not be counted.
    pub fn miscounted(&self) -> Option<Vec<(u8, i64, u64)>> {
        let said = |priority: u8| {
            let priority = priority.to_string();
            self.depth.iter().find(|(of, _)| *of == priority).map_or(0, |(_, jobs)| *jobs)
        };
        let all = (1..).zip(self.counted?).map(|(priority, jobs)| (priority, said(priority), jobs));
        Some(all.filter(|(_, said, jobs)| i64::try_from(*jobs) != Ok(*said)).collect())
    }
}

/// A shape in the registry.
#[derive(Debug, Clone, PartialEq)]
pub struct RegisteredShape {
    /// Its name, which may be no shape's.
    pub name: String,
    /// Whether it stands behind its best job, which is then found too late.
    pub too_late: bool,
}

/// An entry of a shape's set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEntry {
    /// What is queued, which may be no job's id.
    pub member: String,
    /// Its place.
    pub score: Option<Score>,
    /// Whether it is among the claims as well.
    pub claimed: bool,
}

/// A claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredClaim {
    /// What is claimed, which may be no job's id.
    pub member: String,
    /// How long ago, by the clock of Redis; since ever for a record that cannot be read.
    pub age: Duration,
    /// When, as it is stored, which tells it from a later claim of the same job.
    pub record: String,
}

impl ReadyQueue {
    /// What the queue says of itself.
    ///
    /// # Errors
    /// Redis failed.
    pub async fn audit(&self) -> Result<QueueAudit, QueueError> {
        type Answer =
            (Option<String>, Option<String>, Vec<(String, i64)>, Vec<u64>, Vec<(String, String, String)>);
        let mut call = self.reading(&scripts::AUDIT);
        call.arg(MOST_CLAIMS);
        let (epoch, generation, depth, counted, shapes): Answer = self.script(&call).await?;
        let shapes = shapes.into_iter().map(|(name, registered, head)| {
            let number = |text: &str| text.parse::<f64>().ok();
            let too_late =
                matches!((number(&registered), number(&head)), (Some(at), Some(head)) if at > head);
            RegisteredShape { name, too_late }
        });
        Ok(QueueAudit {
            epoch,
            generation,
            depth,
            counted: counted.try_into().ok(),
            shapes: shapes.collect(),
        })
    }

    /// One page of the entries of a shape, in no order, and the cursor of the next page; begin with 0.
    ///
    /// An entry that stays during the whole walk is named at least once, perhaps twice.
    ///
    /// # Errors
    /// Redis failed.
    pub async fn entries_page(
        &self,
        shape: &str,
        cursor: u64,
    ) -> Result<(Vec<StoredEntry>, Option<u64>), QueueError> {
        let mut scan = redis::cmd("ZSCAN");
        scan.arg(format!("{}{shape}", self.keys().shape_prefix)).arg(cursor).arg("COUNT").arg(CHUNK);
        let (next, members): (u64, Vec<(String, String)>) = self.command(&scan).await?;
        let mut claims = Vec::with_capacity(members.len());
        for chunk in members.chunks(CHUNK) {
            let mut get = redis::cmd("HMGET");
            get.arg(&self.keys().claims).arg(chunk.iter().map(|(id, _)| id).collect::<Vec<_>>());
            claims.extend(self.command::<Vec<Value>>(&get).await?);
        }
        let entry = |((member, score), claim): ((String, String), Value)| StoredEntry {
            member,
            score: Score::from_text(&score),
            claimed: claim != Value::Nil,
        };
        Ok((members.into_iter().zip(claims).map(entry).collect(), (next != 0).then_some(next)))
    }

    /// One page of the claims, in no order, and the cursor of the next page; begin with 0.
    ///
    /// # Errors
    /// Redis failed.
    pub async fn claims_page(&self, cursor: u64) -> Result<(Vec<StoredClaim>, Option<u64>), QueueError> {
        let (seconds, micros): (u64, u64) = self.script(&self.reading(&scripts::TIME)).await?;
        let now_ms = seconds * 1000 + micros / 1000;
        let mut scan = redis::cmd("HSCAN");
        scan.arg(&self.keys().claims).arg(cursor).arg("COUNT").arg(CHUNK);
        let (next, records): (u64, Vec<(String, String)>) = self.command(&scan).await?;
        let claim = |(member, record): (String, String)| {
            let age = Duration::from_millis(now_ms.saturating_sub(claimed_ms(&record)));
            StoredClaim { member, age, record }
        };
        Ok((records.into_iter().map(claim).collect(), (next != 0).then_some(next)))
    }

    /// Those of the jobs that wait in the set of their shape, while the shape is not registered: nobody finds them.
    ///
    /// # Errors
    /// Redis failed.
    pub async fn hidden(&self, jobs: &[(JobId, Shape)]) -> Result<Vec<JobId>, QueueError> {
        let mut hidden = Vec::new();
        for chunk in jobs.chunks(CHUNK) {
            // One transaction: a shape is registered and left with its first and last job.
            let mut pipeline = redis::pipe();
            pipeline.atomic();
            for (id, shape) in chunk {
                pipeline.cmd("ZSCORE").arg(self.keys().shape(shape)).arg(id.to_string());
                pipeline.cmd("ZSCORE").arg(&self.keys().fixed[2]).arg(shape.to_string());
            }
            let answers: Vec<Value> = self.send(Request::Pipeline(&pipeline), Repeat::Harmless).await?;
            let pairs = chunk.iter().zip(answers.chunks_exact(2));
            let unseen = pairs.filter(|(_, pair)| pair[0] != Value::Nil && pair[1] == Value::Nil);
            hidden.extend(unseen.map(|((id, _), _)| *id));
        }
        Ok(hidden)
    }
}
