//! What holds after every step.

use super::*;

impl World {
    /// The leases that a worker holds.
    pub fn held_by(&self, who: usize) -> Vec<(JobId, LeaseId)> {
        let held = self.leases.iter().filter(|(_, lease)| lease.who == who && !lease.orphan);
        sorted(held.map(|(id, lease)| (lease.job, *id)))
    }

    fn reserved_on(&self, who: usize) -> u32 {
        self.reserved.iter().filter(|(on, _)| *on == who).count().try_into().unwrap()
    }

    /// Slots that are not free.
    pub fn taken(&self, who: usize) -> u32 {
        u32::try_from(self.held_by(who).len()).unwrap() + self.reserved_on(who)
    }

    /// How many more jobs a worker may be given.
    pub fn room(&self, who: usize) -> u32 {
        let (Some(member), Some(row)) = (self.members.get(&who), &self.rows[who]) else { return 0 };
        if row.draining || !matches!(member.status, WorkerStatus::Idle | WorkerStatus::Busy) {
            return 0;
        }
        let free = row.slots.saturating_sub(self.taken(who));
        match member.standing {
            Standing::Trusted => free,
            Standing::OnTrial(None) if self.reserved_on(who) == 0 => free.min(1),
            Standing::OnTrial(_) | Standing::Resting(_) => 0,
        }
    }

    /// Credits that are left on a worker's session.
    pub fn credits(&self, who: usize) -> u64 {
        self.sessions.get(&who).map_or(0, |session| {
            let used = session.line.given.lock().unwrap().len() as u64 + u64::from(self.reserved_on(who));
            session.granted.saturating_sub(used)
        })
    }

    pub fn is_reserved(&self, who: usize, delivery: DeliveryId) -> bool {
        let mut pollers = self.reserved.iter().filter(|(on, _)| *on == who);
        pollers.any(|(_, poller)| poller.as_ref().is_some_and(|poller| poller.delivery == delivery))
    }

    pub fn check(&mut self) -> Checked {
        self.check_calls()?;
        self.check_leases()?;
        self.check_silence()?;
        self.check_queues()?;
        self.check_pool()
    }

    /// Calls go on waiting or are told to look again; none gets a job but by its assignment.
    fn check_calls(&mut self) -> Checked {
        let mut given = false;
        self.calls.retain_mut(|call| match call.receiver.try_recv() {
            Ok(_) => {
                given = true;
                false
            }
            Err(TryRecvError::Empty) => true,
            Err(TryRecvError::Closed) => false,
        });
        prop_assert!(!given, "a call got a job that was not granted");
        Ok(())
    }

    fn check_leases(&self) -> Checked {
        let known: Vec<LeaseId> = sorted(self.fleet.leases.keys().copied());
        prop_assert_eq!(known, self.leases.keys().copied().collect::<Vec<_>>());
        for who in 0..WORKERS {
            prop_assert_eq!(self.fleet.knows(name(who)), self.members.contains_key(&who));
            prop_assert_eq!(sorted(self.fleet.leases_of(name(who))), self.held_by(who));
            if let Some(worker) = self.fleet.workers.get(&name(who)) {
                prop_assert_eq!(worker.reserved, self.reserved_on(who), "reserved on {}", who);
            }
        }
        for (id, lease) in &self.leases {
            prop_assert_eq!(self.fleet.is_running(*id), lease.running);
            for who in 0..WORKERS {
                let is_its = self.fleet.is_lease_of(*id, lease.job, Some(name(who)));
                prop_assert_eq!(is_its, who == lease.who);
            }
        }
        let orphans = self.leases.iter().filter(|(_, lease)| lease.orphan);
        let orphans = sorted(orphans.map(|(id, lease)| (lease.job, *id)));
        prop_assert_eq!(sorted(self.fleet.orphans()), orphans);
        let overdue = self.leases.iter().filter(|(_, lease)| lease.deadline <= self.now);
        let overdue = sorted(overdue.map(|(id, lease)| (lease.job, *id)));
        prop_assert_eq!(sorted(self.fleet.overdue(self.now)), overdue);
        Ok(())
    }

    /// Those, and only those, who said nothing for their limit, and not within the grace after they were taken in.
    fn check_silence(&self) -> Checked {
        let silent = self.members.iter().filter_map(|(who, member)| {
            let row = self.rows[*who].as_ref()?;
            let limit = Duration::from_secs(3 * u64::from(row.interval)).min(WORKER_TIMEOUT);
            let silent = self.now >= member.grace_until && self.now >= row.heard + limit;
            silent.then_some((name(*who), limit))
        });
        prop_assert_eq!(sorted(self.fleet.silent(self.now)), sorted(silent));
        Ok(())
    }

    /// What waits to be fetched is held by that worker, has not reached it and does not run; and what has not
    /// reached a worker waits, unless a call fetches it at this moment.
    fn check_queues(&self) -> Checked {
        for (id, worker) in &self.fleet.workers {
            let waiting: BTreeSet<LeaseId> = worker.unfetched.iter().copied().collect();
            prop_assert_eq!(waiting.len(), worker.unfetched.len(), "a lease waits twice");
            for lease in &worker.leases {
                let held = &self.fleet.leases[lease];
                let unreached = held.reached == Reached::Not && !held.running;
                let is_fetched = self.fetches.iter().any(|fetch| fetch.lease == *lease);
                prop_assert!(unreached || !waiting.contains(lease), "what is there waits to be fetched");
                prop_assert!(!unreached || is_fetched || waiting.contains(lease), "nobody will fetch a job");
            }
            prop_assert!(waiting.iter().all(|lease| worker.leases.contains(lease)), "of {}", id);
        }
        Ok(())
    }

    /// Placement offers what there is, and nobody who may get nothing.
    fn check_pool(&mut self) -> Checked {
        let mut free = 0;
        let mut hung_up = false;
        for who in 0..WORKERS {
            let Some(worker) = self.fleet.workers.get(&name(who)) else { continue };
            prop_assert!(worker.assignable() <= self.room(who), "{} is offered too much", who);
            free += worker.assignable();
            // Nobody tells the pool of a call that went away.
            hung_up |= matches!(&worker.way, Way::Polls(polls) if polls.pollers.iter().any(|poller| poller.reply.is_closed()));
        }
        let pool = self.fleet.pool();
        prop_assert!(pool.free_slots() == free || (hung_up && pool.free_slots() >= free));
        let best: Vec<WorkerId> =
            pool.groups().map(|(group, _)| group).filter_map(|group| pool.best(group)).collect();
        for worker in best {
            prop_assert!((0..WORKERS).any(|who| name(who) == worker && self.room(who) > 0));
        }
        let counted: i64 = self.fleet.count_by_status().into_values().sum();
        prop_assert_eq!(usize::try_from(counted).unwrap(), self.members.len());
        Ok(())
    }
}
