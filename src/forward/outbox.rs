//! What a follower has to send on one stream, and who waits for which answer.
//!
//! Plain state behind a mutex. The HTTP/2 connection pulls: whenever it can take a message it gets all
//! that has queued up since, so batches form without a timer. A call is *queued* until the very moment at
//! which it is put into a message, and *written* from then on; that line decides whether a call whose
//! stream broke was provably not sent.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures::Stream;
use tokio::sync::oneshot;

use super::config::Limits;
use super::wire::{self, Lane, Requests};

/// What came of a call.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Reply {
    /// The leader's answer, encoded.
    Answered(Bytes),
    /// It was never sent.
    NotSent,
    /// It was sent; nobody knows what came of it.
    Unknown,
}

/// Why a call was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// Too much waits already.
    Full,
    /// The stream has ended, or is about to.
    Closed,
}

/// The calls of one stream.
pub(super) struct Outbox {
    limits: Limits,
    inner: Mutex<Inner>,
}

struct Inner {
    phase: Phase,
    next_id: u64,
    lanes: [LaneQueue; 3],
    calls: HashMap<u64, Call>,
    abandoned: Vec<u64>,
    /// The connection, when it waits for something to send.
    sender: Option<Waker>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The leader has not accepted the stream yet, so nothing is written.
    Opening,
    Open,
    /// The leader takes nothing new; what was written is still answered.
    Concluding,
    Closed,
}

#[derive(Default)]
struct LaneQueue {
    /// In the order of arrival. Calls that were given up stay until they come up.
    ids: VecDeque<u64>,
    queued: usize,
    queued_bytes: usize,
    written: usize,
}

struct Call {
    lane: Lane,
    /// The command, until it is written.
    queued: Option<Bytes>,
    reply: oneshot::Sender<Reply>,
}

impl Outbox {
    /// An outbox whose stream is not open yet.
    pub(super) fn new(limits: Limits) -> Arc<Self> {
        let inner = Inner {
            phase: Phase::Opening,
            next_id: 1,
            lanes: Default::default(),
            calls: HashMap::new(),
            abandoned: Vec::new(),
            sender: None,
        };
        Arc::new(Self { limits, inner: Mutex::new(inner) })
    }

    /// Takes a command to be sent.
    pub(super) fn enqueue(self: &Arc<Self>, lane: Lane, command: Bytes) -> Result<Ticket, Refused> {
        let (reply, receiver) = oneshot::channel();
        let mut inner = self.lock();
        match inner.phase {
            Phase::Opening | Phase::Open => {}
            Phase::Concluding | Phase::Closed => return Err(Refused::Closed),
        }
        let id = inner.next_id;
        let Inner { lanes, calls, .. } = &mut *inner;
        let queue = &mut lanes[lane.index()];
        if queue.queued >= self.limits.queued || queue.queued_bytes >= self.limits.queued_bytes {
            return Err(Refused::Full);
        }
        if queue.ids.len() >= 2 * self.limits.queued {
            // At least half of them were given up, so this is paid for by as many calls.
            queue.ids.retain(|id| calls.contains_key(id));
        }
        queue.ids.push_back(id);
        queue.queued += 1;
        queue.queued_bytes += command.len();
        calls.insert(id, Call { lane, queued: Some(command), reply });
        inner.next_id += 1;
        wake(inner);
        Ok(Ticket { id, outbox: Arc::clone(self), reply: receiver })
    }

    /// Lets messages flow: the leader has accepted the stream.
    pub(super) fn open(&self) {
        let mut inner = self.lock();
        if inner.phase == Phase::Opening {
            inner.phase = Phase::Open;
        }
        wake(inner);
    }

    /// Writes no more and gives back what was not written.
    pub(super) fn conclude(&self) {
        let mut inner = self.lock();
        if inner.phase == Phase::Closed {
            return;
        }
        inner.phase = Phase::Concluding;
        let ids: Vec<u64> = inner.lanes.iter_mut().flat_map(|queue| queue.ids.drain(..)).collect();
        let calls: Vec<Call> = ids.into_iter().filter_map(|id| inner.take(id)).collect();
        wake(inner);
        for call in calls {
            // A caller that has gone away needs no reply, here and below.
            let _ = call.reply.send(Reply::NotSent);
        }
    }

    /// Ends the stream and settles every call, in the order in which they came.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.phase = Phase::Closed;
        let calls: BTreeMap<u64, Call> = std::mem::take(&mut inner.calls).into_iter().collect();
        inner.lanes = Default::default();
        inner.abandoned = Vec::new();
        wake(inner);
        for call in calls.into_values() {
            let reply = if call.queued.is_some() { Reply::NotSent } else { Reply::Unknown };
            let _ = call.reply.send(reply);
        }
    }

    /// Whether the stream takes commands.
    pub(super) fn is_usable(&self) -> bool {
        match self.lock().phase {
            Phase::Opening | Phase::Open => true,
            Phase::Concluding | Phase::Closed => false,
        }
    }

    /// Hands answers to their callers.
    pub(super) fn settle(&self, answers: Vec<wire::Answer>) {
        let mut inner = self.lock();
        let mut settled = Vec::with_capacity(answers.len());
        for answer in answers {
            if let Some(call) = inner.take(answer.id) {
                settled.push((call.reply, answer.result));
            }
        }
        wake(inner);
        for (reply, result) in settled {
            let _ = reply.send(Reply::Answered(result));
        }
    }

    /// How many calls are queued or written.
    pub(super) fn len(&self) -> usize {
        self.lock().calls.len()
    }

    fn poll_batch(&self, cx: &Context<'_>) -> Poll<Option<Requests>> {
        let mut inner = self.lock();
        match inner.phase {
            Phase::Concluding | Phase::Closed => return Poll::Ready(None),
            Phase::Open => {
                if let Some(batch) = inner.take_batch(&self.limits) {
                    return Poll::Ready(Some(batch));
                }
            }
            Phase::Opening => {}
        }
        inner.sender = Some(cx.waker().clone());
        Poll::Pending
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes the connection, after the lock was given back.
fn wake(mut inner: MutexGuard<'_, Inner>) {
    let sender = inner.sender.take();
    drop(inner);
    if let Some(sender) = sender {
        sender.wake();
    }
}

impl Inner {
    /// The next message: from each lane what its limits allow, the urgent ones first.
    fn take_batch(&mut self, limits: &Limits) -> Option<Requests> {
        let mut requests = Vec::new();
        for lane in Lane::ALL {
            let queue = &mut self.lanes[lane.index()];
            let mut left = limits.batch;
            let mut bytes_left = limits.batch_bytes;
            while left > 0 && bytes_left > 0 && queue.written < limits.in_flight {
                let Some(id) = queue.ids.pop_front() else { break };
                let Some(command) = self.calls.get_mut(&id).and_then(|call| call.queued.take()) else {
                    continue;
                };
                queue.queued -= 1;
                queue.queued_bytes -= command.len();
                queue.written += 1;
                left -= 1;
                bytes_left = bytes_left.saturating_sub(command.len());
                requests.push(wire::Request { id, lane: lane.into(), command });
            }
        }
        let abandoned = std::mem::take(&mut self.abandoned);
        (!requests.is_empty() || !abandoned.is_empty()).then_some(Requests { requests, abandoned })
    }

    /// Takes a call out, wherever it is.
    fn take(&mut self, id: u64) -> Option<Call> {
        let call = self.calls.remove(&id)?;
        let queue = &mut self.lanes[call.lane.index()];
        match &call.queued {
            Some(command) => {
                queue.queued -= 1;
                queue.queued_bytes -= command.len();
            }
            None => queue.written -= 1,
        }
        Some(call)
    }
}

/// A call under way. Dropping it frees its place; a long poll that was sent is called back.
pub(super) struct Ticket {
    id: u64,
    outbox: Arc<Outbox>,
    /// Always gets a reply, or fails after the call was withdrawn.
    pub(super) reply: oneshot::Receiver<Reply>,
}

impl Ticket {
    /// Takes the call back if it was not sent; says whether it did.
    pub(super) fn withdraw(&mut self) -> bool {
        let mut inner = self.outbox.lock();
        let queued = inner.calls.get(&self.id).is_some_and(|call| call.queued.is_some());
        if queued {
            inner.take(self.id);
        }
        queued
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inner = self.outbox.lock();
        if let Some(call) = inner.take(self.id) {
            if call.queued.is_none() && call.lane == Lane::Wait {
                inner.abandoned.push(self.id);
            }
            wake(inner);
        }
    }
}

/// The messages of an outbox, as the connection pulls them.
pub(super) struct Outgoing(pub(super) Arc<Outbox>);

impl Stream for Outgoing {
    type Item = Requests;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Requests>> {
        self.0.poll_batch(cx)
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
