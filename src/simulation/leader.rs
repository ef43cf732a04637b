//! A leader in memory: it carries commands out by one row each, as fenced transactions, and runs one loop.
//!
//! It ends itself for the reasons of the real one, and watches the order in which it is started and stopped.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use cortex_cluster::simulation::violated;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::store::Store;
use super::{Defect, below};
use crate::forward::{self, Route};
use crate::leadership::Office;
use crate::security::Caller;
use crate::services::batcher::Stage;
use crate::services::command::{Answer, Applied, Command, Commands, Submitted};
use crate::services::error::ServiceError;
use crate::services::leader::End;
use crate::storage::{Fence, StorageError};

/// Longest transaction.
const TRANSACTION_WITHIN: Duration = Duration::from_secs(1);

/// The office of one replica.
pub(super) struct MemoryOffice {
    pub store: Store,
    pub host: u64,
    pub route: forward::watch::Receiver<Route>,
}

/// A leadership in force.
pub(super) struct MemoryLeader {
    own: Weak<MemoryLeader>,
    pub fence: Fence,
    store: Store,
    host: u64,
    route: forward::watch::Receiver<Route>,
    stage: Stage,
    end: watch::Sender<Option<End>>,
    /// The same for those who wait, of whom there may be many.
    over: CancellationToken,
    /// What ends the loop, once it was asked for.
    loops: OnceLock<CancellationToken>,
    /// How many loops run.
    running: AtomicUsize,
}

impl Office for MemoryOffice {
    type Leader = MemoryLeader;

    fn prepare(&self) {}

    fn stand_by(&self) {}

    async fn take_over(
        &self,
        fence: Fence,
        _term: i64,
        _leader_id: i64,
        stage: &Stage,
    ) -> Result<Arc<MemoryLeader>, StorageError> {
        self.former_has_drained(fence);
        let early = self.store.lock().defect == Some(Defect::HereBeforeTheFence);
        if early {
            let (store, host) = (self.store.clone(), self.host);
            drop(tokio::spawn(async move { store.take_over(host, fence).await }));
        } else {
            self.store.take_over(self.host, fence).await?;
            sleep(Duration::from_millis(below(10))).await;
        }
        let leader = Arc::new_cyclic(|own| MemoryLeader {
            own: own.clone(),
            fence,
            store: self.store.clone(),
            host: self.host,
            route: self.route.clone(),
            stage: stage.clone(),
            end: watch::Sender::new(None),
            over: CancellationToken::new(),
            loops: OnceLock::new(),
            running: AtomicUsize::new(0),
        });
        self.store.lock().leaders.insert(self.host, Arc::clone(&leader));
        Ok(leader)
    }

    fn start_loops(
        &self,
        leader: Arc<MemoryLeader>,
        acting: watch::Receiver<bool>,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> impl Future<Output = ()> + Send + 'static {
        if leader.loops.set(stop.clone()).is_err() {
            violated(format!("member {} starts its loops twice", leader.host));
        }
        async move {
            // The ready queue is taken over first.
            sleep(Duration::from_millis(below(30))).await;
            tasks.spawn(leader.run_loop(acting, stop));
        }
    }

    fn ended(leader: &MemoryLeader) -> watch::Receiver<Option<End>> {
        leader.end.subscribe()
    }

    fn dismiss(leader: &MemoryLeader) {
        if leader.is_here() {
            violated(format!("member {} dismisses its leader while commands still come", leader.host));
        }
        if leader.loops.get().is_some_and(|loops| !loops.is_cancelled()) {
            violated(format!("member {} dismisses its leader before the loops", leader.host));
        }
        leader.end(End::Over);
    }

    async fn falls_silent(&self, patience: Duration) {
        self.store.falls_silent(self.host, patience).await;
    }
}

impl MemoryOffice {
    /// Who takes over again with the same epoch has waited for what it had begun.
    fn former_has_drained(&self, fence: Fence) {
        let former = self.store.lock().leaders.get(&self.host).cloned();
        let Some(former) = former.filter(|former| former.fence == fence) else { return };
        if former.running.load(Ordering::Relaxed) > 0 || !former.stage.tasks.is_empty() {
            violated(format!("member {} takes over again before it has drained", self.host));
        }
    }
}

impl MemoryLeader {
    /// Whether commands come here.
    fn is_here(&self) -> bool {
        matches!(&*self.route.borrow(), Route::Here(commands) if self.is(commands))
    }

    /// Whether this is what a route leads to.
    pub fn is(&self, commands: &Arc<dyn Commands>) -> bool {
        std::ptr::addr_eq(Arc::as_ptr(commands), std::ptr::from_ref(self))
    }

    /// Nothing begins but while commands come here.
    fn begins(&self, what: &str) {
        if !self.is_here() {
            violated(format!("{what} begins at member {}, which has stepped down", self.host));
        }
    }

    async fn run_loop(self: Arc<Self>, mut acting: watch::Receiver<bool>, stop: CancellationToken) {
        self.running.fetch_add(1, Ordering::Relaxed);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                () = sleep(Duration::from_millis(10 + below(40))) => {}
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                acting = acting.wait_for(|acting| *acting) => if acting.is_err() { break },
            }
            self.begins("a loop's round");
            // The next round tries again.
            drop(self.transact(None).await);
        }
        self.running.fetch_sub(1, Ordering::Relaxed);
    }

    /// Ends the leadership; the first reason stands.
    fn end(&self, reason: End) {
        self.end.send_if_modified(|end| end.is_none() && end.replace(reason).is_none());
        self.over.cancel();
    }

    async fn transact(&self, row: Option<Uuid>) -> Result<(), StorageError> {
        if self.end.borrow().is_some_and(|end| end != End::Over) {
            return Err(StorageError::Fenced);
        }
        let written = timeout(TRANSACTION_WITHIN, self.write(row)).await;
        let written = written.unwrap_or_else(|_| Err(StorageError::timed_out()));
        match &written {
            Err(StorageError::Fenced) => {
                let slip = self.store.lock().defect == Some(Defect::FencedOffCountsAsUnsure);
                self.end(if slip { End::Unsure } else { End::Fenced });
            }
            Err(StorageError::OutcomeUnknown(_)) => self.end(End::Unsure),
            Ok(()) | Err(_) => {}
        }
        written
    }

    async fn write(&self, row: Option<Uuid>) -> Result<(), StorageError> {
        let transaction = self.store.begin(self.host, self.fence).await?;
        sleep(Duration::from_millis(below(8))).await;
        self.store.commit(self.host, transaction, row).await
    }

    /// Carries a command out, whether or not somebody still waits for it.
    async fn carry_out(self: Arc<Self>, id: Uuid, answer: Answer) -> Result<Answer, ServiceError> {
        let (reply, written) = oneshot::channel();
        let stage = self.stage.clone();
        stage.tasks.spawn(async move {
            let written = self.transact(Some(id)).await;
            let unsure = self.store.lock().defect == Some(Defect::UnknownCountsAsNotDone);
            // Nobody may wait any more.
            drop(reply.send(match written {
                Err(StorageError::OutcomeUnknown(_)) if unsure => Err(ServiceError::NoLeader),
                written => written.map_err(ServiceError::from),
            }));
        });
        written.await.unwrap_or(Err(ServiceError::OutcomeUnknown)).map(|()| answer)
    }

    /// Waits for a job, or the end.
    async fn poll(self: Arc<Self>, id: Uuid, wait: Duration) -> Result<Answer, ServiceError> {
        tokio::select! {
            biased;
            () = self.over.cancelled() => return Err(ServiceError::NoLeader),
            () = sleep(wait.min(Duration::from_millis(below(400)))) => {}
        }
        self.carry_out(id, Answer::PollJob(None)).await
    }
}

impl Commands for MemoryLeader {
    fn execute(&self, _: Caller, command: Command) -> BoxFuture<'_, Result<Answer, ServiceError>> {
        if self.end.borrow().is_some() {
            return std::future::ready(Err(ServiceError::NoLeader)).boxed();
        }
        self.begins(command.name());
        let Some(this) = self.own.upgrade() else {
            return std::future::ready(Err(ServiceError::NoLeader)).boxed();
        };
        match command {
            Command::RemoveWorker(id) => this.carry_out(id.0, Answer::RemoveWorker).boxed(),
            Command::ApplyEvent(id, _) => {
                this.carry_out(id.0, Answer::ApplyEvent(Applied { repeated: false, job: None })).boxed()
            }
            Command::PollJob(poll) => this.poll(poll.delivery.0, poll.wait).boxed(),
            Command::SubmitOnce(once) => match once.key.key.parse() {
                Ok(id) => this.carry_out(id, Answer::SubmitOnce(Submitted::Now(Vec::new()))).boxed(),
                Err(_) => std::future::ready(Err(ServiceError::Internal)).boxed(),
            },
            _ => std::future::ready(Err(ServiceError::Internal)).boxed(),
        }
    }
}
