//! Random steps on the fleet, as the leader takes them, and on a model of it, compared after each.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use tokio::sync::oneshot::{self, error::TryRecvError};

use super::tests::{assignment, id, start, worker};
use super::worker::{Reached, Way};
use super::*;
use crate::domain::execution::Usage;
use crate::domain::ids::{DeliveryId, SessionId};
use crate::domain::worker::WorkerStatus;
use crate::services::command::{Attach, Credits, Deliver, Delivery, Heartbeat, Outlet, Pulse};

/// How many workers there are.
const WORKERS: usize = 3;
const WORKER_TIMEOUT: Duration = Duration::from_secs(20);
const PATIENCE: Patience = Patience { failures: 2, pause: Duration::from_secs(10) };
/// How long an attempt may run; see [`assignment`].
const RUN: Duration = Duration::from_secs(60);

/// What may happen. A number names one of those that are there at that time: leases, calls, what is on its way.
#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Register {
        who: usize,
        slots: u32,
        interval: u32,
    },
    /// One that was given up says something.
    ComeBack(usize),
    Touch(usize),
    Beat {
        who: usize,
        status: WorkerStatus,
        lists: bool,
    },
    Poll {
        who: usize,
        waits: bool,
        again: bool,
    },
    HangUp(usize),
    StopWaiting(usize),
    EndFetch {
        which: usize,
        committed: bool,
    },
    Reserve(usize),
    EndAssignment {
        which: usize,
        committed: bool,
    },
    Run(usize),
    Release {
        which: usize,
        by_holder: bool,
    },
    Complete(usize),
    Fail(usize),
    EndRests,
    Drain {
        who: usize,
        given_back: bool,
    },
    Dismiss(usize),
    GiveUpTheSilent,
    Reap,
    Attach {
        who: usize,
        credits: u64,
        holds: bool,
        loads: bool,
    },
    CutLine(usize),
    Hear {
        who: usize,
        replaced: bool,
        credits: u64,
        status: Option<WorkerStatus>,
    },
    Detach {
        who: usize,
        replaced: bool,
        holds: bool,
    },
    /// Another leader loads what PostgreSQL holds.
    TakeOver,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (who, which, yes) = (|| 0..WORKERS, || 0usize..8, any::<bool>);
    let status = || prop::sample::select(&WorkerStatus::ALL[..]);
    let step = prop_oneof![
        4 => (0u64..12).prop_map(Step::Wait),
        3 => (who(), 1u32..4, 5u32..12)
            .prop_map(|(who, slots, interval)| Step::Register { who, slots, interval }),
        3 => who().prop_map(Step::ComeBack),
        1 => who().prop_map(Step::Touch),
        2 => (who(), status(), yes()).prop_map(|(who, status, lists)| Step::Beat { who, status, lists }),
        6 => (who(), yes(), yes()).prop_map(|(who, waits, again)| Step::Poll { who, waits, again }),
        1 => which().prop_map(Step::HangUp),
        1 => which().prop_map(Step::StopWaiting),
        4 => (which(), yes()).prop_map(|(which, committed)| Step::EndFetch { which, committed }),
        10 => who().prop_map(Step::Reserve),
        8 => (which(), prop::bool::weighted(0.8))
            .prop_map(|(which, committed)| Step::EndAssignment { which, committed }),
        3 => which().prop_map(Step::Run),
        2 => (which(), yes()).prop_map(|(which, by_holder)| Step::Release { which, by_holder }),
        2 => which().prop_map(Step::Complete),
        2 => which().prop_map(Step::Fail),
        2 => Just(Step::EndRests),
        1 => (who(), yes()).prop_map(|(who, given_back)| Step::Drain { who, given_back }),
        1 => who().prop_map(Step::Dismiss),
        2 => Just(Step::GiveUpTheSilent),
        1 => Just(Step::Reap),
        3 => (who(), 0u64..4, yes(), yes())
            .prop_map(|(who, credits, holds, loads)| Step::Attach { who, credits, holds, loads }),
        1 => who().prop_map(Step::CutLine),
        2 => (who(), yes(), 0u64..6, prop::option::of(status()))
            .prop_map(|(who, replaced, credits, status)| Step::Hear { who, replaced, credits, status }),
        1 => (who(), yes(), yes())
            .prop_map(|(who, replaced, holds)| Step::Detach { who, replaced, holds }),
        1 => Just(Step::TakeOver),
    ];
    prop::collection::vec(step, 1..80)
}

/// The way to a session.
#[derive(Default)]
struct Line {
    cut: AtomicBool,
    given: Mutex<Vec<LeaseId>>,
}

impl Deliver for Line {
    fn deliver(&self, delivery: Delivery) -> bool {
        let open = !self.cut.load(Ordering::Relaxed);
        if let (true, News::Assigned(assignment)) = (open, delivery.news) {
            self.given.lock().unwrap().push(assignment.lease);
        }
        open
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Standing {
    Trusted,
    Resting(Instant),
    OnTrial(Option<LeaseId>),
}

/// What PostgreSQL holds of a worker.
#[derive(Clone)]
struct Row {
    slots: u32,
    interval: u32,
    draining: bool,
    removed: bool,
    failures: u32,
    heard: Instant,
}

/// A worker that is known.
struct Member {
    grace_until: Instant,
    status: WorkerStatus,
    standing: Standing,
}

struct Session {
    session: SessionId,
    granted: u64,
    line: Arc<Line>,
}

struct Lease {
    who: usize,
    job: JobId,
    running: bool,
    orphan: bool,
    deadline: Instant,
    fetched_by: Option<DeliveryId>,
}

/// A call that waits, or whose job is on its way.
struct Call {
    who: usize,
    delivery: DeliveryId,
    receiver: oneshot::Receiver<Box<Assignment>>,
}

/// The commit of a fetch is awaited.
struct Fetch {
    who: usize,
    lease: LeaseId,
    delivery: DeliveryId,
    /// A session has taken the worker's jobs meanwhile.
    overtaken: bool,
}

struct World {
    fleet: Fleet,
    now: Instant,
    last_id: u128,
    rows: [Option<Row>; WORKERS],
    members: BTreeMap<usize, Member>,
    sessions: BTreeMap<usize, Session>,
    leases: BTreeMap<LeaseId, Lease>,
    calls: Vec<Call>,
    /// Slots taken by assignments whose commit is awaited.
    reserved: Vec<(usize, Option<Poller>)>,
    fetches: Vec<Fetch>,
}

type Checked = Result<(), TestCaseError>;

fn name(who: usize) -> WorkerId {
    WorkerId(id(1 + who as u128))
}

fn sorted<T: Ord>(items: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut items: Vec<T> = items.into_iter().collect();
    items.sort();
    items
}

/// Takes out one of those that are there.
fn take<T>(items: &mut Vec<T>, which: usize) -> Option<T> {
    (!items.is_empty()).then(|| items.remove(which % items.len()))
}

mod check;
mod play;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is reserved, committed, given back, fetched and lost, in any order: the fleet holds the leases that
    /// were granted and have not ended, each with one worker; no slot is given twice and none is lost; nobody gets
    /// anything who is drained, leaving, resting or gone; and those are silent who said nothing for their limit.
    #[test]
    fn no_sequence_of_steps_parts_the_fleet_from_what_was_granted(steps in steps()) {
        let mut world = World::new();
        for step in steps {
            world.play(step)?;
            world.check()?;
        }
    }
}
