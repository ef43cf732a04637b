//! Which free worker gets which job.
//!
//! Workers with equal capabilities form a group. The ready queue hands out jobs against the free slots
//! of groups, most particular group first, so that a job which any worker can run does not take the
//! last GPU; within a group a worker that waits for a job comes first, then the one with the most free slots.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::ids::WorkerId;
use super::matching::{Capabilities, Shape};

/// A worker's free slots, the best to take from being the greatest: whoever waits for a job first, then
/// whoever has most slots free.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Slots {
    waits: bool,
    free: u32,
    worker: Reverse<WorkerId>,
}

/// A worker that may be given jobs.
#[derive(Debug)]
pub struct Candidate<'a> {
    /// Who.
    pub worker: WorkerId,
    /// What it can do.
    pub capabilities: &'a Capabilities,
    /// How many more jobs it can take.
    pub free: u32,
    /// Whether it waits for a job at this moment.
    pub waits: bool,
}

/// Workers that can run the same jobs, with the slots that are free.
#[derive(Debug)]
pub struct Group {
    capabilities: Capabilities,
    workers: BinaryHeap<Slots>,
    free_slots: u32,
}

impl Group {
    /// Free slots over all its workers.
    pub fn free_slots(&self) -> u32 {
        self.free_slots
    }

    /// Takes one slot of a worker that waits for a job, else of the one that has most of them free.
    pub fn take_slot(&mut self) -> Option<WorkerId> {
        let slots = self.workers.pop()?;
        let worker = slots.worker.0;
        if slots.free > 1 {
            self.workers.push(Slots { free: slots.free - 1, ..slots });
        }
        self.free_slots -= 1;
        Some(worker)
    }
}

/// Groups workers with free slots, the most particular group first.
pub fn group<'a>(workers: impl IntoIterator<Item = Candidate<'a>>) -> Vec<Group> {
    let mut groups: BTreeMap<&Capabilities, Vec<Slots>> = BTreeMap::new();
    for candidate in workers.into_iter().filter(|candidate| candidate.free > 0) {
        let Candidate { worker, capabilities, free, waits } = candidate;
        groups.entry(capabilities).or_default().push(Slots { waits, free, worker: Reverse(worker) });
    }
    let mut groups: Vec<Group> = groups
        .into_iter()
        .map(|(capabilities, workers)| Group {
            capabilities: capabilities.clone(),
            free_slots: workers.iter().map(|slots| slots.free).sum(),
            workers: workers.into(),
        })
        .collect();
    groups.sort_by_key(|group| breadth(&group.capabilities));
    groups
}

/// The groups that can run `shape`, preferred first, as indexes into `groups`.
pub fn able(groups: &[Group], shape: &Shape) -> Vec<u16> {
    groups
        .iter()
        .enumerate()
        .filter(|(_, group)| group.capabilities.check(shape).is_ok())
        .filter_map(|(index, _)| u16::try_from(index).ok())
        .collect()
}

/// How much a worker can do: the less, the earlier it is used.
fn breadth(capabilities: &Capabilities) -> (bool, usize, u64) {
    let models = capabilities.models.as_ref().map_or(usize::MAX, |models| models.len());
    (capabilities.gpu, models, capabilities.memory_mib.unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    fn capabilities(gpu: bool, models: Option<&[&str]>) -> Capabilities {
        let models = models.map(|models| models.iter().map(|&model| model.to_owned()).collect());
        Capabilities { models, gpu, memory_mib: None }
    }

    fn candidate(worker: WorkerId, capabilities: &Capabilities, free: u32) -> Candidate<'_> {
        Candidate { worker, capabilities, free, waits: false }
    }

    #[test]
    fn who_waits_for_a_job_comes_before_who_has_more_free_slots() {
        let plain = capabilities(false, None);
        let id = |n| WorkerId(Uuid::from_u128(n));
        let waiting = Candidate { waits: true, ..candidate(id(1), &plain, 1) };
        let mut groups = group([candidate(id(2), &plain, 9), waiting]);
        assert_eq!(groups[0].take_slot(), Some(id(1)));
        assert_eq!(groups[0].take_slot(), Some(id(2)));
    }

    fn shape(gpu: bool) -> Shape {
        Shape { model_name: "a".into(), requires_gpu: gpu, required_memory_mib: 0 }
    }

    #[test]
    fn prefers_the_worker_that_can_do_least() {
        let (plain, gpu, particular) =
            (capabilities(false, None), capabilities(true, None), capabilities(false, Some(&["a"])));
        let id = |n| WorkerId(Uuid::from_u128(n));
        let groups =
            group([candidate(id(1), &gpu, 1), candidate(id(2), &plain, 1), candidate(id(3), &particular, 1)]);
        assert_eq!(able(&groups, &shape(false)), [0, 1, 2]);
        assert_eq!(groups[0].capabilities, particular);
        assert_eq!(able(&groups, &shape(true)), [2]);
    }

    #[test]
    fn spreads_jobs_by_free_slots_and_never_beyond_them() {
        let plain = capabilities(false, None);
        let id = |n| WorkerId(Uuid::from_u128(n));
        let mut groups =
            group([candidate(id(1), &plain, 1), candidate(id(2), &plain, 3), candidate(id(3), &plain, 0)]);
        assert_eq!((groups.len(), groups[0].free_slots()), (1, 4));
        let taken: Vec<_> = std::iter::from_fn(|| groups[0].take_slot()).collect();
        assert_eq!(taken, [id(2), id(2), id(1), id(2)]);
        assert_eq!(groups[0].free_slots(), 0);
    }
}
