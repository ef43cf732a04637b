use std::task::Wake;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::oneshot;
use uuid::Uuid;

use super::*;
use crate::domain::ambient::System;
use crate::domain::job::JobDefaults;
use crate::domain::pause::Paused;
use crate::domain::payload::Payload;
use crate::domain::retry::RetryPolicy;
use crate::ready_queue::ReadyQueue;
use crate::security::Role;
use crate::services::Services;
use crate::services::control::{Change, Changed, Control};
use crate::services::error::Conflict;
use crate::services::queries::Queries;
use crate::storage::{Database, DatabaseOptions};

const WORKER: WorkerId = WorkerId(Uuid::from_u128(1));
const STREAM: SessionId = SessionId(Uuid::from_u128(10));

fn job(n: u128) -> JobId {
    JobId(Uuid::from_u128(1 << 40 | n))
}

fn lease(n: u128) -> LeaseId {
    LeaseId(Uuid::from_u128(1 << 41 | n))
}

fn assigned(n: u128, bytes: usize) -> News {
    News::Assigned(Box::new(Assignment {
        lease: lease(n),
        attempt_number: 1,
        worker_id: WORKER,
        job_id: job(n),
        job_name: String::new(),
        model_name: String::new(),
        model_version: String::new(),
        input_data: Payload::trusted("x".repeat(bytes)),
        timeout_seconds: 1,
        trace: None,
    }))
}

fn ended(n: u128) -> News {
    News::Ended(job(n), lease(n))
}

/// An open session with five credits that holds these leases from the beginning.
fn open(held: &[u128]) -> (Sessions, Arc<Session>) {
    let sessions = Sessions::default();
    let held = held.iter().map(|n| (job(*n), lease(*n)));
    let session = sessions.open(Caller::Anybody, WORKER, STREAM, held, 5).unwrap();
    (sessions, session)
}

fn deliver(sessions: &Sessions, news: News) -> bool {
    sessions.deliver(Delivery { worker_id: WORKER, session: STREAM, news })
}

fn poll(session: &Session) -> Poll<Result<Batch, Closing>> {
    session.poll_batch(&Context::from_waker(Waker::noop()))
}

#[track_caller]
fn next(session: &Session) -> Batch {
    match poll(session) {
        Poll::Ready(Ok(batch)) => batch,
        other => panic!("{other:?} instead of a batch"),
    }
}

#[track_caller]
fn closing(session: &Session) -> Closing {
    match poll(session) {
        Poll::Ready(Err(closing)) => closing,
        other => panic!("{other:?} instead of the end"),
    }
}

fn held(session: &Session) -> Vec<LeaseId> {
    let mut held: Vec<_> = session.standing().held.into_iter().map(|(_, lease)| lease).collect();
    held.sort();
    held
}

fn left(session: &Session) -> u64 {
    let Credits { granted, used } = session.standing().credits;
    granted - used
}

#[derive(Default)]
struct Woken(AtomicU64);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_session_that_has_expired_tells_its_worker_nothing_more() {
    let (sessions, session) = open(&[]);
    assert!(deliver(&sessions, assigned(1, 1)));
    assert_eq!(next(&session).assignments.len(), 1);
    assert!(deliver(&sessions, assigned(2, 1)));
    session.answer([(7, None, Ok(()))]);
    session.close(Closing::Expired);
    assert_eq!(closing(&session), Closing::Expired);
    assert_eq!(session.known_to_worker(), [lease(1)], "the leader may give the other one to somebody else");
}

#[test]
fn a_delivery_wakes_its_stream_and_uses_a_credit() {
    let (sessions, session) = open(&[]);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    assert!(session.poll_batch(&Context::from_waker(&waker)).is_pending());
    assert!(deliver(&sessions, assigned(1, 1)));
    assert_eq!(woken.0.load(Ordering::Relaxed), 1);
    assert_eq!(next(&session).assignments[0].lease, lease(1));
    assert!(poll(&session).is_pending());
    assert_eq!((held(&session), left(&session)), (vec![lease(1)], 4));
    assert_eq!((session.grant(3), session.grant(u32::MAX)), (8, 8 + u64::from(u32::MAX)));
}

#[test]
fn nobody_takes_a_delivery_to_a_session_that_is_gone() {
    let (sessions, session) = open(&[]);
    let to = |worker_id, session| sessions.deliver(Delivery { worker_id, session, news: assigned(1, 1) });
    assert!(!to(WORKER, SessionId(Uuid::from_u128(11))));
    assert!(!to(WorkerId(Uuid::from_u128(2)), STREAM));
    assert!(to(WORKER, STREAM));
    session.close(Closing::Gone);
    assert!(!deliver(&sessions, assigned(2, 1)));
    sessions.forget(&session);
    assert!(!deliver(&sessions, assigned(3, 1)));
    assert_eq!(next(&session).assignments.len(), 1, "what waited is still said");
    assert_eq!(closing(&session), Closing::Gone);
}

#[test]
fn a_second_session_replaces_the_first_which_cannot_take_it_along() {
    let (sessions, first) = open(&[]);
    let second = sessions.open(Caller::Anybody, WORKER, SessionId(Uuid::from_u128(11)), [], 0).unwrap();
    assert_eq!(closing(&first), Closing::Replaced);
    first.close(Closing::Gone);
    assert_eq!(closing(&first), Closing::Replaced, "the first reason stands");
    sessions.forget(&first);
    assert_eq!(sessions.all().len(), 1);
    assert!(!second.is_closed());
}

#[test]
fn a_session_that_the_leader_calls_replaced_takes_nothing_more() {
    let (sessions, session) = open(&[]);
    assert!(deliver(&sessions, News::Replaced));
    assert!(!deliver(&sessions, assigned(1, 1)));
    assert_eq!(closing(&session), Closing::Replaced);
    assert!(session.closed().now_or_never().is_some());
}

#[test]
fn a_lease_that_is_held_already_is_passed_over_and_its_credit_granted_anew() {
    let (sessions, session) = open(&[1]);
    for n in [1, 2, 2] {
        assert!(deliver(&sessions, assigned(n, 1)));
    }
    let leases: Vec<_> = next(&session).assignments.iter().map(|assignment| assignment.lease).collect();
    assert_eq!(leases, [lease(2)]);
    assert_eq!(left(&session), 4, "the worker has seen one assignment");
}

#[test]
fn the_end_of_a_lease_is_said_once_and_only_to_a_worker_that_has_it() {
    let (sessions, session) = open(&[1, 2]);
    for n in [1, 1, 9] {
        assert!(deliver(&sessions, ended(n)));
    }
    assert_eq!(next(&session).ended, [(job(1), lease(1))]);
    assert_eq!((held(&session), left(&session)), (vec![lease(2)], 5));
}

#[test]
fn a_lease_that_ends_before_it_was_said_is_never_said() {
    let (sessions, session) = open(&[]);
    for news in [assigned(1, 1), assigned(2, 1), ended(1)] {
        assert!(deliver(&sessions, news));
    }
    let batch = next(&session);
    assert_eq!((batch.assignments.len(), batch.assignments[0].lease), (1, lease(2)));
    assert_eq!(batch.ended, []);
    assert_eq!((held(&session), left(&session)), (vec![lease(2)], 4));
}

#[test]
fn answers_settle_leases_for_good_or_leave_them() {
    let (_, session) = open(&[1, 2, 3, 4, 5]);
    let stale = ServiceError::Conflict(Conflict::StaleLease("x".to_owned()));
    session.answer([
        (1, None, Ok(())),
        (2, Some(lease(2)), Ok(())),
        (3, Some(lease(3)), Err(stale.clone())),
        (4, Some(lease(4)), Err(ServiceError::no_job("x"))),
        (5, Some(lease(5)), Err(ServiceError::NoLeader)),
        (6, Some(lease(5)), Err(ServiceError::OutcomeUnknown)),
    ]);
    let batch = next(&session);
    assert_eq!(batch.acknowledged, [1, 2]);
    let refused: Vec<_> = batch.refused.iter().map(|(id, _)| *id).collect();
    assert_eq!((refused, &batch.refused[0].1), (vec![3, 4, 5, 6], &stale));
    assert_eq!(held(&session), [lease(1), lease(5)], "what is sent again is still held");
}

#[test]
fn a_message_is_bounded_in_number_and_bytes() {
    let (sessions, session) = open(&[]);
    for (n, bytes) in [(1, 600 << 10), (2, 600 << 10), (3, 3 << 20), (4, 1)] {
        assert!(deliver(&sessions, assigned(n, bytes)));
    }
    let sizes = [next(&session), next(&session), next(&session)].map(|batch| batch.assignments.len());
    assert_eq!(sizes, [2, 1, 1]);
    for n in 0..BATCH as u128 + 1 {
        assert!(deliver(&sessions, assigned(10 + n, 1)));
    }
    assert_eq!(next(&session).assignments.len(), BATCH);
    assert_eq!(next(&session).assignments.len(), 1);
}

#[test]
fn answers_are_bounded_in_each_message_and_hold_up_whoever_takes_none() {
    let (_, session) = open(&[]);
    let answers = |number: u64, outcome: &Result<(), ServiceError>| {
        session.answer((0..number).map(|id| (id, None, outcome.clone())));
    };
    assert!(session.has_room());
    let most = u64::try_from(MOST_ANSWERS).unwrap();
    answers(most / 2, &Ok(()));
    answers(most / 2, &Err(ServiceError::NoLeader));
    assert!(!session.has_room());
    assert!(session.drained().now_or_never().is_none());
    let mut taken = 0;
    while let Poll::Ready(Ok(batch)) = poll(&session) {
        assert!(session.has_room());
        assert!(batch.acknowledged.len() <= ACKNOWLEDGED && batch.refused.len() <= BATCH);
        taken += batch.acknowledged.len() + batch.refused.len();
    }
    assert_eq!(taken, MOST_ANSWERS);
    assert!(session.drained().now_or_never().is_some());
}

#[test]
fn there_is_a_limit_of_sessions() {
    let sessions = Sessions::default();
    let worker = |n: usize| WorkerId(Uuid::from_u128(n as u128));
    for n in 0..MAX_SESSIONS {
        sessions.open(Caller::Anybody, worker(n), STREAM, [], 0).unwrap();
    }
    assert_eq!(
        sessions.open(Caller::Anybody, worker(MAX_SESSIONS), STREAM, [], 0).err(),
        Some(ServiceError::Overloaded)
    );
    sessions.open(Caller::Anybody, worker(0), SessionId(Uuid::from_u128(11)), [], 0).unwrap();
    assert_eq!(sessions.all().len(), MAX_SESSIONS);
}

#[test]
fn a_replica_that_stops_ends_its_sessions_and_opens_no_more() {
    let (sessions, session) = open(&[1]);
    assert!(deliver(&sessions, ended(1)));
    sessions.stop();
    assert_eq!(next(&session).ended.len(), 1, "what waited is still said");
    assert_eq!(closing(&session), Closing::Stopping);
    assert_eq!(sessions.open(Caller::Anybody, WORKER, STREAM, [], 0).err(), Some(ServiceError::NoLeader));
    assert!(sessions.all().is_empty());
}

#[test]
fn an_attach_is_brought_up_to_date_by_the_very_session() {
    let (sessions, session) = open(&[1]);
    let mut attach = session.standing();
    assert!(deliver(&sessions, assigned(2, 1)));
    assert!(sessions.renew(&mut attach));
    attach.held.sort();
    assert_eq!(attach.held, [(job(1), lease(1)), (job(2), lease(2))]);
    assert_eq!(attach.credits, Credits { granted: 5, used: 1 });
    sessions.open(Caller::Anybody, WORKER, SessionId(Uuid::from_u128(11)), [], 0).unwrap();
    assert!(!sessions.renew(&mut attach), "it is over");
    assert_eq!((attach.session, attach.held.len()), (STREAM, 2), "another session says nothing of this one");
}

#[test]
fn a_session_is_replaced_by_its_owner_or_an_administrator_and_by_nobody_else() {
    let caller = |subject: &str, role| Caller::Known { subject: subject.to_owned(), role };
    let sessions = Sessions::default();
    let open = |by: Caller| sessions.open(by, WORKER, STREAM, [], 0);
    let first = open(caller("ann", Role::Worker)).unwrap();
    // As long as the leader has not let her in, she may be the stranger.
    assert_eq!(open(caller("bob", Role::Worker)).err(), Some(ServiceError::NoLeader));
    first.let_in.store(true, Ordering::Release);
    assert!(matches!(open(caller("bob", Role::Worker)), Err(ServiceError::Forbidden(_))));
    assert!(!first.is_closed());
    open(caller("ann", Role::Worker)).unwrap();
    assert!(first.is_closed());
    assert!(open(caller("root", Role::Admin)).is_ok());
}

#[tokio::test]
async fn a_command_that_nobody_has_asked_for_is_refused() {
    let (services, leader, _sessions) = replica();
    let refused = services.cancel_job(job(1)).await;
    assert!(matches!(refused, Err(ServiceError::Forbidden(_))), "{refused:?}");
    assert!(leader.0.lock().unwrap().is_empty());
}

/// Hands each command to the test, which answers it or not.
#[derive(Default)]
struct Leading(Mutex<VecDeque<(Command, oneshot::Sender<Answer>)>>);

impl Commands for Leading {
    fn execute(&self, _: Caller, command: Command) -> BoxFuture<'_, Result<Answer, ServiceError>> {
        let (answer, outcome) = oneshot::channel();
        self.0.lock().unwrap().push_back((command, answer));
        async { outcome.await.map_err(|_| ServiceError::NoLeader) }.boxed()
    }

    fn way(&self) -> u64 {
        7
    }
}

/// A group in which nothing is paused and nothing changes.
struct Alone;

impl Control for Alone {
    fn paused(&self) -> Arc<Paused> {
        Arc::default()
    }

    fn change(&self, change: Change) -> BoxFuture<'_, Result<Changed, ServiceError>> {
        panic!("nobody asked for {change:?}")
    }

    fn leader(&self) -> Option<u64> {
        None
    }

    fn leader_after(&self, _: Option<u64>) -> BoxFuture<'_, Option<u64>> {
        std::future::ready(None).boxed()
    }
}

fn replica() -> (Services, Arc<Leading>, Arc<Sessions>) {
    let (leader, sessions) = (Arc::new(Leading::default()), Arc::new(Sessions::default()));
    let database = Database::connect_lazily(&DatabaseOptions {
        url: "postgres://nobody@localhost/none".to_owned(),
        max_connections: 1,
        acquire_timeout: std::time::Duration::from_secs(1),
        max_lifetime: std::time::Duration::from_secs(1),
        pooler: false,
    });
    let services = Services::new(
        Arc::clone(&leader) as Arc<dyn Commands>,
        Arc::new(Alone),
        Arc::new(System),
        JobDefaults { retry: RetryPolicy::default(), timeout_seconds: 1 },
        Queries::new(database.unwrap(), ReadyQueue::connect("redis://127.0.0.1:1", "none").unwrap()),
        Arc::clone(&sessions),
    );
    (services, leader, sessions)
}

impl Leading {
    /// Waits for the next command.
    async fn next(&self) -> (Command, oneshot::Sender<Answer>) {
        let first = async {
            loop {
                if let Some(first) = self.0.lock().unwrap().pop_front() {
                    break first;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(5), first).await.expect("a command comes")
    }
}

#[tokio::test]
async fn opening_attaches_with_what_the_worker_holds() {
    let (services, leader, sessions) = replica();
    let opening =
        Caller::Anybody.scope(services.open_session(WORKER, vec![(job(1), lease(1)), (job(2), lease(2))], 3));
    let mut opening = Box::pin(opening);
    assert!(opening.as_mut().now_or_never().is_none());
    let (command, answer) = leader.next().await;
    let Command::Attach(attach) = command else { panic!("{command:?}") };
    assert_eq!(
        (attach.held.len(), attach.credits, attach.renewal),
        (2, Credits { granted: 3, used: 0 }, false)
    );
    answer.send(Answer::Attach(vec![(job(2), lease(2))])).unwrap();
    let session = opening.await.unwrap();
    assert_eq!(session.attached_by(), 7);
    assert!(session.standing().renewal, "the next attach is a renewal");
    assert_eq!(next(&session).ended, [(job(2), lease(2))]);
    assert_eq!(sessions.all().len(), 1);
}

#[tokio::test]
async fn an_opening_that_fails_leaves_no_session() {
    let (services, leader, sessions) = replica();
    let mut opening = Box::pin(Caller::Anybody.scope(services.open_session(WORKER, vec![], 3)));
    assert!(opening.as_mut().now_or_never().is_none());
    drop(leader.next().await);
    assert_eq!(opening.await.err(), Some(ServiceError::NoLeader));
    assert!(sessions.all().is_empty());
}

#[tokio::test]
async fn an_opening_that_is_given_up_leaves_no_session_here_and_none_at_the_leader() {
    let (services, leader, sessions) = replica();
    let mut opening = Box::pin(Caller::Anybody.scope(services.open_session(WORKER, vec![], 3)));
    assert!(opening.as_mut().now_or_never().is_none());
    let (_, attached) = leader.next().await;
    let session = sessions.all().pop().unwrap();
    drop(opening);
    assert!(sessions.all().is_empty() && session.is_closed());
    let detach = |command| matches!(command, Command::Detach(WORKER, id, _) if id == session.id);
    assert!(detach(leader.next().await.0), "at once");
    attached.send(Answer::Attach(vec![])).unwrap();
    assert!(detach(leader.next().await.0), "and after the attach, which may have been overtaken");
}

#[tokio::test]
async fn a_session_that_ends_names_what_its_stream_has_taken() {
    let (_, leader, _) = replica();
    let (sessions, session) = open(&[1]);
    assert!(deliver(&sessions, assigned(2, 1)));
    next(&session);
    assert!(deliver(&sessions, assigned(3, 1)));
    session.close(Closing::Gone);
    let mut detaching = Box::pin(session.detach(&*leader));
    assert!(detaching.as_mut().now_or_never().is_none());
    let Command::Detach(WORKER, STREAM, mut held) = leader.next().await.0 else { panic!("no detach") };
    held.sort_unstable();
    assert_eq!(held, [lease(1), lease(2)]);
}
