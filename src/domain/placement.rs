//! Which free worker gets which job.
//!
//! Workers with equal capabilities form a group, and a [`Pool`] keeps each group's workers in order, so
//! that a choice costs the logarithm of their number. The ready queue hands out jobs against the free
//! slots of groups. A job prefers a group in which somebody has its model loaded, then the most
//! particular group, so that a job which any worker can run does not take the last GPU. Within a group it
//! prefers a worker that has its model loaded, then one that waits for a job, then one with most free slots,
//! then one whose jobs take no detour by another replica.
//!
//! Free slots are compared coarsely, by their three leading binary digits: up to seven are exact, 64 and 79 are
//! the same. A worker with many slots so takes several jobs in a row, which reach it, and come back, in one
//! message instead of several.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::ids::WorkerId;
use super::matching::{Capabilities, Shape};

/// Most shapes for which the pool remembers who can run them; beyond that it starts anew.
const REMEMBERED_SHAPES: usize = 10_000;

/// How good a worker is to take a slot from: the greatest is the best.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    waits: bool,
    /// Free slots, coarsely.
    free: u32,
    near: bool,
    worker: Reverse<WorkerId>,
}

/// What placement knows of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Who.
    pub worker: WorkerId,
    /// What it can do.
    pub capabilities: &'a Capabilities,
    /// How many more jobs it can take.
    pub free: u32,
    /// Whether it waits for a job at this moment.
    pub waits: bool,
    /// Whether it is connected to this very replica.
    pub near: bool,
    /// The models that it has loaded.
    pub loaded_models: &'a BTreeSet<String>,
}

/// Names a group of a pool until its last worker goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(u32);

/// The free slots of all workers.
#[derive(Debug, Default)]
pub struct Pool {
    groups: BTreeMap<GroupId, Group>,
    by_capabilities: HashMap<Capabilities, GroupId>,
    entries: HashMap<WorkerId, Entry>,
    next_group: u32,
    /// Groups that can run a shape, the most particular first. Emptied whenever the groups change.
    able: HashMap<Shape, Vec<GroupId>>,
}

#[derive(Debug)]
struct Group {
    capabilities: Capabilities,
    workers: usize,
    free_slots: u32,
    /// Workers with free slots.
    ranked: BTreeSet<Rank>,
    /// The same, by loaded model.
    loaded: HashMap<String, BTreeSet<Rank>>,
}

#[derive(Debug)]
struct Entry {
    group: GroupId,
    free: u32,
    rank: Rank,
    loaded_models: BTreeSet<String>,
}

impl Pool {
    /// Takes a worker in, or what has changed of it.
    pub fn put(&mut self, candidate: &Candidate<'_>) {
        let Candidate { worker, capabilities, free, waits, near, loaded_models } = *candidate;
        let rank = Rank { waits, free: coarse(free), near, worker: Reverse(worker) };
        if let Some(entry) = self.entries.get_mut(&worker)
            && let Some(group) = self.groups.get_mut(&entry.group)
            && group.capabilities == *capabilities
        {
            group.free_slots = group.free_slots - entry.free + free;
            entry.free = free;
            if entry.rank != rank || entry.loaded_models != *loaded_models {
                group.take_out(entry.rank, &entry.loaded_models);
                if entry.loaded_models != *loaded_models {
                    entry.loaded_models.clone_from(loaded_models);
                }
                entry.rank = rank;
                group.put_in(rank, &entry.loaded_models);
            }
            return;
        }
        self.remove(worker);
        let group = self.group_of(capabilities);
        if let Some(members) = self.groups.get_mut(&group) {
            members.workers += 1;
            members.free_slots += free;
            members.put_in(rank, loaded_models);
        }
        self.entries.insert(worker, Entry { group, free, rank, loaded_models: loaded_models.clone() });
    }

    /// Forgets a worker.
    pub fn remove(&mut self, worker: WorkerId) {
        let Some(entry) = self.entries.remove(&worker) else { return };
        let Some(group) = self.groups.get_mut(&entry.group) else { return };
        group.take_out(entry.rank, &entry.loaded_models);
        group.free_slots -= entry.free;
        group.workers -= 1;
        if group.workers == 0 {
            self.by_capabilities.remove(&group.capabilities);
            self.groups.remove(&entry.group);
            self.able.clear();
        }
    }

    /// Free slots of a group.
    pub fn free_in(&self, group: GroupId) -> u32 {
        self.groups.get(&group).map_or(0, |group| group.free_slots)
    }

    /// Free slots over all workers.
    pub fn free_slots(&self) -> u32 {
        self.groups.values().map(|group| group.free_slots).sum()
    }

    /// Groups with free slots, and how many.
    pub fn groups(&self) -> impl Iterator<Item = (GroupId, u32)> {
        self.groups.iter().map(|(id, group)| (*id, group.free_slots)).filter(|(_, free)| *free > 0)
    }

    /// The groups with free slots that can run `shape`, preferred first.
    pub fn able(&mut self, shape: &Shape) -> Vec<GroupId> {
        if !self.able.contains_key(shape) {
            if self.able.len() >= REMEMBERED_SHAPES {
                self.able.clear();
            }
            let able = self.groups.iter().filter(|(_, group)| group.capabilities.check(shape).is_ok());
            let mut able: Vec<_> = able.map(|(id, group)| (breadth(&group.capabilities), *id)).collect();
            able.sort_unstable();
            self.able.insert(shape.clone(), able.into_iter().map(|(_, id)| id).collect());
        }
        let groups = &self.groups;
        let free = |id: &GroupId| groups.get(id).filter(|group| group.free_slots > 0);
        let able = self.able.get(shape).into_iter().flatten();
        let mut able: Vec<GroupId> = able.copied().filter(|id| free(id).is_some()).collect();
        let without =
            |id: &GroupId| free(id).is_none_or(|group| !group.loaded.contains_key(&shape.model_name));
        able.sort_by_key(without);
        able
    }

    /// Whether a worker of the group can run `shape`.
    pub fn runs(&self, group: GroupId, shape: &Shape) -> bool {
        self.groups.get(&group).is_some_and(|group| group.capabilities.check(shape).is_ok())
    }

    /// The best worker of a group for a job of this model among those that have it loaded.
    pub fn with_model(&self, group: GroupId, model: &str) -> Option<WorkerId> {
        let best = self.groups.get(&group)?.loaded.get(model)?.last()?;
        Some(best.worker.0)
    }

    /// The best worker of a group for a job that nobody there has the model of.
    pub fn best(&self, group: GroupId) -> Option<WorkerId> {
        Some(self.groups.get(&group)?.ranked.last()?.worker.0)
    }

    /// The best worker of a group for a job of this model, none of `but`.
    pub fn best_but(&self, group: GroupId, model: &str, but: &[WorkerId]) -> Option<WorkerId> {
        let group = self.groups.get(&group)?;
        let in_order =
            group.loaded.get(model).into_iter().chain([&group.ranked]).flat_map(|ranked| ranked.iter().rev());
        in_order.map(|rank| rank.worker.0).find(|worker| !but.contains(worker))
    }

    fn group_of(&mut self, capabilities: &Capabilities) -> GroupId {
        if let Some(id) = self.by_capabilities.get(capabilities) {
            return *id;
        }
        let id = GroupId(self.next_group);
        self.next_group += 1;
        let group = Group {
            capabilities: capabilities.clone(),
            workers: 0,
            free_slots: 0,
            ranked: BTreeSet::new(),
            loaded: HashMap::new(),
        };
        self.groups.insert(id, group);
        self.by_capabilities.insert(capabilities.clone(), id);
        self.able.clear();
        id
    }
}

impl Group {
    fn put_in(&mut self, rank: Rank, loaded_models: &BTreeSet<String>) {
        if rank.free == 0 {
            return;
        }
        self.ranked.insert(rank);
        for model in loaded_models {
            if let Some(ranked) = self.loaded.get_mut(model) {
                ranked.insert(rank);
            } else {
                self.loaded.insert(model.clone(), BTreeSet::from([rank]));
            }
        }
    }

    fn take_out(&mut self, rank: Rank, loaded_models: &BTreeSet<String>) {
        if rank.free == 0 {
            return;
        }
        self.ranked.remove(&rank);
        for model in loaded_models {
            if let Some(ranked) = self.loaded.get_mut(model) {
                ranked.remove(&rank);
                if ranked.is_empty() {
                    self.loaded.remove(model);
                }
            }
        }
    }
}

/// A number by its three leading binary digits; nothing but 0 becomes 0.
fn coarse(number: u32) -> u32 {
    let dropped = (u32::BITS - number.leading_zeros()).saturating_sub(3);
    number >> dropped << dropped
}

/// How much a worker can do: the less, the earlier it is used.
fn breadth(capabilities: &Capabilities) -> (bool, usize, u64) {
    let models = capabilities.models.as_ref().map_or(usize::MAX, |models| models.len());
    (capabilities.gpu, models, capabilities.memory_mib.unwrap_or(0))
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
