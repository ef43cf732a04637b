//! From Raft's word to work: when this replica leads, what starts and stops, and where commands go.
//!
//! ```text
//!                Raft: Leading(epoch)            fence set, fleet loaded
//!   Following ─────────────────────► TakingOver ───────────────────────► Leading
//!       ▲                                │                                  │
//!       │        Raft: not leading       │       Raft: not leading, or a    │
//!       ├────────────────────────────────┘       store fenced a write off   │
//!       └────── or PostgreSQL is silent: the others get their turn ───────────┤
//!                                                a commit's outcome unknown: │
//!                                                TakingOver again ◄──────────┘
//! ```
//!
//! - Commands are accepted (`Route::Here`) only after PostgreSQL holds this leadership's epoch.
//! - Loops start after commands: the ready queue is taken over first.
//! - With a stale quorum the loops pause; nothing is torn down, for the fence protects all the same.
//! - Once PostgreSQL has fenced an epoch off, it is never led with again. Redis is no authority: what it
//!   refuses makes this replica take over again, and PostgreSQL decides.
//! - A replica that was removed from its group stays, to say so to those who ask; it takes no part any more.
//! - Stepping down: loops and what the batchers hold, then the ready queue is told; meanwhile the others elect, and the next leader's fence
//!   waits for transactions under way and stops those that come later.
//! - Whoever may be elected opens the connections that a leader needs while the election goes on.
//!
//! Not here: who wins an election (`cortex-cluster`), and what a leader does (`services::leader`), which comes by
//! [`Office`], so that the simulation can have another.

use std::sync::Arc;
use std::time::Duration;

use cortex_cluster::{Leadership, Node, Quorum};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::domain::ids::{ClusterId, Epoch};
use crate::forward::{self, Route};
use crate::services::batcher::Stage;
use crate::services::command::Commands;
use crate::services::leader::End;
use crate::storage::{Fence, StorageError};
use crate::telemetry::Metrics;

mod stores;

pub use stores::Stores;

/// Pause before another try to take over while PostgreSQL does not let us.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// Pause between two looks whether a database that belongs to another cluster was adopted.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Longest try to take over.
const TAKE_OVER_WITHIN: Duration = Duration::from_secs(5);
/// How long PostgreSQL may refuse a new leader before another replica gets its turn.
const HAND_OVER_AFTER: Duration = Duration::from_secs(3);
/// How long PostgreSQL may be silent before another replica gets its turn. A refused connection is an answer: then it is
/// down for all, or restarts.
const SILENCE: Duration = Duration::from_secs(1);
/// How long a stopping leader may take to finish its batches.
const DRAIN_WITHIN: Duration = Duration::from_secs(5);
/// How often it is seen to that what a leader needs stands ready. Connections that are idle for 60 s are closed: more often, and
/// more of them would be kept than are needed.
const STAND_BY_EVERY: Duration = Duration::from_secs(50);
/// How long a planned hand-over may take before the others have to elect somebody.
const HAND_OVER_WITHIN: Duration = Duration::from_secs(2);

/// What a leader takes over and then does. [`Stores`] is the real one.
pub trait Office: Send + Sync + 'static {
    /// A leadership in force.
    type Leader: Commands;

    /// There is no leader: it may be this replica soon. Must not block.
    fn prepare(&self);

    /// What a leader needs at once stands ready, whoever leads: nobody knows who will be next. Must not block.
    fn stand_by(&self);

    /// Fences older leaders off and loads what a leader has to know. From then on commands are accepted; what commits
    /// them runs on `stage`.
    fn take_over(
        &self,
        fence: Fence,
        term: i64,
        leader_id: i64,
        stage: &Stage,
    ) -> impl Future<Output = Result<Arc<Self::Leader>, StorageError>> + Send;

    /// Starts the loops on `tasks`, once they find the ready queue in order. Dropping the future starts no more.
    fn start_loops(
        &self,
        leader: Arc<Self::Leader>,
        acting: watch::Receiver<bool>,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> impl Future<Output = ()> + Send + 'static;

    /// Becomes `Some` when the leader ends itself.
    fn ended(leader: &Self::Leader) -> watch::Receiver<Option<End>>;

    /// Sends waiting calls away: the leadership is over. What is being committed still is.
    fn dismiss(leader: &Self::Leader);

    /// Ends once PostgreSQL has said nothing for `patience`. To refuse is to answer.
    fn falls_silent(&self, patience: Duration) -> impl Future<Output = ()> + Send;
}

/// What leading needs.
pub struct Parts<O> {
    /// This replica in the Raft group.
    pub node: Node,
    /// Where commands go.
    pub route: forward::watch::Sender<Route>,
    /// What a leader takes over and does.
    pub office: O,
    /// Where it counts.
    pub metrics: Arc<Metrics>,
    /// Hand over and lead no more.
    pub retire: CancellationToken,
    /// Stop following, too.
    pub stop: CancellationToken,
}

/// Raft has ended for good, and so must the process.
#[derive(Debug, thiserror::Error)]
#[error("the Raft core has stopped: {0}")]
pub struct RaftStopped(pub String);

/// Which leadership Raft speaks of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Claim {
    term: u64,
    epoch: u64,
    cluster_id: Uuid,
}

/// Why a reign is over.
enum Over {
    /// Raft says so.
    Deposed,
    /// A store knows a newer leader.
    Fenced,
    /// Start over with the same epoch.
    Unsure,
    /// PostgreSQL does not answer this replica.
    Unheard,
    /// This replica is leaving.
    Retired,
}

/// A leadership in force, with all that runs for it.
struct Reign<O: Office> {
    leader: Arc<O::Leader>,
    acting: watch::Sender<bool>,
    loops: CancellationToken,
    stage: Stage,
}

/// Follows Raft until `stop`, leading whenever it says so.
pub async fn run<O: Office>(parts: Parts<O>) -> Result<(), RaftStopped> {
    let mut leadership = parts.node.leadership();
    // The epoch that must not be led with again.
    let mut spent = None;
    let mut standing_by = tokio::time::interval(STAND_BY_EVERY);
    standing_by.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let now = leadership.borrow_and_update().clone();
        parts.publish(&now);
        let removed = matches!(now, Leadership::Stopped { .. });
        match now {
            Leadership::Stopped { reason, removed: false } => return Err(RaftStopped(reason)),
            Leadership::Leading { term, epoch, cluster_id, .. }
                if spent != Some(epoch) && !parts.retire.is_cancelled() =>
            {
                if let Over::Fenced = parts.lead(Claim { term, epoch, cluster_id }, &mut leadership).await {
                    spent = Some(epoch);
                }
                continue;
            }
            Leadership::Following { leader: None } => parts.office.prepare(),
            Leadership::Leading { .. } | Leadership::Following { .. } | Leadership::Stopped { .. } => {}
        }
        tokio::select! {
            biased;
            () = parts.stop.cancelled() => return Ok(()),
            _ = standing_by.tick(), if !removed => parts.office.stand_by(),
            changed = leadership.changed() => {
                changed.map_err(|_| RaftStopped("it no longer reports".to_owned()))?;
            }
        }
    }
}

impl<O: Office> Parts<O> {
    /// Where commands go as long as this replica does not lead.
    fn publish(&self, leadership: &Leadership) {
        let route = match leadership {
            Leadership::Following { leader: Some(leader) } => {
                Route::There { id: leader.id, peer: leader.addresses.peer.clone() }
            }
            Leadership::Following { leader: None }
            | Leadership::Leading { .. }
            | Leadership::Stopped { .. } => Route::Nowhere,
        };
        self.route.send_replace(route);
    }

    /// Takes over, leads, and steps down.
    async fn lead(&self, claim: Claim, leadership: &mut watch::Receiver<Leadership>) -> Over {
        let reign = match self.take_over(claim, leadership).await {
            Ok(reign) => reign,
            Err(over) => {
                if let Over::Retired = over {
                    self.hand_over().await;
                }
                return over;
            }
        };
        self.metrics.leader.set(1);
        self.metrics.failovers.inc();
        let commands: Arc<dyn Commands> = reign.leader.clone();
        self.route.send_replace(Route::Here(commands));
        tracing::info!(term = claim.term, epoch = claim.epoch, "This replica leads.");
        let starting = self.start_loops(&reign);
        let over = tokio::select! {
            biased;
            over = reign.last(claim, leadership, &self.retire) => over,
            () = self.postgres_falls_silent() => Over::Unheard,
        };
        self.route.send_replace(Route::Nowhere);
        self.metrics.leader.set(0);
        starting.abort();
        tracing::info!(epoch = claim.epoch, "This replica leads no more.");
        let draining = reign.drain();
        match over {
            // What is still under way is fenced off or finishes; nobody needs to wait for it.
            Over::Deposed | Over::Fenced => drop(tokio::spawn(draining)),
            Over::Unheard => {
                drop(tokio::spawn(draining));
                self.hand_over().await;
            }
            Over::Retired => drop(tokio::join!(draining, self.hand_over())),
            Over::Unsure => draining.await,
        }
        over
    }

    /// Ends once PostgreSQL is out of reach while there are others whom it may answer.
    async fn postgres_falls_silent(&self) {
        loop {
            self.office.falls_silent(SILENCE).await;
            if self.node.status().members.len() > 1 {
                tracing::warn!("PostgreSQL answers this replica no more; the leadership is handed over.");
                return;
            }
        }
    }

    /// Tries until it works or Raft says otherwise.
    async fn take_over(
        &self,
        claim: Claim,
        leadership: &mut watch::Receiver<Leadership>,
    ) -> Result<Reign<O>, Over> {
        let fence =
            Fence { cluster_id: ClusterId(claim.cluster_id), epoch: Epoch(claim.epoch.cast_signed()) };
        let stage = Stage::default();
        let (term, id) = (claim.term.cast_signed(), self.node.id().cast_signed());
        let began = tokio::time::Instant::now();
        let mut foreign = false;
        loop {
            let taking_over = self.office.take_over(fence, term, id, &stage);
            let taken = tokio::time::timeout(TAKE_OVER_WITHIN, taking_over).await;
            match taken.unwrap_or_else(|_| Err(StorageError::timed_out())) {
                Ok(leader) => {
                    let acting = watch::Sender::new(true);
                    return Ok(Reign { leader, acting, loops: CancellationToken::new(), stage });
                }
                Err(StorageError::Fenced) => {
                    self.metrics.fenced_writes.inc();
                    return Err(Over::Fenced);
                }
                // Until somebody says that the database is this cluster's, with `cortex cluster adopt`.
                Err(StorageError::ForeignCluster(reason)) => {
                    if !std::mem::replace(&mut foreign, true) {
                        tracing::error!(
                            reason,
                            "This replica must not lead: the database belongs to another cluster."
                        );
                    }
                }
                Err(error) => tracing::warn!(%error, "Taking over failed; it is tried again."),
            }
            // PostgreSQL may be away for this replica alone.
            if !foreign && began.elapsed() >= HAND_OVER_AFTER && self.node.status().members.len() > 1 {
                tracing::warn!("PostgreSQL does not answer this replica; the leadership is handed over.");
                self.hand_over().await;
            }
            tokio::select! {
                biased;
                () = self.retire.cancelled() => return Err(Over::Retired),
                () = tokio::time::sleep(if foreign { LOOK_AGAIN } else { TRY_AGAIN }) => {}
            }
            if !claim.is_current(&leadership.borrow_and_update()) {
                return Err(Over::Deposed);
            }
        }
    }

    /// The ready queue first, so that the loops find it in order.
    fn start_loops(&self, reign: &Reign<O>) -> tokio::task::JoinHandle<()> {
        let (leader, acting) = (Arc::clone(&reign.leader), reign.acting.subscribe());
        let tasks = reign.stage.tasks.clone();
        tokio::spawn(self.office.start_loops(leader, acting, reign.loops.clone(), tasks))
    }

    /// Gives the leadership to the most caught-up replica, if there is another one.
    async fn hand_over(&self) {
        if let Err(error) = self.node.transfer(None, HAND_OVER_WITHIN).await {
            tracing::warn!(%error, "The leadership could not be handed over; the others will elect somebody.");
        }
    }
}

impl<O: Office> Reign<O> {
    /// Waits for the end.
    async fn last(
        &self,
        claim: Claim,
        leadership: &mut watch::Receiver<Leadership>,
        retire: &CancellationToken,
    ) -> Over {
        let mut ended = O::ended(&self.leader);
        loop {
            tokio::select! {
                biased;
                changed = leadership.changed() => {
                    let now = leadership.borrow_and_update();
                    if changed.is_err() || !claim.is_current(&now) {
                        return Over::Deposed;
                    }
                    let fresh = matches!(*now, Leadership::Leading { quorum: Quorum::Fresh, .. });
                    self.acting.send_if_modified(|acting| std::mem::replace(acting, fresh) != fresh);
                }
                end = ended.wait_for(Option::is_some) => {
                    return match end.ok().and_then(|end| *end) {
                        Some(End::Fenced) => Over::Fenced,
                        Some(End::Unsure | End::Over) | None => Over::Unsure,
                    };
                }
                () = retire.cancelled() => return Over::Retired,
            }
        }
    }

    /// Loops and what the batchers hold, then what the ready queue is told of it. At once nothing new begins, and nothing
    /// more is handed to workers.
    fn drain(self) -> impl Future<Output = ()> + Send {
        self.loops.cancel();
        O::dismiss(&self.leader);
        let ended = self.stage.end();
        async move {
            if tokio::time::timeout(DRAIN_WITHIN, ended).await.is_err() {
                tracing::warn!(
                    "A former leader's batches did not finish in time; the fence takes care of them."
                );
            }
        }
    }
}

impl Claim {
    fn is_current(self, leadership: &Leadership) -> bool {
        matches!(leadership, Leadership::Leading { term, epoch, cluster_id, .. }
            if Claim { term: *term, epoch: *epoch, cluster_id: *cluster_id } == self)
    }
}
