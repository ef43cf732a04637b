//! Workers with a session: jobs are pushed to them against credits.

use std::collections::HashSet;
use std::time::Instant;

use super::Fleet;
use super::worker::{Attached, Health, Reached, Way};
use crate::domain::ids::{JobId, LeaseId, SessionId, WorkerId};
use crate::services::command::{Assignment, Attach, News, Pulse};

/// What an attached session shows.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct AttachedTo {
    /// Leases that the worker holds and that are not live.
    pub ended: Vec<(JobId, LeaseId)>,
    /// Live leases whose job has not reached the worker and is to be pushed, but has to be loaded first.
    pub unsent: Vec<LeaseId>,
    /// Leases of which the worker has said that they run, and that it does not know any more.
    pub lost: Vec<(JobId, LeaseId)>,
}

/// What a message on a session shows.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Whether jobs are pushed to the worker, on this session or a newer one.
    pub is_attached: bool,
    /// Leases that the worker will not run, because it is leaving.
    pub left_behind: Vec<(JobId, LeaseId)>,
}

impl Fleet {
    /// Lets a session take the worker's jobs from now on, and settles which leases it has. `None` if the
    /// worker is not known here. One that is attached again may be over without its replica knowing: so it
    /// puts no other session out, and what it does not name is not lost.
    pub fn attach(&mut self, attach: Attach, now: Instant) -> Option<AttachedTo> {
        let Attach { worker_id, session, renewal, held, credits, outlet } = attach;
        let worker = self.workers.get_mut(&worker_id)?;
        worker.last_heard = now;
        worker.changed = true;
        let attached = Attached { session, outlet, credits };
        if renewal && matches!(&worker.way, Way::Session(other) if other.session != session) {
            attached.replaced(worker_id);
            return Some(AttachedTo::default());
        }
        if worker.health == Health::Draining {
            worker.health = Health::Well;
        }
        if worker.draining {
            attached.tell(worker_id, News::Draining);
        }
        match std::mem::replace(&mut worker.way, Way::Session(attached)) {
            Way::Session(before) if before.session != session => before.replaced(worker_id),
            Way::Session(_) | Way::Polls(_) | Way::Nowhere => {}
        }
        worker.unfetched.clear();
        let held_leases: HashSet<LeaseId> = held.iter().map(|(_, lease)| *lease).collect();
        let mut found = AttachedTo {
            ended: held.into_iter().filter(|(_, lease)| !worker.leases.contains(lease)).collect(),
            ..AttachedTo::default()
        };
        for id in &worker.leases {
            let Some(lease) = self.leases.get_mut(id) else { continue };
            if held_leases.contains(id) {
                lease.reached = Reached::Pushed;
                lease.assignment = None;
            } else if !lease.running {
                lease.reached = Reached::Not;
                found.unsent.push(*id);
            } else if !renewal {
                found.lost.push((lease.job_id, *id));
            }
        }
        let at_hand: Vec<_> =
            found.unsent.iter().filter_map(|id| self.leases.get_mut(id)?.assignment.take()).collect();
        found.unsent.retain(|id| at_hand.iter().all(|assignment| assignment.lease != *id));
        worker.unfetched.extend(&found.unsent);
        for assignment in at_hand {
            self.push(assignment);
        }
        self.refresh(worker_id);
        Some(found)
    }

    /// Pushes the job of a lease that was granted before to the worker's session; where there is none it
    /// waits to be fetched.
    pub fn push(&mut self, assignment: Box<Assignment>) {
        let (id, worker_id) = (assignment.lease, assignment.worker_id);
        let (Some(worker), Some(lease)) = (self.workers.get_mut(&worker_id), self.leases.get_mut(&id)) else {
            return;
        };
        if lease.reached != Reached::Not || lease.running || !worker.leases.contains(&id) {
            return;
        }
        worker.unfetched.retain(|waiting| *waiting != id);
        match worker.push(assignment) {
            Ok(()) => lease.reached = Reached::Pushed,
            Err(assignment) => {
                lease.assignment = Some(assignment);
                worker.unfetched.push_back(id);
                worker.wake_pollers();
            }
        }
        self.refresh(worker_id);
    }

    /// Takes what a worker granted, and said of itself, on its session. What a session says that another one
    /// has replaced shows only that the worker is there.
    pub fn hear(
        &mut self,
        worker_id: WorkerId,
        session: SessionId,
        granted: u64,
        pulse: Option<Pulse>,
        now: Instant,
    ) -> Said {
        let Some(worker) = self.workers.get_mut(&worker_id) else { return Said::default() };
        worker.last_heard = now;
        let mut is_attached = false;
        if let Way::Session(attached) = &mut worker.way {
            is_attached = true;
            if attached.session != session {
                return Said { is_attached, ..Said::default() };
            }
            attached.credits.granted = attached.credits.granted.max(granted);
        }
        worker.changed |= pulse.is_some();
        let said = pulse.is_some();
        if let Some(Pulse { status, usage, loaded_models }) = pulse {
            worker.health = status.into();
            worker.usage = usage;
            worker.metadata.get_or_insert_default();
            worker.loaded_models = loaded_models.into_iter().collect();
        }
        self.refresh(worker_id);
        let left_behind = if said { self.left_behind(worker_id) } else { Vec::new() };
        Said { is_attached, left_behind }
    }

    /// The session has ended, with these leases of which the worker may know. What was pushed to it beside them
    /// waits for the next session. Answers leases that the worker will not run, because it is leaving.
    pub fn detach(
        &mut self,
        worker_id: WorkerId,
        session: SessionId,
        held: &HashSet<LeaseId>,
    ) -> Vec<(JobId, LeaseId)> {
        let Some(worker) = self.workers.get_mut(&worker_id) else { return Vec::new() };
        if !matches!(&worker.way, Way::Session(attached) if attached.session == session) {
            return Vec::new();
        }
        worker.way = Way::Nowhere;
        for id in worker.leases.difference(held) {
            let Some(lease) = self.leases.get_mut(id).filter(|lease| !lease.running) else { continue };
            if lease.reached == Reached::Pushed {
                lease.reached = Reached::Not;
                worker.unfetched.push_back(*id);
            }
        }
        self.refresh(worker_id);
        self.left_behind(worker_id)
    }

    /// Leases whose job has not reached the worker, and will not, because it is leaving.
    pub(super) fn left_behind(&self, worker_id: WorkerId) -> Vec<(JobId, LeaseId)> {
        let leaving = self.workers.get(&worker_id).filter(|worker| worker.is_leaving());
        let unfetched = leaving.into_iter().flat_map(|worker| &worker.unfetched);
        unfetched.filter_map(|id| Some((self.leases.get(id)?.job_id, *id))).collect()
    }

    /// Tells the worker's session something, if it has one.
    pub(super) fn tell(&mut self, worker_id: WorkerId, news: News) {
        let Some(worker) = self.workers.get_mut(&worker_id) else { return };
        if let Way::Session(attached) = &worker.way
            && !attached.tell(worker_id, news)
        {
            worker.way = Way::Nowhere;
        }
    }
}

#[cfg(test)]
#[path = "sessions_tests.rs"]
mod tests;
