//! The replica's open worker sessions: what waits for each of them, and what they hold.
//!
//! A session is one stream of one worker. It outlives leaders: after every change it is attached anew
//! ([`Session::attach`]), with the leases that it holds and its credits, so the worker keeps its stream and its
//! jobs. What waits for a session is bounded by what its worker granted and sent: assignments by credits,
//! endings by leases, answers by [`Session::has_room`], which its reader heeds, and by the reports under way.
//!
//! Not here: the stream itself (`api::grpc`), and when to attach anew (`forward::relay`).

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::command::{
    Answer, Assignment, Attach, Command, Commands, Credits, Deliver, Delivery, News, Outlet,
};
use super::error::{Conflict, ServiceError};
use crate::domain::ids::{JobId, LeaseId, SessionId, WorkerId};
use crate::security::Caller;

/// Most sessions of one replica.
pub const MAX_SESSIONS: usize = 10_000;

/// Most parts of one message.
const BATCH: usize = 512;
/// Most acknowledgements of one message; they are small.
const ACKNOWLEDGED: usize = 8 * BATCH;
/// A message takes nothing more once it has so many bytes of input.
const BATCH_BYTES: usize = 1 << 20;
/// About what a refusal takes at the most, in bytes.
const REFUSAL_BYTES: usize = 2_048;
/// Nothing is read from a worker while so many answers wait for it to take them.
const MOST_ANSWERS: usize = 16_384;

/// All sessions of a replica.
#[derive(Default)]
pub struct Sessions {
    table: Mutex<Table>,
    /// Says that a session has to be attached anew.
    came_off: Notify,
}

#[derive(Default)]
struct Table {
    open: HashMap<WorkerId, Arc<Session>>,
    stopped: bool,
}

/// One stream of one worker.
pub struct Session {
    /// On whose behalf it was opened.
    pub by: Caller,
    /// Whose stream it is.
    pub worker_id: WorkerId,
    /// The stream.
    pub id: SessionId,
    state: Mutex<State>,
    /// The way by which it was attached last; 0 if it is not.
    attached: AtomicU64,
    /// A leader has let it in.
    let_in: AtomicBool,
    closed: CancellationToken,
    /// Says that there is room for answers again.
    drained: Notify,
}

#[derive(Default)]
struct State {
    held: HashMap<LeaseId, JobId>,
    credits: Credits,
    assignments: VecDeque<Box<Assignment>>,
    batch: Batch,
    closing: Option<Closing>,
    sender: Option<Waker>,
}

/// What a session's stream says next.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Jobs to run.
    pub assignments: Vec<Box<Assignment>>,
    /// Reports that were accepted.
    pub acknowledged: Vec<u64>,
    /// Reports that were not, and why.
    pub refused: Vec<(u64, ServiceError)>,
    /// Leases that have ended without the worker.
    pub ended: Vec<(JobId, LeaseId)>,
    /// The worker gets nothing new until it registers again.
    pub draining: bool,
}

/// Why a stream ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closing {
    /// The worker has ended it.
    Gone,
    /// The token on which it was opened is good no more.
    Expired,
    /// A newer stream of the same worker has taken its place.
    Replaced,
    /// A message was larger than is taken.
    TooLarge,
    /// Nobody knows the worker any more.
    Unknown,
    /// The worker was taken out of service.
    Removed,
    /// The replica is about to stop.
    Stopping,
    /// The replica has known no leader for a while.
    NoLeader,
}

impl Sessions {
    /// Opens a session on somebody's behalf. An older one of the same worker on this replica is replaced.
    ///
    /// # Errors
    /// `Forbidden` if somebody else has the older one, `Overloaded` beyond [`MAX_SESSIONS`], `NoLeader` when the replica is about to stop.
    pub fn open(
        &self,
        by: Caller,
        worker_id: WorkerId,
        id: SessionId,
        held: impl IntoIterator<Item = (JobId, LeaseId)>,
        granted: u64,
    ) -> Result<Arc<Session>, ServiceError> {
        let session = Arc::new(Session {
            by,
            worker_id,
            id,
            state: Mutex::new(State {
                held: held.into_iter().map(|(job, lease)| (lease, job)).collect(),
                credits: Credits { granted, used: 0 },
                ..State::default()
            }),
            attached: AtomicU64::new(0),
            let_in: AtomicBool::new(false),
            closed: CancellationToken::new(),
            drained: Notify::new(),
        });
        let mut table = self.lock();
        if table.stopped {
            return Err(ServiceError::NoLeader);
        }
        // Whether the worker is the caller's is for the leader to say; until then nobody else is put out.
        if let Some(open) = table.open.get(&worker_id).filter(|open| !session.by.owns(open.by.subject())) {
            // One that the leader has not let in yet may be a stranger's, and is gone in a moment.
            return Err(if open.let_in.load(Ordering::Acquire) {
                ServiceError::not_owner(worker_id)
            } else {
                ServiceError::NoLeader
            });
        }
        if table.open.len() >= MAX_SESSIONS && !table.open.contains_key(&worker_id) {
            return Err(ServiceError::Overloaded);
        }
        let before = table.open.insert(worker_id, Arc::clone(&session));
        drop(table);
        if let Some(before) = before {
            before.close(Closing::Replaced);
        }
        Ok(session)
    }

    /// Forgets a session whose stream has ended.
    pub fn forget(&self, session: &Session) {
        let mut table = self.lock();
        if table.open.get(&session.worker_id).is_some_and(|open| open.id == session.id) {
            table.open.remove(&session.worker_id);
        }
    }

    /// Brings up to date what an attach says of its session. It may have waited for a leader, or an earlier
    /// copy of it may have been carried out: a lease that has arrived since and that it does not name would be
    /// taken for lost. `false` if the session is over: there may be a newer one.
    pub fn renew(&self, attach: &mut Attach) -> bool {
        let open = self.lock().open.get(&attach.worker_id).cloned();
        let session = open.filter(|session| session.id == attach.session && !session.is_closed());
        session.map(|session| *attach = session.standing()).is_some()
    }

    /// Has a session attached again that the leader has dropped: it had given the worker up, which spoke after all.
    /// Unless it is attached by another way by now than the one by which it was when it spoke.
    pub fn attach_anew(&self, session: &Session, spoke_by: u64) {
        let dropped = session.attached.compare_exchange(spoke_by, 0, Ordering::AcqRel, Ordering::Acquire);
        if dropped.is_ok_and(|way| way > 0) {
            self.came_off.notify_one();
        }
    }

    /// Resolves when a session has to be attached anew. For one caller. Cancel safe.
    pub async fn came_off(&self) {
        self.came_off.notified().await;
    }

    /// All sessions that are open.
    pub fn all(&self) -> Vec<Arc<Session>> {
        self.lock().open.values().cloned().collect()
    }

    /// Ends all sessions and lets no new ones in: the replica is about to stop.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.send_on(Closing::Stopping);
    }

    /// Ends all sessions, so that their workers try other replicas. Answers how many there were.
    pub fn send_on(&self, reason: Closing) -> usize {
        let open = std::mem::take(&mut self.lock().open);
        let sessions = open.len();
        for session in open.into_values() {
            session.close(reason);
        }
        sessions
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Deliver for Sessions {
    fn deliver(&self, delivery: Delivery) -> bool {
        let session = self.lock().open.get(&delivery.worker_id).cloned();
        session.is_some_and(|session| session.id == delivery.session && session.take(delivery.news))
    }
}

impl Batch {
    fn answers(&self) -> usize {
        self.acknowledged.len() + self.refused.len()
    }

    /// Takes out as much as one message may hold.
    fn part(&mut self) -> Self {
        Self {
            assignments: Vec::new(),
            acknowledged: first(&mut self.acknowledged, ACKNOWLEDGED),
            refused: first(&mut self.refused, BATCH),
            ended: std::mem::take(&mut self.ended),
            draining: std::mem::take(&mut self.draining),
        }
    }
}

/// Takes out the first `most`.
fn first<T>(all: &mut Vec<T>, most: usize) -> Vec<T> {
    if all.len() <= most { std::mem::take(all) } else { all.drain(..most).collect() }
}

impl Session {
    /// Attaches the session to the leader, and learns which of its leases are not live. One that is closed is not
    /// attached, and one that was closed meanwhile is detached again.
    pub async fn attach(&self, commands: &dyn Commands) -> Result<(), ServiceError> {
        if self.is_closed() {
            return Err(ServiceError::NoLeader);
        }
        let way = commands.way();
        let outcome = commands.execute(self.by.clone(), Command::Attach(self.standing())).await;
        if self.is_closed() && !matches!(outcome, Err(ServiceError::NoLeader)) {
            self.detach(commands).await;
        }
        let Answer::Attach(ended) = outcome? else { return Err(ServiceError::Internal) };
        self.let_in.store(true, Ordering::Release);
        self.attached.store(way, Ordering::Release);
        for (job, lease) in ended {
            self.take(News::Ended(job, lease));
        }
        Ok(())
    }

    /// What the leader has to know of the session at this moment.
    fn standing(&self) -> Attach {
        let state = self.lock();
        Attach {
            worker_id: self.worker_id,
            session: self.id,
            renewal: self.let_in.load(Ordering::Acquire),
            held: state.held.iter().map(|(lease, job)| (*job, *lease)).collect(),
            credits: state.credits,
            outlet: Outlet::default(),
        }
    }

    /// Has the leader push nothing more to a session that has ended. If it cannot be told now, it notices
    /// with the next delivery.
    pub async fn detach(&self, commands: &dyn Commands) {
        let held = self.known_to_worker();
        drop(commands.execute(self.by.clone(), Command::Detach(self.worker_id, self.id, held)).await);
    }

    /// The leases that the worker may know: those that it named, and those that the stream has taken.
    fn known_to_worker(&self) -> Vec<LeaseId> {
        let state = self.lock();
        let unsent: HashSet<_> = state.assignments.iter().map(|assignment| assignment.lease).collect();
        state.held.keys().filter(|lease| !unsent.contains(lease)).copied().collect()
    }

    /// The way by which the session is attached (see [`Commands::way`]); 0 if it is not.
    pub fn attached_by(&self) -> u64 {
        self.attached.load(Ordering::Acquire)
    }

    /// Ends the stream if the leader wants nothing of its worker any more; answers whether that is so.
    pub fn close_if_unwelcome(&self, error: &ServiceError) -> bool {
        let reason = match error {
            ServiceError::NotFound { .. } | ServiceError::Forbidden(_) => Closing::Unknown,
            ServiceError::Conflict(Conflict::Removed(_)) => Closing::Removed,
            _ => return false,
        };
        self.close(reason);
        true
    }

    /// Notes that the worker has granted more credits; answers how many it has granted in all.
    pub fn grant(&self, more: u32) -> u64 {
        let mut state = self.lock();
        state.credits.granted = state.credits.granted.saturating_add(more.into());
        state.credits.granted
    }

    /// Answers reports: each with the lease that it ends, if it ends one, and what came of it.
    pub fn answer(
        &self,
        answers: impl IntoIterator<Item = (u64, Option<LeaseId>, Result<(), ServiceError>)>,
    ) {
        let mut state = self.lock();
        for (report, ends, outcome) in answers {
            let settled = outcome.as_ref().err().is_none_or(is_final);
            if let Some(lease) = ends.filter(|_| settled) {
                state.held.remove(&lease);
            }
            match outcome {
                Ok(()) => state.batch.acknowledged.push(report),
                Err(error) => state.batch.refused.push((report, error)),
            }
        }
        wake(state);
    }

    /// Whether answers to more reports may wait: a worker that sends reports has to take their answers.
    pub fn has_room(&self) -> bool {
        self.lock().batch.answers() < MOST_ANSWERS
    }

    /// Resolves when the worker has taken answers. For one caller. Cancel safe.
    pub async fn drained(&self) {
        self.drained.notified().await;
    }

    /// Ends the stream; the first reason stands.
    pub fn close(&self, reason: Closing) {
        let mut state = self.lock();
        state.closing.get_or_insert(reason);
        wake(state);
        self.closed.cancel();
    }

    /// Whether the stream has ended or is about to.
    pub fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Resolves when the stream ends.
    pub async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// What the stream says next, and at last why it ends.
    pub fn poll_batch(&self, cx: &Context<'_>) -> Poll<Result<Batch, Closing>> {
        let mut state = self.lock();
        // The leader was told already that the worker has nothing of what waits here.
        if state.closing == Some(Closing::Expired) {
            return Poll::Ready(Err(Closing::Expired));
        }
        let had_room = state.batch.answers() < MOST_ANSWERS;
        let mut batch = state.batch.part();
        if !had_room {
            self.drained.notify_one();
        }
        let mut bytes = batch.refused.len() * REFUSAL_BYTES;
        while batch.assignments.len() < BATCH && bytes < BATCH_BYTES {
            let Some(assignment) = state.assignments.pop_front() else { break };
            bytes += assignment.input_data.as_str().len();
            batch.assignments.push(assignment);
        }
        if batch != Batch::default() {
            return Poll::Ready(Ok(batch));
        }
        if let Some(closing) = state.closing {
            return Poll::Ready(Err(closing));
        }
        state.sender = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Takes news in; `false` if the stream is ending.
    fn take(&self, news: News) -> bool {
        let mut state = self.lock();
        if state.closing.is_some() {
            return false;
        }
        match news {
            News::Assigned(assignment) => {
                state.credits.used += 1;
                // Sent again after the way to the leader had broken; it has arrived before. The worker
                // does not get to see it, so the credit is granted anew.
                if state.held.insert(assignment.lease, assignment.job_id).is_some() {
                    state.credits.granted += 1;
                    return true;
                }
                state.assignments.push_back(assignment);
            }
            News::Ended(job, lease) => {
                if state.held.remove(&lease).is_none() {
                    return true;
                }
                let unsent = state.assignments.iter().position(|waiting| waiting.lease == lease);
                if let Some(unsent) = unsent {
                    state.assignments.remove(unsent);
                    state.credits.granted += 1;
                    return true;
                }
                state.batch.ended.push((job, lease));
            }
            News::Draining => state.batch.draining = true,
            News::Removed => {
                drop(state);
                self.close(Closing::Removed);
                return true;
            }
            News::Replaced => {
                drop(state);
                self.close(Closing::Replaced);
                return true;
            }
        }
        wake(state);
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the stream, after the lock was given back.
fn wake(mut state: MutexGuard<'_, State>) {
    let sender = state.sender.take();
    drop(state);
    if let Some(sender) = sender {
        sender.wake();
    }
}

/// Whether the worker has no reason to send the same report again.
fn is_final(error: &ServiceError) -> bool {
    match error {
        ServiceError::Invalid(_)
        | ServiceError::NotFound { .. }
        | ServiceError::Forbidden(_)
        | ServiceError::Conflict(_) => true,
        ServiceError::QueueFull { .. }
        | ServiceError::Overloaded
        | ServiceError::TooManyStreams { .. }
        | ServiceError::NoLeader
        | ServiceError::Unavailable { .. }
        | ServiceError::OutcomeUnknown
        | ServiceError::Internal => false,
    }
}

#[cfg(test)]
#[path = "sessions_tests.rs"]
mod tests;
