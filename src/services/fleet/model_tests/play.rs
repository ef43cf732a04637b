//! The steps: what the leader does, and what becomes of the model.

use super::*;

impl World {
    pub fn new() -> Self {
        World {
            fleet: Fleet::new(PATIENCE),
            now: start() + Duration::from_secs(1000),
            last_id: 1000,
            rows: [const { None }; WORKERS],
            members: BTreeMap::new(),
            sessions: BTreeMap::new(),
            leases: BTreeMap::new(),
            calls: Vec::new(),
            reserved: Vec::new(),
            fetches: Vec::new(),
        }
    }

    pub fn play(&mut self, step: Step) -> Checked {
        match step {
            Step::Wait(seconds) => self.now += Duration::from_secs(seconds),
            Step::Register { who, slots, interval } => self.register(who, slots, interval),
            Step::ComeBack(who) => {
                let may = self.rows[who].as_ref().is_some_and(|row| !row.removed);
                if may && !self.members.contains_key(&who) {
                    self.admit(who, self.now, Fleet::recall);
                }
            }
            Step::Touch(who) => {
                self.fleet.touch(name(who), self.now);
                self.heard(who);
            }
            Step::Beat { who, status, lists } => self.beat(who, status, lists)?,
            Step::Poll { who, waits, again } => self.poll(who, waits, again)?,
            Step::HangUp(which) => drop(take(&mut self.calls, which)),
            Step::StopWaiting(which) => self.stop_waiting(which)?,
            Step::EndFetch { which, committed } => self.end_fetch(which, committed)?,
            Step::Reserve(who) => self.reserve(who)?,
            Step::EndAssignment { which, committed } => self.end_assignment(which, committed)?,
            Step::Run(which) => {
                if let Some(lease) = self.lease(which) {
                    self.fleet.mark_running(lease, self.now);
                    let held = self.leases.get_mut(&lease).unwrap();
                    (held.running, held.deadline) = (true, self.now + RUN);
                }
            }
            Step::Release { which, by_holder } => {
                let lease = self.lease(which);
                lease.into_iter().for_each(|lease| self.release(lease, by_holder));
            }
            Step::Complete(which) => self.complete(which),
            Step::Fail(which) => self.fail(which),
            Step::EndRests => self.end_rests()?,
            Step::Drain { who, given_back } => self.drain(who, given_back)?,
            Step::Dismiss(who) => self.dismiss(who)?,
            Step::GiveUpTheSilent => {
                for (worker, _) in self.fleet.silent(self.now) {
                    let who = (0..WORKERS).find(|who| name(*who) == worker).unwrap();
                    let leases = self.fleet.remove(worker);
                    prop_assert_eq!(leases, self.held_by(who).len());
                    self.gone(who);
                }
            }
            Step::Reap => self.reap()?,
            Step::Attach { who, credits, holds, loads } => self.attach(who, credits, holds, loads)?,
            Step::CutLine(who) => {
                if let Some(session) = self.sessions.get(&who) {
                    session.line.cut.store(true, Ordering::Relaxed);
                }
            }
            Step::Hear { who, replaced, credits, status } => self.hear(who, replaced, credits, status)?,
            Step::Detach { who, replaced, holds } => {
                let Some(session) = self.session(who, replaced) else { return Ok(()) };
                let held = if holds { self.held_by(who) } else { Vec::new() };
                let held: HashSet<LeaseId> = held.into_iter().map(|(_, lease)| lease).collect();
                let given_back = self.fleet.detach(name(who), session, &held);
                self.given_back(who, given_back, true)?;
            }
            Step::TakeOver => self.take_over(),
        }
        Ok(())
    }

    fn next_id(&mut self) -> u128 {
        self.last_id += 1;
        self.last_id
    }

    fn lease(&self, which: usize) -> Option<LeaseId> {
        self.leases.keys().nth(which % self.leases.len().max(1)).copied()
    }

    fn heard(&mut self, who: usize) {
        if let (true, Some(row)) = (self.members.contains_key(&who), &mut self.rows[who]) {
            row.heard = self.now;
        }
    }

    fn register(&mut self, who: usize, slots: u32, interval: u32) {
        let (draining, removed, failures, heard) = (false, false, 0, self.now);
        self.rows[who] = Some(Row { slots, interval, draining, removed, failures, heard });
        let lost = self.fleet.leases_of(name(who));
        self.admit(who, self.now, Fleet::admit);
        lost.into_iter().for_each(|(_, lease)| self.release(lease, false));
    }

    fn admit(
        &mut self,
        who: usize,
        heard: Instant,
        admit: fn(&mut Fleet, &Worker, Duration, Instant, Instant),
    ) {
        let row = self.rows[who].as_mut().unwrap();
        row.heard = heard;
        let registered = Worker {
            id: name(who),
            draining: row.draining,
            heartbeat_interval_seconds: row.interval,
            consecutive_failures: row.failures.into(),
            ..worker(row.slots)
        };
        admit(&mut self.fleet, &registered, WORKER_TIMEOUT, heard, self.now);
        let grace = self.now + Duration::from_secs(row.interval.into()).min(WORKER_TIMEOUT);
        let standing = match row.failures {
            0..2 => Standing::Trusted,
            _ => Standing::Resting(self.now + PATIENCE.pause),
        };
        let grace_until = self.members.get(&who).map_or(grace, |known| known.grace_until);
        self.members.insert(who, Member { grace_until, status: WorkerStatus::Idle, standing });
    }

    fn gone(&mut self, who: usize) {
        self.members.remove(&who);
        self.leases.values_mut().filter(|lease| lease.who == who).for_each(|lease| lease.orphan = true);
    }

    fn release(&mut self, lease: LeaseId, by_holder: bool) {
        self.fleet.release(lease, by_holder);
        self.ended(lease);
    }

    fn ended(&mut self, lease: LeaseId) {
        let Some(held) = self.leases.remove(&lease) else { return };
        if let Some(member) = self.members.get_mut(&held.who)
            && member.standing == Standing::OnTrial(Some(lease))
        {
            member.standing = Standing::OnTrial(None);
        }
    }

    /// What the fleet gives back is the worker's and does not run. The leases end, or PostgreSQL is away.
    fn given_back(&mut self, who: usize, leases: Vec<(JobId, LeaseId)>, ends: bool) -> Checked {
        for (job, lease) in leases {
            let held = self.leases.get(&lease);
            prop_assert!(held.is_some_and(|held| held.who == who && held.job == job && !held.running));
            if ends {
                self.release(lease, false);
            }
        }
        Ok(())
    }

    fn beat(&mut self, who: usize, status: WorkerStatus, lists: bool) -> Checked {
        let held = self.held_by(who);
        let heartbeat = Heartbeat {
            worker_id: name(who),
            status,
            current_job_count: 0,
            current_jobs: held.iter().filter(|_| lists).map(|(job, _)| *job).collect(),
            usage: Usage::default(),
            loaded_models: Vec::new(),
            metadata: None,
        };
        let answer = self.fleet.heartbeat(&heartbeat, self.now);
        prop_assert_eq!(answer.is_some(), self.members.contains_key(&who));
        let Some((answer, given_back)) = answer else { return Ok(()) };
        self.heard(who);
        self.members.get_mut(&who).unwrap().status = status;
        prop_assert!(answer.cancelled_jobs.is_empty());
        prop_assert_eq!(answer.draining, self.rows[who].as_ref().unwrap().draining);
        self.given_back(who, given_back, lists)
    }

    fn poll(&mut self, who: usize, waits: bool, again: bool) -> Checked {
        let fetched = self.leases.values().find(|lease| lease.who == who && lease.fetched_by.is_some());
        let waits_on = |call: &&Call| call.who == who && !self.is_reserved(who, call.delivery);
        let waiting = self.calls.iter().find(waits_on).map(|call| call.delivery);
        let before = fetched.and_then(|lease| lease.fetched_by).or(waiting).filter(|_| again);
        let delivery = before.unwrap_or(DeliveryId(id(self.next_id())));
        let polled = self.fleet.poll(name(who), delivery, waits, self.now);
        self.heard(who);
        let member = self.members.get_mut(&who);
        prop_assert_eq!(matches!(polled, Polled::Unknown), member.is_none());
        member
            .into_iter()
            .filter(|member| member.status == WorkerStatus::Offline)
            .for_each(|member| member.status = WorkerStatus::Idle);
        match polled {
            Polled::Unknown => {}
            Polled::Again(lease) => {
                let held = &self.leases[&lease];
                prop_assert!(held.who == who && !held.orphan && held.fetched_by == Some(delivery));
            }
            Polled::Fetch(lease) => {
                let held = &self.leases[&lease];
                prop_assert!(held.who == who && !held.orphan && !held.running);
                let twice = self.fetches.iter().any(|fetch| fetch.lease == lease && !fetch.overtaken);
                prop_assert!(!twice, "two calls fetch the same job");
                self.fetches.push(Fetch { who, lease, delivery, overtaken: false });
            }
            Polled::Wait(receiver) => {
                self.calls.retain(|call| call.who != who || call.delivery != delivery);
                self.calls.push(Call { who, delivery, receiver });
            }
        }
        Ok(())
    }

    fn stop_waiting(&mut self, which: usize) -> Checked {
        let Some(mut call) = take(&mut self.calls, which) else { return Ok(()) };
        let on_its_way = self.is_reserved(call.who, call.delivery);
        let stopped = self.fleet.stop_waiting(name(call.who), call.delivery);
        let known = self.members.contains_key(&call.who);
        prop_assert!(!(known && stopped && on_its_way), "it would miss its job");
        if !on_its_way {
            prop_assert!(stopped);
            prop_assert_eq!(call.receiver.try_recv().unwrap_err(), TryRecvError::Closed);
        } else {
            self.calls.push(call);
        }
        Ok(())
    }

    fn end_fetch(&mut self, which: usize, committed: bool) -> Checked {
        let Some(Fetch { lease, delivery, .. }) = take(&mut self.fetches, which) else { return Ok(()) };
        if !committed {
            self.fleet.unfetch(lease);
            return Ok(());
        }
        let job = self.fleet.fetched(lease, delivery, self.now);
        prop_assert!(job.is_none_or(|job| job.lease == lease));
        self.leases.get_mut(&lease).into_iter().for_each(|held| held.fetched_by = Some(delivery));
        Ok(())
    }

    fn reserve(&mut self, who: usize) -> Checked {
        let room = self.room(who);
        let (may, credits) = match self.fleet.workers.get(&name(who)).map(|worker| &worker.way) {
            Some(Way::Polls(_)) => (room > 0, None),
            Some(Way::Session(_)) => (room > 0 && self.credits(who) > 0, Some(self.credits(who))),
            Some(Way::Nowhere) | None => (false, None),
        };
        let reserved = self.fleet.reserve(name(who));
        prop_assert_eq!(reserved.is_some(), may, "room for {}, credits {:?}", room, credits);
        let Some(poller) = reserved else { return Ok(()) };
        if let Some(poller) = &poller {
            let call = self.calls.iter().find(|call| call.delivery == poller.delivery);
            prop_assert!(call.is_some_and(|call| call.who == who), "the call is another's");
        }
        self.reserved.push((who, poller));
        prop_assert!(self.taken(who) <= self.rows[who].as_ref().unwrap().slots);
        Ok(())
    }

    fn end_assignment(&mut self, which: usize, committed: bool) -> Checked {
        let Some((who, poller)) = take(&mut self.reserved, which) else { return Ok(()) };
        if !committed {
            self.fleet.unreserve(name(who), poller);
            return Ok(());
        }
        let n = self.next_id();
        let given = Assignment { worker_id: name(who), ..assignment(n) };
        let (lease, job) = (given.lease, given.job_id);
        let called = poller.as_ref().map(|poller| poller.delivery);
        let granted = self.fleet.grant(given, poller, self.now);
        let drained = self.rows[who].as_ref().is_some_and(|row| row.draining);
        prop_assert_eq!(granted, self.members.contains_key(&who) && !drained);
        let mut held = Lease {
            who,
            job,
            running: false,
            orphan: !granted,
            deadline: self.now + RUN + FETCH_WITHIN,
            fetched_by: None,
        };
        if let Some(at) = self.calls.iter().position(|call| Some(call.delivery) == called) {
            let got = self.calls.remove(at).receiver.try_recv().ok().map(|job| job.lease);
            prop_assert_eq!(got, granted.then_some(lease), "a call that waited");
            held.fetched_by = called.filter(|_| granted);
        }
        self.leases.insert(lease, held);
        if let Some(member) = self.members.get_mut(&who).filter(|_| granted)
            && member.standing == Standing::OnTrial(None)
        {
            member.standing = Standing::OnTrial(Some(lease));
        }
        Ok(())
    }

    fn complete(&mut self, which: usize) {
        let Some(lease) = self.lease(which) else { return };
        let who = self.leases[&lease].who;
        self.fleet.complete(lease);
        self.rows[who].as_mut().unwrap().failures = 0;
        self.members.get_mut(&who).into_iter().for_each(|member| member.standing = Standing::Trusted);
        self.ended(lease);
    }

    fn fail(&mut self, which: usize) {
        let Some(lease) = self.lease(which) else { return };
        let who = self.leases[&lease].who;
        self.fleet.note_failure(name(who), self.now);
        let row = self.rows[who].as_mut().unwrap();
        row.failures += 1;
        if let Some(member) = self.members.get_mut(&who).filter(|_| row.failures >= PATIENCE.failures) {
            member.standing = Standing::Resting(self.now + PATIENCE.pause);
        }
        self.release(lease, true);
    }

    fn end_rests(&mut self) -> Checked {
        let now = self.now;
        let rested =
            |member: &&mut Member| matches!(member.standing, Standing::Resting(until) if until <= now);
        let rested: Vec<_> = self.members.values_mut().filter(rested).collect();
        prop_assert_eq!(self.fleet.end_rests(now), !rested.is_empty());
        rested.into_iter().for_each(|member| member.standing = Standing::OnTrial(None));
        Ok(())
    }

    fn drain(&mut self, who: usize, given_back: bool) -> Checked {
        let Some(row) = self.rows[who].as_mut().filter(|row| !row.removed) else { return Ok(()) };
        row.draining = true;
        let unreached = self.fleet.drain(name(who));
        self.given_back(who, unreached, given_back)
    }

    fn dismiss(&mut self, who: usize) -> Checked {
        let Some(row) = self.rows[who].as_mut() else { return Ok(()) };
        row.removed = true;
        let lost = sorted(self.fleet.dismiss(name(who)));
        prop_assert_eq!(lost, self.held_by(who));
        self.gone(who);
        Ok(())
    }

    fn reap(&mut self) -> Checked {
        for (job, lease) in self.fleet.unfetched(self.now) {
            let held = &self.leases[&lease];
            prop_assert!(held.job == job && !held.running && held.fetched_by.is_none());
            self.release(lease, false);
        }
        let overdue = self.fleet.overdue(self.now).into_iter();
        let lost = overdue.chain(self.fleet.orphans());
        lost.collect::<Vec<_>>().into_iter().for_each(|(_, lease)| self.release(lease, false));
        Ok(())
    }

    fn session(&self, who: usize, replaced: bool) -> Option<SessionId> {
        let session = self.sessions.get(&who)?.session;
        Some(if replaced { SessionId(id(1)) } else { session })
    }

    fn attach(&mut self, who: usize, credits: u64, holds: bool, loads: bool) -> Checked {
        let (session, line) = (SessionId(id(self.next_id())), Arc::<Line>::default());
        let stranger = (JobId(id(2)), LeaseId(id(3)));
        let mut held = if holds { self.held_by(who) } else { Vec::new() };
        held.push(stranger);
        let attach = Attach {
            worker_id: name(who),
            session,
            renewal: false,
            held: held.clone(),
            credits: Credits { granted: credits, used: 0 },
            outlet: Outlet::Here(Arc::<Line>::clone(&line)),
        };
        let found = self.fleet.attach(attach, self.now);
        prop_assert_eq!(found.is_some(), self.members.contains_key(&who));
        let Some(found) = found else { return Ok(()) };
        self.heard(who);
        self.sessions.insert(who, Session { session, granted: credits, line });
        let member = self.members.get_mut(&who).unwrap();
        if member.status == WorkerStatus::Offline {
            member.status = WorkerStatus::Idle;
        }
        self.fetches.iter_mut().filter(|fetch| fetch.who == who).for_each(|fetch| fetch.overtaken = true);
        for (id, lease) in self.leases.iter_mut().filter(|(_, lease)| lease.who == who && !lease.orphan) {
            if !lease.running || held.contains(&(lease.job, *id)) {
                lease.fetched_by = None;
            }
        }
        prop_assert_eq!(found.ended, [stranger]);
        for lease in found.unsent {
            if loads {
                let job = self.leases[&lease].job;
                self.fleet.push(Box::new(Assignment {
                    lease,
                    job_id: job,
                    worker_id: name(who),
                    ..assignment(0)
                }));
            } else {
                self.release(lease, true);
            }
        }
        for (_, lease) in found.lost {
            prop_assert!(self.leases[&lease].running);
            self.release(lease, false);
        }
        Ok(())
    }

    fn hear(&mut self, who: usize, replaced: bool, granted: u64, status: Option<WorkerStatus>) -> Checked {
        let Some(session) = self.session(who, replaced) else { return Ok(()) };
        let ignored = matches!(self.fleet.workers.get(&name(who)).map(|worker| &worker.way),
            Some(Way::Session(attached)) if attached.session != session);
        let pulse = status.map(|status| Pulse { status, usage: Usage::default(), loaded_models: Vec::new() });
        let said = self.fleet.hear(name(who), session, granted, pulse, self.now);
        self.heard(who);
        if !ignored && let Some(member) = self.members.get_mut(&who) {
            member.status = status.unwrap_or(member.status);
            let session = self.sessions.get_mut(&who).unwrap();
            session.granted = session.granted.max(granted);
        }
        self.given_back(who, said.left_behind, granted > 2)
    }

    fn take_over(&mut self) {
        (self.calls, self.reserved, self.fetches) = Default::default();
        (self.fleet, self.sessions) = (Fleet::new(PATIENCE), BTreeMap::new());
        let known: BTreeSet<usize> = std::mem::take(&mut self.members).into_keys().collect();
        let holders: BTreeSet<usize> = self.leases.values().map(|lease| lease.who).collect();
        for who in known.union(&holders) {
            let heard = self.rows[*who].as_ref().unwrap().heard;
            self.admit(*who, heard, Fleet::recall);
        }
        for (id, lease) in &mut self.leases {
            let expires_in = lease.deadline.saturating_duration_since(self.now);
            lease.deadline = self.now + expires_in;
            lease.orphan = false;
            let live = LiveLease {
                lease: *id,
                job_id: lease.job,
                worker_id: name(lease.who),
                running: lease.running,
                delivery: lease.fetched_by,
                timeout_seconds: 60,
                expires_in: expires_in.as_secs_f64(),
            };
            self.fleet.adopt(&live, self.now);
        }
        for who in 0..WORKERS {
            if self.rows[who].as_ref().is_some_and(|row| row.removed) {
                self.fleet.remove(name(who));
                self.gone(who);
            }
        }
    }
}
