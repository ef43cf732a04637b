//! Small histories made by hand, for the tests of the judges. Times are in milliseconds; the clocks of the stores and
//! of the harness agree.

use std::ops::{Deref, DerefMut};

use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use super::evidence::Evidence;
use super::{Judge, Promise, Verdict};
use crate::history::{
    Act, Audit, Call, Ending, Execution, FaultRun, Final, History, Job, Key, Outcome, RedisAct, Request,
    RunInfo, Says, Seen, Stage, View, Write,
};

pub(super) struct Story(History);

/// An execution that is being told.
pub(super) struct Told<'a>(&'a mut Execution);

/// The id of a job.
pub(super) fn id(number: u64) -> Uuid {
    Uuid::from_u64_pair(1, number)
}

/// A lease.
pub(super) fn lease(number: u64) -> Uuid {
    Uuid::from_u64_pair(2, number)
}

pub(super) fn kept(verdict: &Verdict, cases: u64) {
    assert_eq!(*verdict, Verdict::Pass { cases });
}

pub(super) fn refuted(verdict: &Verdict, by: &str) {
    let Verdict::Fail { violations, .. } = verdict else { panic!("no violation: {verdict:?}") };
    assert!(violations.iter().any(|violation| violation.contains(by)), "not by {by:?}: {violations:#?}");
}

pub(super) fn undecided(verdict: &Verdict) {
    assert!(matches!(verdict, Verdict::Unknown { .. }), "{verdict:?}");
}

impl Deref for Story {
    type Target = History;

    fn deref(&self) -> &History {
        &self.0
    }
}

impl DerefMut for Story {
    fn deref_mut(&mut self) -> &mut History {
        &mut self.0
    }
}

impl Told<'_> {
    pub fn coded(self, code: &str) -> Self {
        self.0.error_code = Some(code.to_owned());
        self
    }

    pub fn attempt(self, number: i32) -> Self {
        self.0.attempt_number = number;
        self
    }

    pub fn lasts(self, from: i64, to: i64) -> Self {
        self.0.created_at = Story::at(from);
        self.0.completed_at = Some(Story::at(to));
        self
    }

    pub fn expires(self, at: i64) -> Self {
        self.0.lease_expires_at = Some(Story::at(at));
        self
    }

    pub fn by(self, worker: u64) -> Self {
        self.0.worker_id = Uuid::from_u64_pair(3, worker);
        self
    }
}

impl Story {
    /// Nothing has happened.
    pub fn new() -> Self {
        Self(History {
            info: RunInfo {
                seed: 1,
                duration_s: 1.0,
                network: "loopback".to_owned(),
                faults: Vec::new(),
                not_allowed: Vec::new(),
                replicas: 3,
                slots: 1,
                effects: false,
                started_at: Self::at(0),
                command: String::new(),
                version: String::new(),
                planted: None,
            },
            calls: Vec::new(),
            acts: Vec::new(),
            faults: Vec::new(),
            misses: Vec::new(),
            views: Vec::new(),
            exits: Vec::new(),
            not_ready: Vec::new(),
            depths: Vec::new(),
            redis: Vec::new(),
            stages: Vec::new(),
            last: Some(Final::default()),
            verify: None,
            panics: None,
        })
    }

    /// A job of this number was submitted at 0, which tells the clocks from each other.
    pub fn submitted(number: u64) -> Self {
        let mut story = Self::new();
        story.submit(number, Self::ok(&[id(number)]));
        story
    }

    pub fn judge(&self, promise: &Promise) -> Verdict {
        match promise.judge {
            Judge::Alone(judge) => judge(&Evidence::of(self)),
            Judge::After(judge) => judge(&Evidence::of(self), &[]),
        }
    }

    /// A time of the stores.
    pub fn at(ms: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::days(20_000) + TimeDelta::milliseconds(ms)
    }

    pub fn last(&mut self) -> &mut Final {
        self.0.last.get_or_insert_default()
    }

    pub fn ok(jobs: &[Uuid]) -> Outcome {
        let seen = |id: &Uuid| Seen { id: *id, status: "pending".to_owned(), retries: 0 };
        Outcome::Ok { status: 201, jobs: jobs.iter().map(seen).collect() }
    }

    pub fn shown(job: u64, status: &str, retries: i32) -> Outcome {
        Outcome::Ok { status: 200, jobs: vec![Seen { id: id(job), status: status.to_owned(), retries }] }
    }

    pub fn lost() -> Outcome {
        Outcome::Unknown { why: "lost".to_owned() }
    }

    pub fn refused(status: u16) -> Outcome {
        Outcome::Refused { status, why: "refused".to_owned() }
    }

    fn call(&mut self, client: &str, request: Request, (start, end): (u64, Option<u64>), outcome: Outcome) {
        self.0.calls.push(Call {
            call: self.0.calls.len() as u64 + 1,
            client: client.to_owned(),
            replica: 0,
            request,
            start: start * 1000,
            end: end.map(|end| end * 1000).filter(|_| !matches!(outcome, Outcome::Unknown { .. })),
            outcome,
        });
    }

    pub fn submit(&mut self, number: u64, outcome: Outcome) {
        self.submit_during(number, 0, Some(0), outcome);
    }

    pub fn submit_during(&mut self, number: u64, start: u64, end: Option<u64>, outcome: Outcome) {
        let request = Request::Submit { key: None, numbers: vec![number], batch: false };
        self.call("submitter", request, (start, end), outcome);
    }

    pub fn submit_keyed(&mut self, key: &str, number: u64, outcome: Outcome) {
        let request = Request::Submit { key: Some(key.to_owned()), numbers: vec![number], batch: false };
        self.call("submitter", request, (0, Some(0)), outcome);
    }

    pub fn cancel(&mut self, job: u64, at: u64, outcome: Outcome) {
        self.call("canceller", Request::Cancel { job: id(job) }, (at, Some(at + 10)), outcome);
    }

    pub fn retry(&mut self, job: u64, outcome: Outcome) {
        self.retry_at(job, 0, outcome);
    }

    pub fn retry_at(&mut self, job: u64, at: u64, outcome: Outcome) {
        self.call("canceller", Request::Retry { job: id(job) }, (at, Some(at + 100)), outcome);
    }

    pub fn look(&mut self, client: &str, job: u64, at: u64, outcome: Outcome) {
        self.call(client, Request::Get { job: id(job) }, (at, Some(at + 5)), outcome);
    }

    pub fn intrude(&mut self, at: u64, expected: u16, outcome: Outcome) {
        let request =
            Request::Intrusion { what: "cancels as a viewer".to_owned(), expected, job: Some(id(1)) };
        self.call("intruder", request, (at, Some(at + 10)), outcome);
    }

    /// A job's row; it was stored when its submission was answered.
    pub fn row(&mut self, job: u64, number: u64, status: &str) -> &mut Job {
        let of = |call: &&Call| matches!(&call.request, Request::Submit { numbers, .. } if numbers.contains(&number));
        let call = self.0.calls.iter().find(of);
        let stored = call.map_or(0, |call| call.end.unwrap_or(call.start)).cast_signed() / 1000;
        let row = Job {
            id: id(job),
            status: status.to_owned(),
            priority: 5,
            model_name: "m".to_owned(),
            max_retries: 3,
            retry_count: 0,
            number: Some(number.cast_signed()),
            submitted_at: Self::at(stored),
            completed_at: None,
            run_at: None,
            error_message: None,
            result: None,
        };
        let jobs = &mut self.last().jobs;
        jobs.push(row);
        let last = jobs.len() - 1;
        &mut jobs[last]
    }

    pub fn key(&mut self, key: &str, jobs: &[Uuid]) {
        self.last().keys.push(Key { key: key.to_owned(), job_ids: jobs.to_vec() });
    }

    pub fn execution(&mut self, number: u64, job: u64, status: &str) -> Told<'_> {
        let live = matches!(status, "started" | "running");
        self.last().executions.push(Execution {
            id: lease(number),
            job_id: id(job),
            worker_id: Uuid::from_u64_pair(3, 1),
            attempt_number: 1,
            status: status.to_owned(),
            created_at: Self::at(0),
            completed_at: (!live).then(|| Self::at(0)),
            lease_expires_at: Some(Self::at(60_000)),
            error_code: None,
            error_message: None,
        });
        self.execution_of(number)
    }

    pub fn execution_of(&mut self, number: u64) -> Told<'_> {
        Told(self.last().executions.iter_mut().rfind(|row| row.id == lease(number)).unwrap())
    }

    /// A change of a job; the former state is none if it is empty, the former lease that of the change before.
    pub fn change(&mut self, job: u64, at: i64, old: &str, new: &str, to: Option<u64>) -> &mut Audit {
        let audit = &mut self.last().audit;
        let before =
            audit.iter().rfind(|change| change.job_id == id(job)).and_then(|change| change.new_lease);
        audit.push(Audit {
            id: audit.len() as i64 + 1,
            job_id: id(job),
            old_status: (!old.is_empty()).then(|| old.to_owned()),
            new_status: Some(new.to_owned()),
            old_lease: before,
            new_lease: to.map(lease),
            old_due: None,
            new_due: None,
            new_expires: None,
            retries: Some(0),
            epoch: Some(1),
            at: Self::at(at),
        });
        audit.last_mut().unwrap()
    }

    pub fn write(&mut self, writer: Option<i64>, current: Option<i64>) {
        let writes = &mut self.last().writes;
        writes.push(Write { id: writes.len() as i64 + 1, relation: "jobs".to_owned(), writer, current });
    }

    pub fn redis(&mut self, at: u64, act: RedisAct) -> &mut Self {
        self.0.redis.push((at * 1000, act));
        self
    }

    pub fn began(job: u64, number: u64, attempt: i32) -> Act {
        Act::Start { job: id(job), lease: lease(number), attempt, number: job }
    }

    pub fn ended(job: u64, number: u64, end: Ending) -> Act {
        Act::End { job: id(job), lease: lease(number), end }
    }

    pub fn act(&mut self, at: u64, worker: &str, act: Act) {
        self.0.acts.push((at * 1000, worker.to_owned(), act));
    }

    pub fn start(&mut self, worker: &str, job: u64, number: u64, attempt: i32) {
        self.act(0, worker, Self::began(job, number, attempt));
    }

    pub fn end(&mut self, worker: &str, job: u64, number: u64, end: Ending) {
        self.act(0, worker, Self::ended(job, number, end));
    }

    /// A report that is answered 5 ms later.
    pub fn report(
        &mut self,
        worker: &str,
        job: u64,
        number: u64,
        says: Says,
        at: u64,
        acknowledged: Option<bool>,
    ) -> &mut Self {
        let report = self.0.acts.len() as u64;
        let (job, lease) = (id(job), lease(number));
        self.act(at, worker, Act::Report { report, job, lease, says, replica: Some(0), stale: false });
        self.act(at + 5, worker, Act::Answer { report, acknowledged, why: String::new() });
        self
    }

    /// An effect outside; from now on there must be one for each completion that a worker has heard of.
    pub fn effect(&mut self, worker: &str, job: u64, number: u64, at: u64) -> &mut Self {
        self.info.effects = true;
        self.act(at, worker, Act::Effect { job: id(job), lease: lease(number), number: job });
        self
    }

    /// All reports so far were made on sessions.
    pub fn on_sessions(&mut self) {
        for (_, _, act) in &mut self.0.acts {
            if let Act::Report { replica, .. } = act {
                *replica = None;
            }
        }
    }

    /// The answer of the last report came at this time.
    pub fn last_answer(&mut self, at: u64) {
        self.0.acts.last_mut().unwrap().0 = at * 1000;
    }

    pub fn fault(&mut self, begun: u64, over: u64, name: &str, leader: bool) {
        self.0.faults.push(FaultRun {
            fault: self.0.faults.len() as u64 + 1,
            name: name.to_owned(),
            replicas: vec![0],
            leader,
            detail: String::new(),
            begun: begun * 1000,
            healed: Some(over * 1000),
            over: Some(over * 1000),
            proof: Some("it bit".to_owned()),
            broke: None,
            no_successor: false,
        });
    }

    pub fn view(
        &mut self,
        at: u64,
        replica: usize,
        id: u64,
        (role, leader): (&str, u64),
        (term, epoch): (u64, u64),
        applied: u64,
    ) -> &mut Self {
        let (leader, epoch, applied) = (Some(leader), Some(epoch), Some(applied));
        let view = View { id, role: role.to_owned(), leader, term, epoch, applied };
        self.0.views.push((at * 1000, replica, Some(1), view));
        self
    }

    pub fn stage(&mut self, at: i64, stage: Stage) {
        self.0.stages.push((at.cast_unsigned() * 1000, stage));
    }
}
