//! Those who use the cluster meanwhile: clients of every kind, and workers of both kinds.

mod callers;
mod intruders;
mod jobs;
mod pollers;
mod sessions;
mod submitters;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::cluster::Cluster;
use crate::draw::Draw;
use crate::history::Recorder;

pub use jobs::Plan;
pub use pollers::Poller;
pub use sessions::Sessions;
pub use submitters::outcome_of;

/// Pause of a client between two submissions, unless something else is asked for.
const PACE: Duration = Duration::from_millis(50);
/// How many accepted jobs those remember who read and cancel.
const REMEMBERED: usize = 500;

/// How much of everything there is.
#[derive(Debug, Clone)]
pub struct Size {
    /// Clients that submit.
    pub submitters: usize,
    /// Pause of each between two submissions. What others do takes its time by it, too.
    pub pace: Duration,
    /// Whether some jobs have a time before which they must not run.
    pub timed: bool,
    /// How long a job runs at the most.
    pub longest: Duration,
    /// Clients that read the same job again and again, everywhere.
    pub readers: usize,
    /// Clients that cancel, and try failed jobs again.
    pub cancellers: usize,
    /// Clients that try what they may not.
    pub intruders: usize,
    /// Workers with a session.
    pub sessions: usize,
    /// Slots of each.
    pub session_slots: usize,
    /// Workers that poll.
    pub pollers: usize,
    /// Slots of each.
    pub poller_slots: usize,
}

impl Default for Size {
    fn default() -> Self {
        Self {
            submitters: 6,
            pace: PACE,
            timed: true,
            longest: Duration::from_secs(3),
            readers: 3,
            cancellers: 2,
            intruders: 1,
            sessions: 4,
            session_slots: 8,
            pollers: 2,
            poller_slots: 4,
        }
    }
}

impl Size {
    /// How many jobs can run at a time.
    pub fn slots(&self) -> usize {
        self.sessions * self.session_slots + self.pollers * self.poller_slots
    }

    /// How much slower than by default everybody is.
    fn slower(&self) -> u32 {
        let times = self.pace.as_millis() / PACE.as_millis();
        u32::try_from(times).unwrap_or(u32::MAX).clamp(1, 1000)
    }
}

/// What all of them share.
pub struct Shared {
    /// Whom they talk to.
    pub cluster: Arc<Cluster>,
    /// Where they write down what they do.
    pub recorder: Arc<Recorder>,
    /// Where their randomness comes from.
    pub seed: u64,
    accepted: AtomicU64,
    started: AtomicU64,
    numbers: AtomicU64,
    recent: Mutex<VecDeque<Uuid>>,
}

/// Everybody at work.
pub struct Workload {
    shared: Arc<Shared>,
    /// Workers with a session; faults kill them.
    pub sessions: Sessions,
    /// Workers that poll; faults make zombies of them.
    pub pollers: Vec<Poller>,
    load: CancellationToken,
    work: CancellationToken,
    clients: JoinSet<()>,
}

impl Workload {
    /// Starts workers, then clients.
    pub fn start(cluster: &Arc<Cluster>, recorder: &Arc<Recorder>, seed: u64, size: &Size) -> Self {
        let shared = Arc::new(Shared {
            cluster: Arc::clone(cluster),
            recorder: Arc::clone(recorder),
            seed,
            accepted: AtomicU64::new(0),
            started: AtomicU64::new(0),
            numbers: AtomicU64::new(1),
            recent: Mutex::default(),
        });
        let (load, work) = (CancellationToken::new(), CancellationToken::new());
        let sessions = Sessions::start(&shared, size.sessions, size.session_slots);
        let pollers =
            (1..=size.pollers).map(|number| Poller::start(&shared, number, size.poller_slots, &work));
        let pollers = pollers.collect();
        let mut clients = JoinSet::new();
        for number in 1..=size.submitters {
            clients.spawn(submitters::submit(Arc::clone(&shared), number, size.clone(), load.clone()));
        }
        for number in 1..=size.readers {
            clients.spawn(callers::read(Arc::clone(&shared), number, size.slower(), load.clone()));
        }
        for number in 1..=size.cancellers {
            clients.spawn(callers::cancel(Arc::clone(&shared), number, size.slower(), load.clone()));
        }
        for number in 1..=size.intruders {
            clients.spawn(intruders::intrude(Arc::clone(&shared), number, size.slower(), load.clone()));
        }
        Self { shared, sessions, pollers, load, work, clients }
    }

    /// Submissions that were answered ok so far.
    pub fn accepted(&self) -> u64 {
        self.shared.accepted()
    }

    /// What everybody shares.
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Ends the clients; each finishes its call. Workers go on.
    pub async fn end_load(&mut self) {
        self.load.cancel();
        while self.clients.join_next().await.is_some() {}
    }

    /// Ends the workers.
    pub async fn stop(self) {
        self.work.cancel();
        self.sessions.stop().await;
        for poller in self.pollers {
            poller.stop().await;
        }
    }
}

impl Shared {
    /// Submissions that were answered ok so far.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Jobs that workers have begun so far.
    pub fn started(&self) -> u64 {
        self.started.load(Ordering::Relaxed)
    }

    /// Notes that a worker has begun a job.
    fn start(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    /// A number for a job that no other job has.
    pub fn next_number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The randomness of one of them.
    pub fn draw(&self, name: &str) -> Draw {
        Draw::new(self.seed, name)
    }

    /// Remembers jobs that were accepted.
    pub fn accept(&self, jobs: impl Iterator<Item = Uuid>) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        for job in jobs {
            self.accepted.fetch_add(1, Ordering::Relaxed);
            if recent.len() == REMEMBERED {
                recent.pop_front();
            }
            recent.push_back(job);
        }
    }

    /// One of the jobs that were accepted lately.
    pub fn recent(&self, draw: &mut Draw) -> Option<Uuid> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.is_empty() { None } else { Some(recent[draw.index(recent.len())]) }
    }
}

/// Waits, unless it is over; answers whether it goes on.
async fn pause(time: Duration, stop: &CancellationToken) -> bool {
    tokio::time::timeout(time, stop.cancelled()).await.is_err()
}
