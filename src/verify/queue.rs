//! What the ready queue says, and whether PostgreSQL says the same.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::catalog::Group;
use super::{Looked, Odd, Stores};
use crate::domain::ids::JobId;
use crate::domain::job::JobStatus;
use crate::domain::matching::Shape;
use crate::ready_queue::{QueueError, Score, StoredEntry};
use crate::storage::{QueuedJob, StorageError, StoredPlace};
use crate::telemetry::whole_story;

/// Age from which `reconcile_queue` settles a claim.
const STALE_CLAIM: Duration = Duration::from_secs(8);
/// Queued jobs of one page.
const PAGE: i64 = 5_000;
/// Entries that PostgreSQL is asked about at once.
const CHUNK: usize = 1_000;

/// One of the stores failed.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Queue(#[from] QueueError),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

type Found = BTreeMap<String, Odd>;

impl Stores<'_> {
    /// A group that asks Redis.
    pub(super) async fn queue_group(&self, group: Group) -> Option<Looked> {
        let found = match group {
            Group::QueueState => self.state().await,
            Group::QueueClaims => self.claims().await,
            Group::QueueEntries => self.entries().await,
            Group::QueuedJobs => self.queued().await,
            Group::Schema
            | Group::Constraints
            | Group::Leadership
            | Group::Counters
            | Group::Times
            | Group::Histories
            | Group::Leases
            | Group::Keys
            | Group::Waits => return None,
        };
        Some(found.map_err(|error| whole_story(&error)))
    }

    async fn state(&self) -> Result<Found, Failed> {
        let stored = self.database.stored_epoch().await?;
        let state = self.queue.audit().await?;
        let miscounted = state.miscounted();
        let (mut whole, mut epoch, mut depth, mut shapes) =
            (Odd::default(), Odd::default(), Odd::default(), Odd::default());
        if state.generation.is_none() {
            whole.push("generation", "it is missing");
        }
        if state.epoch != stored.map(|epoch| epoch.to_string()) {
            let said = |epoch: Option<String>| epoch.unwrap_or_else(|| "none".to_owned());
            let detail = format!(
                "Redis says {}, PostgreSQL {}",
                said(state.epoch),
                said(stored.map(|epoch| epoch.to_string()))
            );
            epoch.push("epoch", detail);
        }
        for (priority, said, jobs) in miscounted.iter().flatten() {
            depth.push(format!("priority {priority}"), miscount(*said, *jobs));
        }
        if miscounted.is_none() {
            depth.push("claims", "there are too many claims to count them");
        }
        for shape in state.shapes {
            if shape.name.parse::<Shape>().is_err() {
                shapes.push(&shape.name, "the name of a set that stands for no requirements");
            } else if shape.too_late {
                shapes.push(&shape.name, "the set is registered behind its best job");
            }
        }
        Ok(named([
            ("queue_whole", whole),
            ("queue_epoch_current", epoch),
            ("queue_depth_matches_entries", depth),
            ("queue_shapes_found_in_order", shapes),
        ]))
    }

    async fn claims(&self) -> Result<Found, Failed> {
        let mut left = Odd::default();
        let mut cursor = Some(0);
        while let Some(at) = cursor {
            let (claims, next) = self.queue.claims_page(at).await?;
            for claim in claims.into_iter().filter(|claim| claim.age >= STALE_CLAIM) {
                left.push(claim.member, format!("claimed as {:?}", claim.record));
            }
            cursor = next;
        }
        Ok(named([("claims_settled", left.once_each())]))
    }

    async fn entries(&self) -> Result<Found, Failed> {
        let (mut stray, mut misplaced, mut claimed) = (Odd::default(), Odd::default(), Odd::default());
        for shape in self.queue.audit().await?.shapes {
            let mut cursor = Some(0);
            while let Some(at) = cursor {
                let (entries, next) = self.queue.entries_page(&shape.name, at).await?;
                for chunk in entries.chunks(CHUNK) {
                    let ids: Vec<JobId> =
                        chunk.iter().filter_map(|entry| entry.member.parse().ok()).collect();
                    let places = self.database.places(&ids).await?;
                    let places: HashMap<_, _> = places.iter().map(|place| (place.entry.id, place)).collect();
                    for entry in chunk {
                        if entry.claimed {
                            claimed.push(&entry.member, format!("waits in {} and is claimed", shape.name));
                        }
                        match place_of(entry, &places) {
                            Err(why) => stray.push(&entry.member, format!("in {}: {why}", shape.name)),
                            Ok(job) => misplaced.extend(out_of_place(entry, &shape.name, job)),
                        }
                    }
                }
                cursor = next;
            }
        }
        Ok(named([
            ("queue_entries_wait", stray.once_each()),
            ("queue_entries_in_place", misplaced.once_each()),
            ("queue_entries_unclaimed", claimed.once_each()),
        ]))
    }

    async fn queued(&self) -> Result<Found, Failed> {
        let (mut missing, mut hidden) = (Odd::default(), Odd::default());
        let mut after: Option<QueuedJob> = None;
        loop {
            let page = self.database.queued_jobs(after.as_ref(), PAGE).await?;
            let jobs: Vec<_> = page.iter().map(|job| (job.id, job.shape.clone())).collect();
            let present = self.queue.contains(&jobs).await?;
            for (job, _) in page.iter().zip(present).filter(|(_, present)| !present) {
                missing.push(job.id, format!("priority {}, submitted at {}", job.priority, job.submitted_at));
            }
            for job in self.queue.hidden(&jobs).await? {
                hidden.push(job, "waits in a set that is not registered");
            }
            let full = i64::try_from(page.len()).unwrap_or(0) >= PAGE;
            after = page.into_iter().last();
            if !full {
                break;
            }
        }
        Ok(named([("queued_jobs_in_queue", missing), ("queued_jobs_found", hidden)]))
    }
}

/// The queued job of an entry, or why it is none's.
fn place_of<'a>(
    entry: &StoredEntry,
    places: &HashMap<JobId, &'a StoredPlace>,
) -> Result<&'a QueuedJob, String> {
    let id: JobId = entry.member.parse().map_err(|_| "no job's id".to_owned())?;
    // One job has one id, and one way to write it.
    if id.to_string() != entry.member {
        return Err("no job's id".to_owned());
    }
    let place = places.get(&id).ok_or_else(|| "there is no such job".to_owned())?;
    match place.status {
        JobStatus::Queued => Ok(&place.entry),
        status => Err(format!("the job is {status}")),
    }
}

/// What is wrong with the place of a queued job's entry.
fn out_of_place(entry: &StoredEntry, shape: &str, job: &QueuedJob) -> Option<(String, String)> {
    let belongs = job.shape.to_string();
    let detail = if belongs != shape {
        format!("in {shape}, and the job asks for {belongs}")
    } else if entry.score != Some(Score::pack(job.priority, job.submitted_at)) {
        let priority = entry.score.map(Score::priority);
        let priority = priority.map_or_else(|| "none".to_owned(), |priority| priority.to_string());
        format!(
            "in {shape} at a place of priority {priority} that is not its own, the job has {}",
            job.priority
        )
    } else {
        return None;
    };
    Some((entry.member.clone(), detail))
}

fn named<const N: usize>(found: [(&str, Odd); N]) -> Found {
    found.into_iter().map(|(name, odd)| (name.to_owned(), odd)).collect()
}

/// By how much a depth is off. The numbers themselves change under load, and what is told has to be the same at both looks.
fn miscount(said: i64, jobs: u64) -> String {
    match said.saturating_sub_unsigned(jobs) {
        off @ ..0 => format!("the depth is too low by {}", off.unsigned_abs()),
        off => format!("the depth is too high by {off}"),
    }
}

#[cfg(test)]
mod tests {
    use super::miscount;

    #[test]
    fn a_depth_that_stays_wrong_is_told_in_the_same_words_while_jobs_come_and_go() {
        assert_eq!(miscount(7, 5), "the depth is too high by 2");
        assert_eq!(miscount(107, 105), miscount(7, 5));
        assert_eq!(miscount(-1, 3), "the depth is too low by 4");
    }
}
