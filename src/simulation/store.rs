//! The truth of a simulated group in memory, in place of PostgreSQL: which epoch may write, and what was written.
//!
//! As there, a transaction shows its epoch when it begins; a take-over waits for those under way, and holds up those
//! that come later. What a server does it does whether or not somebody still waits for the answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cortex_cluster::simulation::{note, violated};
use tokio::time::sleep;
use uuid::Uuid;

use super::leader::MemoryLeader;
use super::ledger::Ledger;
use super::{Defect, below};
use crate::storage::{Fence, StorageError};

/// How long a transaction may be idle, as in PostgreSQL's settings.
const IDLE: Duration = Duration::from_millis(400);
const MILLISECOND: Duration = Duration::from_millis(1);

/// A handle; clones share it.
#[derive(Clone)]
pub(super) struct Store(Arc<Mutex<State>>);

/// What is asked of it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Ask {
    TakeOver(Fence),
    Begin(Fence),
    /// Writes one row. The loops' rows have no name.
    Commit(u64, Option<Uuid>),
}

/// What it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reply {
    Done(u64),
    Fenced,
    /// The connection broke; what was asked may have been done.
    Broken,
}

/// A transaction under way.
struct Transaction {
    host: u64,
    fence: Fence,
    until: Duration,
}

pub(super) struct State {
    pub now: Duration,
    pub ledger: Ledger,
    pub defect: Option<Defect>,
    /// Connections break now and then.
    pub breaks: bool,
    /// Who took over last, on each host.
    pub leaders: BTreeMap<u64, Arc<MemoryLeader>>,
    /// Whoever may write.
    current: Option<Fence>,
    /// Which host took over with which epoch.
    accepted: BTreeMap<i64, u64>,
    /// Epochs of which their replicas know that they are fenced off.
    spent: BTreeSet<i64>,
    /// Hosts that hear nothing, since when and until when.
    silent: BTreeMap<u64, (Duration, Duration)>,
    open: BTreeMap<u64, Transaction>,
    asked: Vec<(u64, u64, Ask)>,
    replies: BTreeMap<u64, Reply>,
    next: u64,
}

impl Store {
    pub fn new(defect: Option<Defect>) -> Self {
        Self(Arc::new(Mutex::new(State {
            now: Duration::ZERO,
            ledger: Ledger::default(),
            defect,
            breaks: true,
            leaders: BTreeMap::new(),
            current: None,
            accepted: BTreeMap::new(),
            spent: BTreeSet::new(),
            silent: BTreeMap::new(),
            open: BTreeMap::new(),
            asked: Vec::new(),
            replies: BTreeMap::new(),
            next: 0,
        })))
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fences all older epochs off.
    pub async fn take_over(&self, host: u64, fence: Fence) -> Result<(), StorageError> {
        if self.lock().spent.contains(&fence.epoch.0) {
            violated(format!("member {host} takes over with epoch {}, which was fenced off", fence.epoch));
        }
        match self.ask(host, Ask::TakeOver(fence)).await {
            Reply::Done(_) => Ok(()),
            Reply::Fenced => Err(self.told(host, fence)),
            Reply::Broken => Err(unavailable()),
        }
    }

    /// Begins a transaction.
    pub async fn begin(&self, host: u64, fence: Fence) -> Result<u64, StorageError> {
        match self.ask(host, Ask::Begin(fence)).await {
            Reply::Done(transaction) => Ok(transaction),
            Reply::Fenced => Err(self.told(host, fence)),
            Reply::Broken => Err(unavailable()),
        }
    }

    /// Writes a row and ends the transaction.
    pub async fn commit(&self, host: u64, transaction: u64, row: Option<Uuid>) -> Result<(), StorageError> {
        match self.ask(host, Ask::Commit(transaction, row)).await {
            Reply::Done(_) => Ok(()),
            Reply::Fenced | Reply::Broken => Err(StorageError::timed_out()),
        }
    }

    /// Ends once nothing has come from here for `patience`.
    pub async fn falls_silent(&self, host: u64, patience: Duration) {
        loop {
            sleep(10 * MILLISECOND).await;
            let state = self.lock();
            if state.silent.get(&host).is_some_and(|(since, _)| *since + patience <= state.now) {
                return;
            }
        }
    }

    async fn ask(&self, host: u64, ask: Ask) -> Reply {
        self.way(host).await;
        let ticket = self.lock().take(host, ask);
        let reply = loop {
            sleep(MILLISECOND).await;
            if let Some(reply) = self.lock().replies.remove(&ticket) {
                break reply;
            }
        };
        self.way(host).await;
        reply
    }

    /// A message's way, which takes as long as the silence lasts.
    async fn way(&self, host: u64) {
        sleep(Duration::from_millis(below(3))).await;
        while self.lock().is_silent(host) {
            sleep(MILLISECOND).await;
        }
    }

    /// The replica knows from now on.
    fn told(&self, host: u64, fence: Fence) -> StorageError {
        if self.lock().spent.insert(fence.epoch.0) {
            note(format!("member {host} is fenced off, epoch {}", fence.epoch));
        }
        StorageError::Fenced
    }
}

fn unavailable() -> StorageError {
    StorageError::Unavailable(sqlx::Error::PoolTimedOut)
}

impl State {
    /// Has a host hear nothing for a while.
    pub fn silence(&mut self, host: u64, lasts: Duration) {
        note(format!("the store is silent to member {host} for {lasts:?}"));
        self.silent.insert(host, (self.now, self.now + lasts));
    }

    /// Nothing is wrong any more.
    pub fn mend(&mut self) {
        self.breaks = false;
        self.silent.clear();
    }

    fn is_silent(&self, host: u64) -> bool {
        self.silent.contains_key(&host)
    }

    fn take(&mut self, host: u64, ask: Ask) -> u64 {
        self.next += 1;
        self.asked.push((self.next, host, ask));
        self.next
    }

    /// Does what was asked, as far as it can be done now.
    pub fn serve(&mut self) {
        let now = self.now;
        self.silent.retain(|_, (_, until)| *until > now);
        self.open.retain(|_, transaction| transaction.until > now);
        let asked = std::mem::take(&mut self.asked);
        let commits = |(_, _, ask): &(u64, u64, Ask)| matches!(ask, Ask::Commit(..));
        let (commits, others): (Vec<_>, Vec<_>) = asked.into_iter().partition(commits);
        for (ticket, host, ask) in commits {
            if let Ask::Commit(transaction, row) = ask {
                let reply = self.commit(host, transaction, row);
                self.replies.insert(ticket, reply);
            }
        }
        // Whoever wants to be alone holds up those who come later.
        let mut waits = false;
        for (ticket, host, ask) in others {
            let exclusive = matches!(ask, Ask::TakeOver(_));
            waits |= exclusive && !self.open.is_empty() && self.defect != Some(Defect::FenceOff);
            if waits {
                self.asked.push((ticket, host, ask));
                continue;
            }
            let reply = match ask {
                Ask::TakeOver(fence) => self.take_over(host, fence),
                Ask::Begin(fence) => self.begin(host, fence),
                Ask::Commit(..) => Reply::Broken,
            };
            self.replies.insert(ticket, reply);
        }
    }

    fn take_over(&mut self, host: u64, fence: Fence) -> Reply {
        let newer = self.current.is_some_and(|current| current.epoch.0 > fence.epoch.0);
        if newer {
            return Reply::Fenced;
        }
        if self.current.is_some_and(|current| current.cluster_id != fence.cluster_id) {
            violated(format!("member {host} takes over for another cluster"));
        }
        note(format!("member {host} takes over with epoch {}", fence.epoch));
        let accepted = *self.accepted.entry(fence.epoch.0).or_insert(host);
        if accepted != host {
            violated(format!("members {accepted} and {host} both took over with epoch {}", fence.epoch));
        }
        self.current = Some(fence);
        Reply::Done(0)
    }

    fn begin(&mut self, host: u64, fence: Fence) -> Reply {
        if self.current != Some(fence) && self.defect != Some(Defect::FenceOff) {
            return Reply::Fenced;
        }
        self.next += 1;
        self.open.insert(self.next, Transaction { host, fence, until: self.now + IDLE });
        let hosts: BTreeSet<u64> = self.open.values().map(|transaction| transaction.host).collect();
        if hosts.len() > 1 {
            violated(format!("members {hosts:?} write at the same time"));
        }
        Reply::Done(self.next)
    }

    fn commit(&mut self, host: u64, transaction: u64, row: Option<Uuid>) -> Reply {
        let breaks = self.breaks && below(50) == 0;
        if breaks && below(2) == 0 {
            self.open.remove(&transaction);
            return Reply::Broken;
        }
        let Some(transaction) = self.open.remove(&transaction) else { return Reply::Broken };
        if self.current != Some(transaction.fence) {
            violated(format!("member {host} writes with epoch {}, which is old", transaction.fence.epoch));
        }
        if let Some(row) = row {
            self.ledger.wrote(row, host, transaction.fence.epoch.0);
        }
        if breaks { Reply::Broken } else { Reply::Done(0) }
    }

    /// Whether the host took over with this epoch.
    pub fn has_accepted(&self, host: u64, fence: Fence) -> bool {
        self.accepted.get(&fence.epoch.0) == Some(&host)
    }

    /// Whether this is whoever may write.
    pub fn is_current(&self, fence: Fence) -> bool {
        self.current == Some(fence)
    }

    /// Whether the replica knows that the epoch is fenced off.
    pub fn is_spent(&self, fence: Fence) -> bool {
        self.spent.contains(&fence.epoch.0)
    }
}
