//! What the simulated replicas of a thread share, and the crate's seams ask for (`src/ambient.rs`).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::task::JoinError;
use tokio::time::error::Elapsed;
use uuid::Uuid;

use super::disk::{Backend, Disk};
use super::history::History;
use super::network::Connections;
use crate::control::ControlState;
use crate::raft::{Entry, LogId};

thread_local! {
    /// The simulation that runs on this thread.
    static CONTEXT: RefCell<Option<Rc<Context>>> = const { RefCell::new(None) };
}

/// One simulation.
pub(super) struct Context {
    /// The randomness of the replicas.
    rng: RefCell<SmallRng>,
    /// By the directory that it holds.
    pub disks: BTreeMap<PathBuf, (u64, Disk)>,
    pub history: RefCell<History>,
    pub connections: Connections,
    /// How likely a disk is slow.
    pub slow_disks: f64,
}

/// Ends the simulation of this thread.
pub(super) struct Running;

impl Drop for Running {
    fn drop(&mut self) {
        CONTEXT.set(None);
    }
}

impl Context {
    pub fn new(seed: u64, hosts: impl Iterator<Item = u64>, slow_disks: f64) -> Rc<Self> {
        let disks = hosts.map(|id| (data_dir(id), (id, Disk::default()))).collect();
        let rng = RefCell::new(SmallRng::seed_from_u64(seed));
        let (history, connections) = (RefCell::default(), Connections::default());
        Rc::new(Context { rng, disks, history, connections, slow_disks })
    }

    /// Makes it that of this thread.
    pub fn enter(self: &Rc<Self>) -> Running {
        CONTEXT.set(Some(Rc::clone(self)));
        Running
    }
}

/// Names a directory that exists on no real disk.
pub(super) fn data_dir(id: u64) -> PathBuf {
    PathBuf::from(format!("simulated/{id}"))
}

pub(super) fn context() -> Option<Rc<Context>> {
    CONTEXT.with_borrow(Clone::clone)
}

/// Whether this thread runs a simulation.
pub fn is_running() -> bool {
    CONTEXT.with_borrow(Option::is_some)
}

/// A number from the simulation's seed.
pub fn random() -> Option<u64> {
    context().map(|context| context.rng.borrow_mut().random())
}

/// The simulated disk with that file, which it may yet have to create.
pub(crate) fn disk(path: &Path) -> Option<Backend> {
    context()?.disks.get(path.parent()?).map(|(_, disk)| disk.open())
}

/// An id from the simulation's seed.
pub(crate) fn new_cluster_id() -> Option<Uuid> {
    random().map(|random| Uuid::from_u64_pair(random, random))
}

/// Does the work of a disk: as a rule at once, now and then slowly. As on a thread, the work is done even if nobody
/// waits for it any more.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    let delays = context().and_then(|context| {
        let mut rng = context.rng.borrow_mut();
        rng.random_bool(context.slow_disks).then(|| {
            let longest = if rng.random_bool(0.05) { 400 } else { 12 };
            (rng.random_range(0..longest), rng.random_range(0..12))
        })
    });
    let Some((before, after)) = delays else {
        return Ok(work());
    };
    let slowly = async move {
        tokio::time::sleep(Duration::from_millis(before)).await;
        let done = work();
        tokio::time::sleep(Duration::from_millis(after)).await;
        done
    };
    tokio::spawn(slowly).await
}

/// Waits for the answer to a call no longer than `limit`. The call itself goes on: h2 remembers a stream that was
/// reset for a second of the real clock, which no seed decides, so none is reset here.
pub(crate) async fn within<T: Send + 'static>(
    limit: Duration,
    call: impl Future<Output = T> + Send + 'static,
) -> Result<T, Elapsed> {
    match tokio::time::timeout(limit, tokio::spawn(call)).await? {
        Ok(answer) => Ok(answer),
        Err(_) => std::future::pending().await,
    }
}

/// Takes down what a replica applied: an entry, or a snapshot in place of all up to `applied`.
pub(crate) fn observe(path: &Path, applied: Option<LogId>, entry: Option<&Entry>, control: &ControlState) {
    let Some(context) = context() else {
        return;
    };
    let disk = path.parent().and_then(|directory| context.disks.get(directory));
    if let (Some((id, _)), Some(applied)) = (disk, applied) {
        context.history.borrow_mut().applied(*id, applied, entry, control);
    }
}

/// Takes down what happened.
pub fn note(line: String) {
    if let Some(context) = context() {
        context.history.borrow_mut().note(line);
    }
}

/// Takes down what may not be.
pub fn violated(what: String) {
    if let Some(context) = context() {
        context.history.borrow_mut().violated(what);
    }
}

/// Takes down that a host sent something.
pub(super) fn wrote(from: io::Result<SocketAddr>, to: io::Result<SocketAddr>) {
    if let Some(context) = context() {
        context.history.borrow_mut().wrote(from.ok(), to.ok());
    }
}
