use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::super::FETCH_WITHIN;
use super::super::polls::Polled;
use super::super::tests::{TIMEOUT, assignment, fleet, id, start, worker};
use super::*;
use crate::domain::execution::Usage;
use crate::domain::ids::DeliveryId;
use crate::domain::matching::Shape;
use crate::domain::worker::WorkerStatus;
use crate::services::command::{Credits, Deliver, Delivery, Outlet};
use crate::storage::LiveLease;

const WORKER: WorkerId = WorkerId(id(1));
const FIRST: SessionId = SessionId(id(11));
const SECOND: SessionId = SessionId(id(12));

/// The way to a session.
#[derive(Default)]
struct Line {
    sent: Mutex<Vec<Delivery>>,
    cut: AtomicBool,
}

impl Deliver for Line {
    fn deliver(&self, delivery: Delivery) -> bool {
        let open = !self.cut.load(Ordering::Relaxed);
        if open {
            self.sent.lock().unwrap().push(delivery);
        }
        open
    }
}

impl Line {
    /// What came since the last time.
    fn take(&self) -> Vec<String> {
        let sent = std::mem::take(&mut *self.sent.lock().unwrap());
        sent.into_iter().map(|delivery| shown(&delivery)).collect()
    }

    fn attach(self: &Arc<Self>, session: SessionId, granted: u64, held: &[u128]) -> Attach {
        Attach {
            worker_id: WORKER,
            session,
            renewal: false,
            held: held.iter().map(|n| (job(*n), lease(*n))).collect(),
            credits: Credits { granted, used: 0 },
            outlet: Outlet::Here(Arc::<Self>::clone(self)),
        }
    }
}

fn shown(delivery: &Delivery) -> String {
    assert_eq!(delivery.worker_id, WORKER);
    let session = if delivery.session == FIRST { "first" } else { "second" };
    match &delivery.news {
        News::Assigned(assignment) => format!("{session}: run {}", number(assignment.lease)),
        News::Ended(_, lease) => format!("{session}: ended {}", number(*lease)),
        News::Replaced => format!("{session}: replaced"),
        News::Draining => format!("{session}: draining"),
        News::Removed => format!("{session}: removed"),
    }
}

fn job(n: u128) -> JobId {
    JobId(id(200 + n))
}

fn lease(n: u128) -> LeaseId {
    LeaseId(id(100 + n))
}

fn number(lease: LeaseId) -> u128 {
    lease.0.as_u128() - 100
}

fn pulse(status: WorkerStatus, loaded: &[&str]) -> Pulse {
    let loaded_models = loaded.iter().map(|&model| model.to_owned()).collect();
    Pulse { status, usage: Usage::default(), loaded_models }
}

/// Assigns job `n`, as a round of the scheduler does.
#[track_caller]
fn assign(fleet: &mut Fleet, n: u128, now: Instant) {
    let poller = fleet.reserve(WORKER).expect("a slot is free");
    assert!(fleet.grant(assignment(n), poller, now));
}

/// A lease of a former leader.
fn live(n: u128) -> LiveLease {
    LiveLease {
        lease: lease(n),
        job_id: job(n),
        worker_id: WORKER,
        running: false,
        delivery: None,
        timeout_seconds: 60,
        expires_in: 90.0,
    }
}

fn slots(fleet: &mut Fleet) -> u32 {
    fleet.pool().free_slots()
}

#[test]
fn no_session_of_an_unknown_worker_is_attached() {
    let now = start();
    let line = Arc::<Line>::default();
    assert_eq!(Fleet::default().attach(line.attach(FIRST, 1, &[]), now), None);
}

#[test]
fn a_session_is_told_which_leases_it_holds_in_vain() {
    let now = start();
    let (mut fleet, line) = (fleet(3, now), Arc::<Line>::default());
    fleet.attach(line.attach(FIRST, 3, &[]), now).unwrap();
    assign(&mut fleet, 1, now);
    line.take();
    let found = fleet.attach(line.attach(FIRST, 3, &[1, 2]), now).unwrap();
    let ended = vec![(job(2), lease(2))];
    assert_eq!(found, AttachedTo { ended, ..AttachedTo::default() });
    assert!(line.take().is_empty(), "the job that it holds is not pushed again");
    assert!(fleet.unfetched(now + FETCH_WITHIN).is_empty());
}

#[test]
fn a_job_that_waited_to_be_fetched_is_pushed_to_the_session_and_to_nobody_else() {
    let now = start();
    let (mut fleet, line) = (fleet(2, now), Arc::<Line>::default());
    assign(&mut fleet, 1, now);
    assert_eq!(fleet.attach(line.attach(FIRST, 2, &[]), now), Some(AttachedTo::default()));
    assert_eq!(line.take(), ["first: run 1"]);
    assert!(fleet.unfetched(now + FETCH_WITHIN).is_empty());
    assert_eq!(slots(&mut fleet), 1, "one slot and one credit are left");
    assert!(matches!(fleet.poll(WORKER, DeliveryId(id(7)), true, now), Polled::Wait(_)));
}

#[test]
fn a_job_that_is_not_in_memory_is_named_and_pushed_once_it_is_loaded() {
    let now = start();
    let (mut fleet, line) = (fleet(2, now), Arc::<Line>::default());
    fleet.adopt(&live(1), now);
    let found = fleet.attach(line.attach(FIRST, 2, &[]), now).unwrap();
    assert_eq!(found, AttachedTo { unsent: vec![lease(1)], ..AttachedTo::default() });
    assert_eq!(fleet.unfetched(now + FETCH_WITHIN), [(job(1), lease(1))]);
    for _ in 0..2 {
        fleet.push(Box::new(assignment(1)));
    }
    assert_eq!(line.take(), ["first: run 1"], "once");
    assert!(fleet.unfetched(now + FETCH_WITHIN).is_empty());
    assert!(matches!(fleet.poll(WORKER, DeliveryId(id(7)), true, now), Polled::Wait(_)));
}

#[test]
fn a_job_that_got_lost_with_its_session_is_pushed_to_the_next_one() {
    let now = start();
    let (mut fleet, line) = (fleet(1, now), Arc::<Line>::default());
    fleet.attach(line.attach(FIRST, 1, &[]), now).unwrap();
    assign(&mut fleet, 1, now);
    assert!(fleet.detach(WORKER, FIRST, &HashSet::new()).is_empty());
    let found = fleet.attach(line.attach(SECOND, 1, &[]), now).unwrap();
    assert_eq!(found.unsent, [lease(1)], "its input was sent and forgotten");
    fleet.push(Box::new(assignment(1)));
    assert_eq!(line.take(), ["first: run 1", "second: run 1"]);
}

#[test]
fn a_job_that_ran_and_that_the_worker_does_not_know_any_more_is_lost_and_not_pushed() {
    let now = start();
    let (mut fleet, line) = (fleet(2, now), Arc::<Line>::default());
    fleet.attach(line.attach(FIRST, 2, &[]), now).unwrap();
    for n in [1, 2] {
        assign(&mut fleet, n, now);
        fleet.mark_running(lease(n), now);
    }
    line.take();
    let found = fleet.attach(line.attach(SECOND, 2, &[2]), now).unwrap();
    assert_eq!(found, AttachedTo { lost: vec![(job(1), lease(1))], ..AttachedTo::default() });
    assert_eq!(line.take(), ["first: replaced"]);
    assert_eq!(fleet.leases_of(WORKER).len(), 2, "the lease stays until the loss is committed");
}

#[test]
fn no_more_jobs_are_offered_than_there_are_credits_and_slots() {
    let now = start();
    let (mut fleet, line) = (fleet(3, now), Arc::<Line>::default());
    fleet.attach(line.attach(FIRST, 1, &[]), now).unwrap();
    assert_eq!(slots(&mut fleet), 1, "by credits");
    let poller = fleet.reserve(WORKER).unwrap();
    assert!(fleet.reserve(WORKER).is_none(), "a job that is being assigned has the only credit");
    assert!(fleet.grant(assignment(1), poller, now));
    assert_eq!((line.take(), slots(&mut fleet)), (vec!["first: run 1".to_owned()], 0));

    fleet.hear(WORKER, FIRST, 9, None, now);
    assert_eq!(slots(&mut fleet), 2, "by slots");
    fleet.hear(WORKER, FIRST, 2, None, now);
    assert_eq!(slots(&mut fleet), 2, "an old message takes no credit back");
    fleet.release(lease(1), true);
    assert_eq!(slots(&mut fleet), 3);
}

#[test]
fn a_slot_that_comes_free_brings_no_credit() {
    let now = start();
    let (mut fleet, line) = (fleet(1, now), Arc::<Line>::default());
    fleet.attach(line.attach(FIRST, 1, &[]), now).unwrap();
    assign(&mut fleet, 1, now);
    fleet.release(lease(1), true);
    assert_eq!(slots(&mut fleet), 0);
    fleet.hear(WORKER, SECOND, 2, None, now);
    assert_eq!(slots(&mut fleet), 0, "nor does what another session was granted");
    fleet.hear(WORKER, FIRST, 2, None, now);
    assert_eq!(slots(&mut fleet), 1);
}

#[test]
fn a_newer_session_takes_over_and_the_older_one_is_told() {
    let now = start();
    let (mut fleet, old, new) = (fleet(2, now), Arc::<Line>::default(), Arc::<Line>::default());
    fleet.attach(old.attach(FIRST, 2, &[]), now).unwrap();
    fleet.attach(old.attach(FIRST, 2, &[]), now).unwrap();
    assert!(old.take().is_empty(), "the same session again replaces nothing");
    fleet.attach(new.attach(SECOND, 2, &[]), now).unwrap();
    assert_eq!(old.take(), ["first: replaced"]);
    // What comes late of the old one changes nothing.
    assert!(
        fleet.hear(WORKER, FIRST, 9, Some(pulse(WorkerStatus::Offline, &[])), now).left_behind.is_empty()
    );
    assert!(fleet.detach(WORKER, FIRST, &HashSet::new()).is_empty());
    assert_eq!(slots(&mut fleet), 2);
    assign(&mut fleet, 1, now);
    assert_eq!((old.take().len(), new.take()), (0, vec!["second: run 1".to_owned()]));
}

#[test]
fn a_registration_anew_ends_the_session() {
    let now = start();
    let (mut fleet, line) = (fleet(2, now), Arc::<Line>::default());
    fleet.attach(line.attach(FIRST, 2, &[]), now).unwrap();
    fleet.admit(&worker(2), TIMEOUT, now, now);
    assert_eq!(line.take(), ["first: replaced"]);
}

#[test]
fn nothing_is_offered_to_a_worker_whose_session_has_ended_and_its_leases_stay() {
    let now = start();
    let (mut fleet, line) = (fleet(2, now), Arc::<Line>::default());
    fleet.attach(line.attach(FIRST, 2, &[]), now).unwrap();
    assign(&mut fleet, 1, now);
    assert!(fleet.detach(WORKER, FIRST, &HashSet::new()).is_empty());
    assert_eq!(slots(&mut fleet), 0);
    assert!(fleet.reserve(WORKER).is_none());
    assert_eq!(fleet.leases_of(WORKER), [(job(1), lease(1))]);
    assert!(fleet.orphans().is_empty());
}

#[test]
fn a_job_whose_session_turns_out_to_be_gone_waits_for_the_next_one() {
    let now = start();
    let (mut fleet, line) = (fleet(2, now), Arc::<Line>::default());
    fleet.attach(line.attach(FIRST, 2, &[]), now).unwrap();
    line.cut.store(true, Ordering::Relaxed);
    assign(&mut fleet, 1, now);
    assert_eq!(slots(&mut fleet), 0, "nobody is there");
    assert_eq!(fleet.unfetched(now + FETCH_WITHIN), [(job(1), lease(1))]);
    line.cut.store(false, Ordering::Relaxed);
    assert_eq!(fleet.attach(line.attach(SECOND, 2, &[]), now), Some(AttachedTo::default()));
    assert_eq!(line.take(), ["second: run 1"]);
}

#[test]
fn a_job_that_cannot_be_pushed_while_a_session_attaches_is_kept() {
    let now = start();
    let (mut fleet, line) = (fleet(1, now), Arc::<Line>::default());
    assign(&mut fleet, 1, now);
    line.cut.store(true, Ordering::Relaxed);
    fleet.attach(line.attach(FIRST, 1, &[]), now).unwrap();
    assert!(
        matches!(fleet.poll(WORKER, DeliveryId(id(7)), true, now), Polled::Fetch(found) if found == lease(1))
    );
    assert!(fleet.fetched(lease(1), DeliveryId(id(7)), now).is_some(), "with what the worker needs");
}

#[test]
fn the_end_of_a_lease_is_told_unless_the_worker_has_brought_it_about() {
    let now = start();
    let (mut fleet, line) = (fleet(3, now), Arc::<Line>::default());
    fleet.attach(line.attach(FIRST, 3, &[]), now).unwrap();
    (1..=3).for_each(|n| assign(&mut fleet, n, now));
    line.take();
    fleet.hear(WORKER, FIRST, 9, None, now);
    fleet.release(lease(1), true);
    fleet.release(lease(2), false);
    assert_eq!((line.take(), slots(&mut fleet)), (vec!["first: ended 2".to_owned()], 2));
    line.cut.store(true, Ordering::Relaxed);
    fleet.release(lease(3), false);
    assert_eq!(slots(&mut fleet), 0, "the session is gone");
}

#[test]
fn what_a_worker_says_of_itself_counts_from_its_pulse_on() {
    let now = start();
    let (mut fleet, line) = (fleet(2, now), Arc::<Line>::default());
    fleet.attach(line.attach(FIRST, 2, &[]), now).unwrap();
    fleet.take_vitals(now);
    let later = now + Duration::from_secs(1);
    fleet.hear(WORKER, FIRST, 2, None, later);
    assert!(fleet.take_vitals(later).is_empty(), "there is nothing new to write");
    assert!(fleet.silent(now + Duration::from_secs(15)).is_empty(), "but it was heard");

    let group = fleet.pool().able(&shape())[0];
    assert_eq!(fleet.pool().with_model(group, "m"), None);
    let usage = Usage { cpu_usage_percent: Some(50.0), ..Usage::default() };
    let said = Pulse { usage, ..pulse(WorkerStatus::Idle, &["m", "n"]) };
    assert!(fleet.hear(WORKER, FIRST, 2, Some(said), later).left_behind.is_empty());
    assert_eq!(fleet.pool().with_model(group, "m"), Some(WORKER));
    let vitals = fleet.take_vitals(later);
    assert_eq!((vitals.len(), vitals[0].usage), (1, usage));

    fleet.hear(WORKER, FIRST, 2, Some(pulse(WorkerStatus::Unhealthy, &["n"])), later);
    assert_eq!(fleet.pool().with_model(group, "m"), None);
    assert_eq!((slots(&mut fleet), fleet.take_vitals(later)[0].status), (0, WorkerStatus::Unhealthy));
    fleet.hear(WORKER, FIRST, 2, Some(pulse(WorkerStatus::Idle, &[])), later);
    assert_eq!((slots(&mut fleet), fleet.pool().with_model(group, "n")), (2, None));
}

#[test]
fn a_worker_that_was_given_up_and_speaks_on_its_session_is_not_attached_until_it_is_attached_anew() {
    let now = start();
    let (mut fleet, line) = (fleet(2, now), Arc::<Line>::default());
    fleet.attach(line.attach(FIRST, 2, &[]), now).unwrap();
    assert!(fleet.hear(WORKER, FIRST, 2, None, now).is_attached);
    fleet.remove(WORKER);
    fleet.recall(&worker(2), TIMEOUT, now, now);
    assert!(!fleet.hear(WORKER, FIRST, 2, None, now).is_attached);
    assert_eq!(slots(&mut fleet), 0);
    fleet.attach(line.attach(SECOND, 2, &[]), now).unwrap();
    assert!(fleet.hear(WORKER, FIRST, 2, None, now).is_attached, "on the newer one");
    assert_eq!(slots(&mut fleet), 2);
}

#[test]
fn a_leaving_worker_gives_back_what_has_not_reached_it_and_keeps_the_rest() {
    let now = start();
    let (mut fleet, line) = (fleet(3, now), Arc::<Line>::default());
    fleet.adopt(&live(2), now);
    fleet.attach(line.attach(FIRST, 3, &[]), now).unwrap();
    assign(&mut fleet, 1, now);
    let said = fleet.hear(WORKER, FIRST, 3, Some(pulse(WorkerStatus::Busy, &[])), now);
    assert!(said.left_behind.is_empty(), "it stays");
    let said = fleet.hear(WORKER, FIRST, 3, Some(pulse(WorkerStatus::Offline, &[])), now);
    assert_eq!(said.left_behind, [(job(2), lease(2))]);
    assert_eq!(slots(&mut fleet), 0);
    let kept: BTreeSet<_> = fleet.leases_of(WORKER).into_iter().collect();
    assert_eq!(kept, BTreeSet::from([(job(1), lease(1)), (job(2), lease(2))]), "until that is committed");
}

#[test]
fn what_a_leaving_worker_cannot_know_of_is_given_back_when_its_session_ends() {
    let now = start();
    let (mut fleet, line) = (fleet(4, now), Arc::<Line>::default());
    fleet.attach(line.attach(FIRST, 4, &[]), now).unwrap();
    for n in [1, 2, 3] {
        assign(&mut fleet, n, now);
    }
    fleet.mark_running(lease(1), now);
    let under_way = fleet.reserve(WORKER).unwrap();
    let said = fleet.hear(WORKER, FIRST, 4, Some(pulse(WorkerStatus::Offline, &[])), now);
    assert!(said.left_behind.is_empty(), "all of them were pushed");
    let given_back = fleet.detach(WORKER, FIRST, &HashSet::from([lease(2)]));
    assert_eq!(given_back, [(job(3), lease(3))], "the first runs, of the second it may know");
    fleet.release(lease(3), true);

    // An assignment that was being committed meanwhile.
    assert!(fleet.grant(assignment(4), under_way, now));
    assert_eq!(fleet.unfetched(now), [(job(4), lease(4))]);
}

#[test]
fn what_did_not_leave_an_ended_session_is_pushed_to_the_next_one_while_the_worker_stays() {
    let now = start();
    let (mut fleet, line) = (fleet(2, now), Arc::<Line>::default());
    fleet.attach(line.attach(FIRST, 2, &[]), now).unwrap();
    assign(&mut fleet, 1, now);
    assert!(fleet.detach(WORKER, FIRST, &HashSet::new()).is_empty());
    assert!(fleet.unfetched(now).is_empty(), "the worker is about to come back");
    let found = fleet.attach(line.attach(SECOND, 2, &[]), now).unwrap();
    assert_eq!(found.unsent, [lease(1)]);
}

#[test]
fn a_worker_that_was_leaving_and_opens_a_session_is_offered_jobs_again() {
    let now = start();
    let (mut fleet, line) = (fleet(2, now), Arc::<Line>::default());
    fleet.attach(line.attach(FIRST, 2, &[]), now).unwrap();
    fleet.hear(WORKER, FIRST, 2, Some(pulse(WorkerStatus::Offline, &[])), now);
    fleet.attach(line.attach(SECOND, 2, &[]), now).unwrap();
    assert_eq!(slots(&mut fleet), 2);
}

#[test]
fn nothing_is_pushed_under_a_lease_that_has_ended() {
    let now = start();
    let (mut fleet, line) = (fleet(1, now), Arc::<Line>::default());
    fleet.adopt(&live(1), now);
    fleet.attach(line.attach(FIRST, 1, &[]), now).unwrap();
    fleet.release(lease(1), true);
    fleet.push(Box::new(assignment(1)));
    assert!(line.take().is_empty());
}

fn shape() -> Shape {
    Shape { model_name: "m".into(), requires_gpu: false, required_memory_mib: 0 }
}

#[test]
fn a_drained_worker_keeps_what_it_has_gets_nothing_new_and_is_told_on_every_stream() {
    let now = start();
    let line = Arc::<Line>::default();
    let mut fleet = fleet(4, now);
    fleet.attach(line.attach(FIRST, 4, &[]), now).unwrap();
    assign(&mut fleet, 1, now);
    let under_way = fleet.reserve(WORKER).unwrap();
    assert_eq!(fleet.drain(WORKER), [], "what was pushed has reached it");
    assert!(!fleet.grant(assignment(2), under_way, now), "what was being committed goes to others");
    assert_eq!(line.take(), ["first: run 1", "first: draining"]);
    assert_eq!((slots(&mut fleet), fleet.reserve(WORKER).is_none()), (0, true));
    fleet.hear(WORKER, FIRST, 4, Some(pulse(WorkerStatus::Idle, &[])), now);
    assert_eq!(slots(&mut fleet), 0, "what it says of itself changes nothing");
    fleet.attach(line.attach(SECOND, 4, &[1]), now).unwrap();
    assert_eq!(line.take(), ["second: draining", "first: replaced"]);
    assert_eq!(fleet.leases_of(WORKER), [(job(1), lease(1))]);
    fleet.admit(&worker(4), TIMEOUT, now, now);
    line.take();
    fleet.release(lease(1), true);
    fleet.attach(line.attach(FIRST, 4, &[]), now).unwrap();
    assert_eq!((line.take(), slots(&mut fleet)), (vec![], 4), "it has registered again");
}

#[test]
fn a_drained_worker_leaves_to_others_what_it_has_not_fetched() {
    let now = start();
    let mut fleet = fleet(2, now);
    assign(&mut fleet, 1, now);
    assert_eq!(fleet.drain(WORKER), [(job(1), lease(1))]);
    assert_eq!(fleet.unfetched(now), [(job(1), lease(1))], "until it is taken back");
}

#[test]
fn a_removed_worker_is_told_that_its_leases_end_and_leaves_them_as_orphans() {
    let now = start();
    let line = Arc::<Line>::default();
    let mut fleet = fleet(2, now);
    fleet.attach(line.attach(FIRST, 2, &[]), now).unwrap();
    assign(&mut fleet, 1, now);
    line.take();
    assert_eq!(fleet.dismiss(WORKER), [(job(1), lease(1))]);
    assert_eq!(line.take(), ["first: ended 1", "first: removed"]);
    assert_eq!((fleet.knows(WORKER), slots(&mut fleet)), (false, 0));
    assert_eq!(fleet.orphans(), [(job(1), lease(1))]);
    assert_eq!(fleet.dismiss(WORKER), []);
}

#[test]
fn a_job_that_a_call_fetched_while_a_session_began_waits_no_more() {
    let now = start();
    let (mut fleet, line) = (fleet(2, now), Arc::<Line>::default());
    fleet.adopt(&live(1), now);
    assert!(matches!(fleet.poll(WORKER, DeliveryId(id(7)), true, now), Polled::Fetch(_)));
    assert_eq!(fleet.attach(line.attach(FIRST, 2, &[]), now).unwrap().unsent, [lease(1)]);
    fleet.fetched(lease(1), DeliveryId(id(7)), now);
    fleet.push(Box::new(assignment(1)));
    assert!(line.take().is_empty());
    assert!(matches!(fleet.poll(WORKER, DeliveryId(id(8)), true, now), Polled::Wait(_)));
    assert!(fleet.drain(WORKER).is_empty());
}

#[test]
fn a_lease_that_its_worker_came_back_without_is_neither_pushed_nor_fetched() {
    let now = start();
    let (mut fleet, line) = (fleet(2, now), Arc::<Line>::default());
    fleet.adopt(&live(1), now);
    fleet.remove(WORKER);
    fleet.admit(&worker(2), TIMEOUT, now, now);
    fleet.attach(line.attach(FIRST, 2, &[]), now).unwrap();
    fleet.push(Box::new(assignment(1)));
    assert!(line.take().is_empty());
    fleet.unfetch(lease(1));
    assert!(matches!(fleet.poll(WORKER, DeliveryId(id(7)), true, now), Polled::Wait(_)));
    assert_eq!(fleet.orphans(), [(job(1), lease(1))]);
}

#[path = "renewal_tests.rs"]
mod renewals;
