//! Workers' sessions on a follower, while leaders and the connections to them come and go.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::{Arc, Mutex};

use cortex::domain::ids::{JobId, LeaseId, SessionId, WorkerId};
use cortex::domain::payload::Payload;
use cortex::forward::Route;
use cortex::security::Caller;
use cortex::services::command::{
    Answer, Assignment, Attach, Command, Commands, Credits, Delivery, News, Outlet,
};
use cortex::services::error::ServiceError;
use cortex::services::sessions::{Batch, Closing, Session};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use uuid::Uuid;

use crate::support::*;

const WORKER: WorkerId = WorkerId(Uuid::from_u128(1));
const STREAM: SessionId = SessionId(Uuid::from_u128(10));

fn job(n: u128) -> JobId {
    JobId(Uuid::from_u128(1 << 40 | n))
}

fn lease(n: u128) -> LeaseId {
    LeaseId(Uuid::from_u128(1 << 41 | n))
}

fn leases(numbers: impl IntoIterator<Item = u128>) -> BTreeSet<LeaseId> {
    numbers.into_iter().map(lease).collect()
}

fn push(outlet: &Outlet, n: u128) -> bool {
    push_bytes(outlet, n, 1)
}

fn push_bytes(outlet: &Outlet, n: u128, bytes: usize) -> bool {
    let assignment = Assignment {
        lease: lease(n),
        attempt_number: 1,
        worker_id: WORKER,
        job_id: job(n),
        job_name: "job".to_owned(),
        model_name: "model".to_owned(),
        model_version: "1".to_owned(),
        input_data: Payload::trusted("x".repeat(bytes)),
        timeout_seconds: 1,
        trace: None,
    };
    outlet.deliver(Delivery {
        worker_id: WORKER,
        session: STREAM,
        news: News::Assigned(Box::new(assignment)),
    })
}

/// A leader that attaches every session, and says which.
struct Host {
    attached: mpsc::UnboundedSender<Attach>,
    /// Leases that are not live.
    ended: Mutex<Vec<(JobId, LeaseId)>>,
}

impl Commands for Host {
    fn execute(&self, _: Caller, command: Command) -> BoxFuture<'_, Outcome> {
        let Command::Attach(attach) = command else { panic!("{command:?} instead of an attach") };
        // A test that has seen enough listens no more.
        drop(self.attached.send(attach));
        let ended = self.ended.lock().unwrap().clone();
        async { Ok(Answer::Attach(ended)) }.boxed()
    }
}

/// What a host has attached.
struct Attached(mpsc::UnboundedReceiver<Attach>);

fn host() -> (Arc<Host>, Attached) {
    let (attached, seen) = mpsc::unbounded_channel();
    (Arc::new(Host { attached, ended: Mutex::default() }), Attached(seen))
}

impl Attached {
    async fn next(&mut self) -> Attach {
        let attach = timeout(SOON, self.0.recv()).await.expect("the session is attached").unwrap();
        assert_eq!((attach.worker_id, attach.session), (WORKER, STREAM));
        attach
    }

    /// Waits until the session is attached with these leases; it may be attached more often than needed.
    async fn with(&mut self, leases: &BTreeSet<LeaseId>) -> Attach {
        loop {
            let attach = self.next().await;
            if held(&attach) == *leases {
                break attach;
            }
        }
    }
}

fn held(attach: &Attach) -> BTreeSet<LeaseId> {
    attach.held.iter().map(|(_, lease)| *lease).collect()
}

/// Opens a session with five credits, as the handler of its stream does.
fn open(follower: &Follower) -> (Arc<Session>, JoinHandle<Result<(), ServiceError>>) {
    let session = follower.sessions.open(Caller::Anybody, WORKER, STREAM, [], 5).unwrap();
    let (opened, router) = (Arc::clone(&session), Arc::clone(&follower.router));
    (session, tokio::spawn(async move { opened.attach(&*router).await }))
}

/// The same at a host, to the end.
async fn open_at(follower: &Follower, attached: &mut Attached) -> (Arc<Session>, Outlet) {
    let (session, opening) = open(follower);
    let outlet = attached.next().await.outlet;
    timeout(SOON, opening).await.expect("the session opens").unwrap().unwrap();
    (session, outlet)
}

async fn next(session: &Session) -> Result<Batch, Closing> {
    timeout(SOON, poll_fn(|cx| session.poll_batch(cx))).await.expect("the session says something")
}

/// Waits for the leases of the next assignments.
async fn assigned(session: &Session, count: usize) -> Vec<LeaseId> {
    let mut leases = Vec::new();
    while leases.len() < count {
        let batch = next(session).await.expect("the session is open");
        leases.extend(batch.assignments.iter().map(|assignment| assignment.lease));
    }
    leases
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deliveries_reach_a_followers_session_in_their_order() {
    let (commands, mut attached) = host();
    let leader = Replica::leading(commands).await;
    let follower = Follower::new(leader.route(), patient());
    let (session, outlet) = open_at(&follower, &mut attached).await;
    // Small ones in great number, and some that fill a message each.
    for n in 0..5_000 {
        assert!(push_bytes(&outlet, n, if n % 1_000 == 999 { 2 << 20 } else { 10 }));
    }
    let expected: Vec<_> = (0..5_000).map(lease).collect();
    assert_eq!(assigned(&session, expected.len()).await, expected);
}

#[tokio::test]
async fn a_broken_link_is_replaced_without_any_traffic_and_the_session_shows_what_it_holds() {
    let (commands, mut attached) = host();
    let leader = Replica::leading(commands).await;
    let follower = Follower::new(leader.route(), patient());
    let (session, lost) = open_at(&follower, &mut attached).await;
    assert!(push(&lost, 1) && push(&lost, 2));
    assigned(&session, 2).await;
    session.grant(2);
    leader.breaks.send_replace(());
    let again = attached.with(&leases([1, 2])).await;
    assert_eq!(again.credits, Credits { granted: 7, used: 2 });
    let deserted = async {
        while push(&lost, 3) {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, deserted).await.expect("nobody takes deliveries to a stream that is gone");
    assert!(push(&again.outlet, 4));
    assert_eq!(assigned(&session, 1).await, [lease(4)]);
}

#[tokio::test]
async fn a_new_leader_learns_what_a_session_holds_and_says_which_leases_have_ended() {
    let ((first, mut at_first), (second, mut at_second)) = (host(), host());
    *second.ended.lock().unwrap() = vec![(job(1), lease(1))];
    let (old, new) = (Replica::leading(first).await, Replica::leading(second).await);
    let follower = Follower::new(old.route(), patient());
    let (session, outlet) = open_at(&follower, &mut at_first).await;
    assert!(push(&outlet, 1) && push(&outlet, 2));
    assigned(&session, 2).await;
    old.cut.cancel();
    follower.route.send_replace(Route::Nowhere);
    follower.route.send_replace(new.route());
    let attach = at_second.next().await;
    assert_eq!(held(&attach), leases([1, 2]));
    assert_eq!(next(&session).await.unwrap().ended, [(job(1), lease(1))]);
    assert!(push(&attach.outlet, 3));
    assert_eq!(assigned(&session, 1).await, [lease(3)]);
}

#[tokio::test]
async fn a_leader_that_starts_over_learns_of_the_sessions_though_its_followers_see_no_change() {
    let ((first, mut at_first), (second, mut at_second)) = (host(), host());
    let leader = Replica::leading(first).await;
    let follower = Follower::new(leader.route(), patient());
    let (session, _) = open_at(&follower, &mut at_first).await;
    // Whether or not anybody sees that nobody leads in between.
    leader.leads.send_replace(Route::Nowhere);
    leader.leads.send_replace(Route::Here(second));
    let outlet = at_second.next().await.outlet;
    assert!(push(&outlet, 1));
    assert_eq!(assigned(&session, 1).await, [lease(1)]);
}

#[tokio::test]
async fn when_this_replica_leads_its_sessions_are_attached_here_and_to_each_leadership_anew() {
    let follower = Follower::new(Route::Nowhere, patient());
    let (session, opening) = open(&follower);
    for n in 0..3 {
        let (here, mut attached) = host();
        follower.route.send_replace(Route::Here(here));
        let outlet = attached.next().await.outlet;
        assert!(push(&outlet, n));
        assert_eq!(assigned(&session, 1).await, [lease(n)]);
        follower.route.send_replace(Route::Nowhere);
    }
    outcome_of(opening).await.unwrap();
}

async fn outcome_of(opening: JoinHandle<Result<(), ServiceError>>) -> Result<(), ServiceError> {
    timeout(SOON, opening).await.expect("the attaching ends").unwrap()
}

#[tokio::test]
async fn a_leader_that_shuts_down_hands_its_followers_sessions_to_the_next() {
    let ((first, mut at_first), (second, mut at_second)) = (host(), host());
    let (old, new) = (Replica::leading(first).await, Replica::leading(second).await);
    let follower = Follower::new(old.route(), patient());
    let (session, _) = open_at(&follower, &mut at_first).await;
    old.shutdown.cancel();
    follower.route.send_replace(new.route());
    let outlet = at_second.next().await.outlet;
    assert!(push(&outlet, 1));
    assigned(&session, 1).await;
}

/// Takes a command that must be an attach.
async fn taken(script: &mut Script) -> (Attach, oneshot::Sender<Outcome>) {
    let Taken { command, answer } = script.next().await;
    let Command::Attach(attach) = command else { panic!("{command:?} instead of an attach") };
    (attach, answer)
}

/// A session that was open with one leader when a scripted one took over. The replicas are there to be kept.
async fn taken_over() -> (Follower, Arc<Session>, Script, [Replica; 2]) {
    let (commands, mut attached) = host();
    let old = Replica::leading(commands).await;
    let (new, script) = Replica::scripted().await;
    let follower = Follower::new(old.route(), patient());
    let (session, _) = open_at(&follower, &mut attached).await;
    follower.route.send_replace(new.route());
    (follower, session, script, [old, new])
}

#[tokio::test]
async fn attaching_is_tried_until_it_works() {
    let (_follower, session, mut script, _replicas) = taken_over().await;
    for error in [
        ServiceError::Overloaded,
        ServiceError::Unavailable { reason: "PostgreSQL".to_owned() },
        ServiceError::Internal,
    ] {
        taken(&mut script).await.1.send(Err(error)).unwrap();
    }
    let (attach, answer) = taken(&mut script).await;
    answer.send(Ok(Answer::Attach(vec![]))).unwrap();
    assert!(push(&attach.outlet, 1));
    assigned(&session, 1).await;
}

#[tokio::test]
async fn a_copy_that_is_sent_again_shows_what_the_first_one_has_brought() {
    let (leader, mut script) = Replica::scripted().await;
    let follower = Follower::careless(leader.route(), patient());
    let (session, opening) = open(&follower);
    let (attach, _lost) = taken(&mut script).await;
    assert!(push(&attach.outlet, 1));
    assigned(&session, 1).await;
    // Its answer is lost, and what it began is not: the worker may already have said that the job runs.
    leader.breaks.send_replace(());
    let (again, answer) = taken(&mut script).await;
    assert_eq!((held(&again), again.credits.used), (leases([1]), 1));
    answer.send(Ok(Answer::Attach(vec![]))).unwrap();
    outcome_of(opening).await.unwrap();
}

#[tokio::test]
async fn a_session_that_is_closed_while_it_is_attached_is_detached_after_that() {
    let (follower, session, mut script, _replicas) = taken_over().await;
    let (_, answer) = taken(&mut script).await;
    session.close(Closing::Gone);
    follower.sessions.forget(&session);
    assert!(script.0.try_recv().is_err(), "nothing overtakes the attaching");
    answer.send(Ok(Answer::Attach(vec![]))).unwrap();
    let detach = script.answer(Ok(Answer::Detach)).await;
    assert!(matches!(detach, Command::Detach(WORKER, STREAM, _)), "{detach:?}");
}

#[tokio::test]
async fn a_worker_that_the_new_leader_does_not_know_has_its_session_ended() {
    let (_follower, session, mut script, _replicas) = taken_over().await;
    taken(&mut script).await.1.send(Err(ServiceError::no_worker(WORKER))).unwrap();
    assert_eq!(next(&session).await, Err(Closing::Unknown));
}

#[tokio::test]
async fn many_sessions_are_attached_side_by_side_and_not_all_at_once() {
    const TOGETHER: usize = 64;
    let (new, mut script) = Replica::scripted().await;
    let follower = Follower::new(Route::Nowhere, patient());
    for n in 0..200 {
        follower.sessions.open(Caller::Anybody, WorkerId(Uuid::from_u128(n)), STREAM, [], 0).unwrap();
    }
    follower.route.send_replace(new.route());
    let mut under_way = Vec::new();
    for _ in 0..TOGETHER {
        under_way.push(taken(&mut script).await);
    }
    // One more comes only for one that is done.
    for _ in TOGETHER..200 {
        assert!(script.0.try_recv().is_err(), "more than {TOGETHER} at once");
        under_way.swap_remove(0).1.send(Ok(Answer::Attach(vec![]))).unwrap();
        under_way.push(taken(&mut script).await);
    }
    let workers: BTreeSet<_> = under_way.iter().map(|(attach, _)| attach.worker_id).collect();
    assert_eq!(workers.len(), TOGETHER);
}

#[tokio::test]
async fn a_session_that_opens_while_nobody_leads_waits_no_longer_than_any_command() {
    let follower = Follower::new(Route::Nowhere, hasty());
    let (_, opening) = open(&follower);
    assert_eq!(outcome_of(opening).await, Err(ServiceError::NoLeader));
    // It is attached as soon as somebody leads.
    let (commands, mut attached) = host();
    let leader = Replica::leading(commands).await;
    follower.route.send_replace(leader.route());
    attached.next().await;
}
