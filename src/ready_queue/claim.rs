//! Handing jobs out: claim, then confirm or put back.

use std::collections::BTreeSet;
use std::time::Duration;

use chrono::{DateTime, Utc};
use redis::Script;

use crate::domain::ids::{Epoch, JobId};
use crate::domain::matching::Shape;

use super::connection::{CHUNK, ReadyQueue, Repeat, Request};
use super::error::QueueError;
use super::score::Score;
use super::scripts;

/// Most jobs that one [`ReadyQueue::claim`] takes.
pub const MAX_CLAIM: usize = 1000;

/// Most claims that one call lists.
pub const MAX_CLAIMS_LISTED: usize = 10_000;

/// Workers that can run the same jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Group {
    /// How many more jobs they can take together.
    pub free_slots: u32,
}

/// A shape of which jobs may be claimed now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The shape.
    pub shape: Shape,
    /// Indexes of the groups that can run it, preferred first. An index without a group is ignored.
    pub groups: Vec<u16>,
}

/// A job that was taken out of the queue and waits to be settled by the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The job.
    pub job_id: JobId,
    /// Index of its shape among the offers.
    pub offer: usize,
    /// Index of the group that one of the slots was taken from.
    pub group: u16,
    /// 1 to 10, 10 the most urgent.
    pub priority: u8,
    /// When it was submitted, to the millisecond.
    pub submitted_at: DateTime<Utc>,
}

impl ReadyQueue {
    /// Takes the best jobs that free workers can run, at most `max` and never more than [`MAX_CLAIM`],
    /// and answers them in order: by priority, then by submission time, then by id.
    ///
    /// Each job goes to the first group of its offer that has a free slot left. A shape whose groups
    /// have none is passed over and holds up no other. Each shape is to be offered once. The cost is in
    /// the jobs taken and the shapes passed on the way to them, not in the length of the queue.
    ///
    /// The jobs stay among the claims until [`confirm`](Self::confirm), [`put_back`](Self::put_back),
    /// [`enqueue`](Self::enqueue) or [`remove`](Self::remove) names them. If the answer is lost they are
    /// claimed all the same, and [`claims_older_than`](Self::claims_older_than) finds them.
    ///
    /// # Errors
    /// [`QueueError::Fenced`], or Redis failed.
    pub async fn claim(
        &self,
        epoch: Epoch,
        max: usize,
        groups: &[Group],
        offers: &[Offer],
    ) -> Result<Vec<Claim>, QueueError> {
        let max = max.min(MAX_CLAIM);
        if max == 0 || offers.is_empty() || groups.iter().all(|group| group.free_slots == 0) {
            return Ok(Vec::new());
        }
        let mut call = self.fenced(&scripts::CLAIM, epoch);
        call.arg(max).arg(groups.len());
        for group in groups {
            call.arg(group.free_slots);
        }
        for offer in offers {
            let preference: Vec<u8> = offer.groups.iter().flat_map(|group| group.to_be_bytes()).collect();
            call.arg(offer.shape.to_string()).arg(preference);
        }
        let taken: Vec<(String, String, usize, u16)> =
            self.send(Request::Script(&call), Repeat::Unsent).await?;
        taken.iter().map(read_claim).collect()
    }

    /// Forgets claims that the database has settled: the job was assigned, or is not queued any more.
    /// Answers how many of the jobs were claimed. Sent in batches of 1000.
    ///
    /// # Errors
    /// [`QueueError::Fenced`], or Redis failed.
    pub async fn confirm(&self, epoch: Epoch, jobs: &[JobId]) -> Result<usize, QueueError> {
        self.settle(&scripts::CONFIRM, epoch, jobs).await
    }

    /// Returns claimed jobs to their place in the queue and answers how many returned. A job that is
    /// not claimed is left as it is. Sent in batches of 1000.
    ///
    /// # Errors
    /// [`QueueError::Fenced`], or Redis failed.
    pub async fn put_back(&self, epoch: Epoch, jobs: &[JobId]) -> Result<usize, QueueError> {
        self.settle(&scripts::PUT_BACK, epoch, jobs).await
    }

    /// Jobs claimed at least `age` ago, by the clock of Redis, at most [`MAX_CLAIMS_LISTED`]: their
    /// claimer is dead or never got the answer. Settle them and ask again for more.
    ///
    /// # Errors
    /// Redis failed.
    pub async fn claims_older_than(&self, age: Duration) -> Result<Vec<JobId>, QueueError> {
        let (seconds, micros): (u64, u64) = self.script(&self.reading(&scripts::TIME)).await?;
        let now_ms = seconds * 1000 + micros / 1000;
        let age_ms = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        self.list_claims(|claimed_ms| claimed_ms.saturating_add(age_ms) <= now_ms).await
    }

    /// All claimed jobs, at most [`MAX_CLAIMS_LISTED`].
    ///
    /// # Errors
    /// Redis failed.
    pub async fn all_claims(&self) -> Result<Vec<JobId>, QueueError> {
        self.list_claims(|_| true).await
    }

    async fn settle(&self, script: &Script, epoch: Epoch, jobs: &[JobId]) -> Result<usize, QueueError> {
        let mut settled = 0;
        for chunk in jobs.chunks(CHUNK) {
            let mut call = self.fenced(script, epoch);
            for id in chunk {
                call.arg(id.to_string());
            }
            settled += self.script::<usize>(&call).await?;
        }
        Ok(settled)
    }

    /// The jobs whose claim time in milliseconds is `wanted`, page by page.
    async fn list_claims(&self, wanted: impl Fn(u64) -> bool) -> Result<Vec<JobId>, QueueError> {
        // A scan may name an element twice.
        let mut found = BTreeSet::new();
        let mut cursor = 0;
        loop {
            let mut page = redis::cmd("HSCAN");
            page.arg(&self.keys().claims).arg(cursor).arg("COUNT").arg(CHUNK);
            let (next, records): (u64, Vec<(String, String)>) = self.command(&page).await?;
            let old = records.iter().filter(|(_, record)| wanted(claimed_ms(record)));
            found.extend(old.filter_map(|(id, _)| id.parse::<JobId>().ok()));
            if next == 0 || found.len() >= MAX_CLAIMS_LISTED {
                return Ok(found.into_iter().take(MAX_CLAIMS_LISTED).collect());
            }
            cursor = next;
        }
    }
}

fn read_claim((id, score, offer, group): &(String, String, usize, u16)) -> Result<Claim, QueueError> {
    let (Ok(job_id), Some(score)) = (id.parse(), Score::from_text(score)) else {
        return Err(QueueError::Protocol(format!("claimed job {id:?} with score {score:?}")));
    };
    let (priority, submitted_at) = score.unpack();
    Ok(Claim { job_id, offer: *offer, group: *group, priority, submitted_at })
}

/// When the claim was made, in milliseconds. A record that cannot be read counts as ancient, so that
/// it is settled and disappears.
pub(super) fn claimed_ms(record: &str) -> u64 {
    record.split_once(' ').and_then(|(ms, _)| ms.parse().ok()).unwrap_or(0)
}
