//! What the worker holds and what it has to say: state behind one mutex.
//!
//! The connection pulls. Whenever it can take a message it gets all that has come together since: reports,
//! credits, a sign of life. What comes alone leaves at once; after several reports the next ones gather for a
//! moment, so that there are not hundreds of small messages a second, unless half of the slots wait for jobs or
//! the worker is leaving. What was sent and not answered is sent again on the next stream.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use futures::Stream;
use tokio::sync::Notify;
use tokio::time::{Duration, Instant, Sleep, sleep};
use tokio_util::sync::CancellationToken;

use super::report::{ReportOutcome, Settled, lease_of, size, update};
use crate::proto::session_report::Report;
use crate::proto::{
    HeldLease, JobCompletion, SessionHeartbeat, SessionOpening, SessionReport, SessionRequest,
    WorkerRegistration,
};

/// Most reports of one message.
const BATCH: usize = 512;
/// Reports share a message up to so many bytes; a larger one goes alone. Half of what a replica takes by default.
const BATCH_BYTES: usize = 512 << 10;
/// After a message with so many reports the next ones gather.
const SEVERAL: usize = 4;
/// How long they do.
const GATHERING: Duration = Duration::from_millis(5);
/// Most leases that a replica lets an opening name.
const MOST_HELD: usize = 1000;
/// How long a job must run before it is reported as running: a job that ends sooner says so itself.
const RUNNING_DELAY: Duration = Duration::from_millis(100);

/// What a worker has to say, and what it holds.
#[derive(Default)]
pub(super) struct Outbox {
    state: Mutex<State>,
    /// Fires when something happened that the conversation has to look at: a job began or ended.
    pub(super) changed: Notify,
}

#[derive(Default)]
struct State {
    worker_id: String,
    /// By lease.
    held: HashMap<Arc<str>, Held>,
    /// Jobs whose handler has not ended.
    unfinished: u32,
    /// Reports that are not answered, by their id.
    reports: BTreeMap<u64, Report>,
    /// Those that are to be sent on the present stream.
    unsent: VecDeque<u64>,
    /// Those that the server could not take just now.
    postponed: Vec<u64>,
    last_report: u64,
    slots: u32,
    /// Credits that the present stream has given and that no assignment has used.
    outstanding: u32,
    opening: Option<SessionOpening>,
    heartbeat: Option<SessionHeartbeat>,
    /// When to report which lease as running; the delay is the same for all.
    starting: VecDeque<(Instant, Arc<str>)>,
    draining: bool,
    /// Counts streams; an older one ends.
    stream: u64,
    /// Until when its next message gathers.
    gathers_until: Option<Instant>,
    /// The sender comes back by itself.
    gathering: bool,
    sender: Option<Waker>,
}

struct Held {
    job_id: String,
    attempt: i32,
    finished: bool,
    /// The server took it away; nothing more is reported.
    lost: CancellationToken,
}

/// What became of an assignment.
pub(super) enum Taken {
    /// It is to be run; the token fires when the server takes it away.
    Run(CancellationToken),
    /// It is held already.
    Again,
    /// The worker is leaving; it was handed back.
    HandedBack,
}

impl Outbox {
    /// Begins a stream: with a registration, or with what is held since an earlier one.
    pub(super) fn begin(
        self: &Arc<Self>,
        registration: &WorkerRegistration,
        slots: u32,
        heartbeat: SessionHeartbeat,
    ) -> Outgoing {
        let mut state = self.lock();
        let resumes = !state.worker_id.is_empty();
        let held = state.held.iter().filter(|(_, held)| !held.lost.is_cancelled());
        let held = held
            .map(|(lease, held)| HeldLease { job_id: held.job_id.clone(), execution_id: lease.to_string() });
        let opening = SessionOpening {
            registration: (!resumes).then(|| registration.clone()),
            worker_id: state.worker_id.clone(),
            held: if resumes { held.collect() } else { Vec::new() },
        };
        state.opening = Some(opening);
        state.slots = slots;
        state.outstanding = 0;
        state.heartbeat = Some(heartbeat);
        state.unsent = state.reports.keys().copied().collect();
        state.postponed.clear();
        state.stream += 1;
        state.gathers_until = None;
        state.gathering = false;
        Outgoing { outbox: Arc::clone(self), stream: state.stream, later: Box::pin(sleep(Duration::ZERO)) }
    }

    /// The server's name for this worker.
    pub(super) fn set_worker_id(&self, id: String) {
        self.lock().worker_id = id;
    }

    /// The server does not know this worker: the next stream registers it anew, and what was held under its
    /// old name is over. Answers the ends that were reported in vain.
    pub(super) fn forget(&self) -> Vec<Settled> {
        let mut state = self.lock();
        state.worker_id.clear();
        state.held.retain(|_, held| !held.finished);
        state.held.values().for_each(|held| held.lost.cancel());
        let reports = std::mem::take(&mut state.reports);
        drop(state);
        reports.into_values().filter_map(|report| Settled::of(report, ReportOutcome::Unknown)).collect()
    }

    /// Whether the worker has registered.
    pub(super) fn is_registered(&self) -> bool {
        !self.lock().worker_id.is_empty()
    }

    /// Takes an assignment in.
    pub(super) fn take(&self, lease: &Arc<str>, job_id: &str, attempt: i32) -> Taken {
        let mut state = self.lock();
        state.outstanding = state.outstanding.saturating_sub(1);
        if state.held.contains_key(lease) {
            // It cost a credit and takes no slot.
            wake(state);
            return Taken::Again;
        }
        let lost = CancellationToken::new();
        let finished = state.draining;
        let held = Held { job_id: job_id.to_owned(), attempt, finished, lost: lost.clone() };
        state.held.insert(Arc::clone(lease), held);
        if finished {
            let reject = update(lease, job_id, attempt, "rejected", "the worker is shutting down");
            state.report(Report::Update(reject));
            wake(state);
            return Taken::HandedBack;
        }
        state.unfinished += 1;
        drop(state);
        Taken::Run(lost)
    }

    /// The job's handler begins.
    pub(super) fn started(&self, lease: &Arc<str>) {
        let mut state = self.lock();
        let first = state.starting.is_empty();
        state.starting.push_back((Instant::now() + RUNNING_DELAY, Arc::clone(lease)));
        drop(state);
        if first {
            self.changed.notify_one();
        }
    }

    /// When the next job is to be reported as running.
    pub(super) fn next_start(&self) -> Option<Instant> {
        self.lock().starting.front().map(|(due, _)| *due)
    }

    /// Reports those jobs as running that have run for long enough.
    pub(super) fn report_starts(&self, now: Instant) {
        let mut state = self.lock();
        while let Some((_, lease)) = state.starting.pop_front_if(|(due, _)| *due <= now) {
            let held = state.held.get(&lease);
            if let Some(held) = held.filter(|held| !held.finished && !held.lost.is_cancelled()) {
                let running = update(&lease, &held.job_id, held.attempt, "running", "");
                state.report(Report::Update(running));
            }
        }
        wake(state);
    }

    /// The job's handler has ended; `None` if there is nothing to report, because the server took the job
    /// away.
    pub(super) fn finished(&self, lease: &Arc<str>, completion: Option<JobCompletion>) {
        let mut state = self.lock();
        state.unfinished = state.unfinished.saturating_sub(1);
        let held = state.held.get_mut(lease).filter(|held| !held.lost.is_cancelled());
        if let (Some(held), Some(completion)) = (held, completion) {
            held.finished = true;
            state.report(Report::Completion(completion));
        } else {
            state.held.remove(lease);
        }
        let draining = state.draining;
        wake(state);
        if draining {
            self.changed.notify_one();
        }
    }

    /// Reports were accepted. Answers the ends among them.
    pub(super) fn acknowledged(&self, ids: &[u64]) -> Vec<Settled> {
        let mut state = self.lock();
        let reports = ids.iter().filter_map(|id| state.settle(*id));
        let ends = reports.filter_map(|report| Settled::of(report, ReportOutcome::Acknowledged)).collect();
        let draining = state.draining;
        drop(state);
        if draining {
            self.changed.notify_one();
        }
        ends
    }

    /// A report is not wanted: the lease is not this worker's any more. A job that still runs is stopped.
    pub(super) fn dropped(&self, id: u64, reason: String) -> Option<Settled> {
        let mut state = self.lock();
        let report = state.settle(id);
        if let Some(report) = &report
            && let Some(held) = state.held.get(lease_of(report))
            && !held.finished
        {
            held.lost.cancel();
        }
        drop(state);
        self.changed.notify_one();
        Settled::of(report?, ReportOutcome::Refused { reason })
    }

    /// A report cannot be taken as it is. A success is then reported as a failure: left to itself, the job
    /// would only end with its timeout.
    pub(super) fn unacceptable(&self, id: u64, reason: String) -> Option<Settled> {
        let mut state = self.lock();
        let settled = match state.reports.remove(&id) {
            Some(Report::Completion(completion)) if completion.success => {
                state.report(Report::Completion(JobCompletion {
                    success: false,
                    output_data: bytes::Bytes::new(),
                    error_message: "the server did not accept the output".to_owned(),
                    error_code: "bad_output".to_owned(),
                    ..completion
                }));
                None
            }
            Some(report) => {
                state.let_go(&report);
                Settled::of(report, ReportOutcome::Refused { reason })
            }
            None => None,
        };
        wake(state);
        self.changed.notify_one();
        settled
    }

    /// The server takes no message of the size that was sent last. A report that went alone for its size is
    /// the one that is meant.
    pub(super) fn too_large(&self, reason: &str) -> Option<Settled> {
        let largest = {
            let state = self.lock();
            let large = state.reports.iter().filter(|(_, report)| size(report) > BATCH_BYTES);
            large.max_by_key(|(_, report)| size(report)).map(|(id, _)| *id)
        };
        self.unacceptable(largest?, reason.to_owned())
    }

    /// Ends the present stream: nothing more is said on it.
    pub(super) fn end(&self) {
        let mut state = self.lock();
        state.stream += 1;
        state.gathering = false;
        wake(state);
    }

    /// A report could not be taken just now.
    pub(super) fn postpone(&self, id: u64) {
        self.lock().postponed.push(id);
    }

    /// Sends again what was postponed.
    pub(super) fn send_postponed(&self) {
        let mut state = self.lock();
        let postponed = std::mem::take(&mut state.postponed);
        state.unsent.extend(postponed);
        wake(state);
    }

    /// The server has ended a lease.
    pub(super) fn lost(&self, lease: &str) {
        if let Some(held) = self.lock().held.get(lease) {
            held.lost.cancel();
        }
    }

    /// Puts a sign of life into the next message.
    pub(super) fn beat(&self, heartbeat: SessionHeartbeat) {
        let mut state = self.lock();
        state.heartbeat = Some(heartbeat);
        wake(state);
    }

    /// Takes nothing more in.
    pub(super) fn drain(&self) {
        self.lock().draining = true;
        self.changed.notify_one();
    }

    /// Whether the worker has drained and nothing is left to say.
    pub(super) fn is_done(&self) -> bool {
        let state = self.lock();
        state.draining && state.held.is_empty() && state.heartbeat.is_none()
    }

    /// How many jobs are held.
    pub(super) fn held(&self) -> usize {
        self.lock().held.len()
    }

    /// Jobs that have ended and whose end is not acknowledged.
    pub(super) fn unreported(&self) -> usize {
        self.lock().held.values().filter(|held| held.finished).count()
    }

    /// When the stream's next message may leave, if that is not now. Until then the sender is woken only in haste.
    fn holds_back_until(&self, stream: u64, cx: &Context<'_>) -> Option<Instant> {
        let mut state = self.lock();
        if state.stream != stream {
            return None;
        }
        let due = state.holds_back_until();
        state.gathering = due.is_some();
        if due.is_some() {
            state.sender = Some(cx.waker().clone());
        }
        due
    }

    fn next_message(&self, stream: u64, cx: &Context<'_>) -> Poll<Option<SessionRequest>> {
        let mut state = self.lock();
        if state.stream != stream {
            return Poll::Ready(None);
        }
        let mut reports = Vec::new();
        let mut bytes = 0;
        while reports.len() < BATCH {
            let Some(&id) = state.unsent.front() else { break };
            let Some(report) = state.reports.get(&id) else {
                state.unsent.pop_front();
                continue;
            };
            bytes += size(report);
            if bytes > BATCH_BYTES && !reports.is_empty() {
                break;
            }
            reports.push(SessionReport { id, report: Some(report.clone()) });
            state.unsent.pop_front();
        }
        let credits = state.vacancies();
        state.outstanding += credits;
        let heartbeat = state.heartbeat.take();
        let message = SessionRequest { opening: state.opening.take(), credits, reports, heartbeat };
        if message == SessionRequest::default() {
            state.sender = Some(cx.waker().clone());
            return Poll::Pending;
        }
        // Where more is left than one message holds, there is nothing to gather.
        let gathers = message.reports.len() >= SEVERAL && state.unsent.is_empty();
        state.gathers_until = gathers.then(|| Instant::now() + GATHERING);
        let draining = state.draining;
        drop(state);
        if draining {
            self.changed.notify_one();
        }
        Poll::Ready(Some(message))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// How many more jobs to ask for.
    fn vacancies(&self) -> u32 {
        if self.draining {
            return 0;
        }
        let slots = self.slots.saturating_sub(self.unfinished);
        let room = u32::try_from(MOST_HELD.saturating_sub(self.held.len())).unwrap_or(0);
        slots.min(room).saturating_sub(self.outstanding)
    }

    /// When the next message may leave, if that is not now.
    fn holds_back_until(&self) -> Option<Instant> {
        let due = self.gathers_until.filter(|due| *due > Instant::now())?;
        let silent = self.unsent.is_empty() && self.vacancies() == 0 && self.heartbeat.is_none();
        (!silent && !self.is_in_haste()).then_some(due)
    }

    /// Whether half of the slots wait for jobs that were not asked for, or the worker is leaving.
    fn is_in_haste(&self) -> bool {
        let vacancies = self.vacancies();
        self.draining || (vacancies > 0 && vacancies >= self.slots.div_ceil(2))
    }

    fn report(&mut self, report: Report) {
        self.last_report += 1;
        self.reports.insert(self.last_report, report);
        self.unsent.push_back(self.last_report);
    }

    /// Forgets an answered report, and with the last one the job.
    fn settle(&mut self, id: u64) -> Option<Report> {
        let report = self.reports.remove(&id)?;
        if !matches!(&report, Report::Update(update) if update.status == "running") {
            self.let_go(&report);
        }
        Some(report)
    }

    fn let_go(&mut self, report: &Report) {
        if self.held.get(lease_of(report)).is_some_and(|held| held.finished) {
            self.held.remove(lease_of(report));
        }
    }
}

/// Wakes the connection, after the lock was given back. One that gathers is left alone.
fn wake(mut state: MutexGuard<'_, State>) {
    if state.gathering && !state.is_in_haste() {
        return;
    }
    let sender = state.sender.take();
    drop(state);
    if let Some(sender) = sender {
        sender.wake();
    }
}

/// One stream's messages, as the connection pulls them.
pub(super) struct Outgoing {
    outbox: Arc<Outbox>,
    stream: u64,
    later: Pin<Box<Sleep>>,
}

impl Stream for Outgoing {
    type Item = SessionRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<SessionRequest>> {
        while let Some(due) = self.outbox.holds_back_until(self.stream, cx) {
            self.later.as_mut().reset(due);
            ready!(self.later.as_mut().poll(cx));
        }
        self.outbox.next_message(self.stream, cx)
    }
}

#[cfg(test)]
#[path = "outbox_tests.rs"]
mod tests;
