//! What is done to the cluster: one file each.
//!
//! A fault strikes, waits as long as it draws, heals what it broke, and says what shows that it bit. One that finds
//! nothing to strike, or leaves no trace, has not happened, and the report says so.

mod clock_jump;
mod connection_flood;
mod control_changes;
mod cut_leader_postgres;
mod cut_leader_redis;
mod duplicate_completion;
mod edges;
mod extra_jobs;
mod freeze_leader;
mod freeze_leader_long;
mod gaps;
mod kill_all;
mod kill_follower;
mod kill_leader;
mod lose_replies;
mod lossy_network;
mod malformed_flood;
mod membership_change;
mod partition_follower;
mod partition_leader;
mod partition_one_way;
mod partition_ring;
mod poison_job;
mod postgres_connections;
mod postgres_restart;
mod power_cut;
mod raft_disk_full;
mod raft_disks;
mod raft_eio;
mod raft_files;
mod raft_flipped_bit;
mod raft_torn_tail;
mod redis_asked;
mod redis_evict;
mod redis_flush;
mod redis_forge;
mod redis_kill;
mod redis_pause;
mod redis_spoil;
mod rolling_restart;
mod slow_loris;
mod slow_network;
mod sockets;
mod stop_leader;
mod transfer_leader;
mod worker_crash;
mod zombie_worker;

use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::Mutex;

use crate::cluster::Cluster;
use crate::draw::Draw;
use crate::history::{NO_SUCCESSOR, Phase, Record, Recorder};
use crate::workload::{Shared, Workload};

/// What a fault strikes: two that strike the same are never under way at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// Processes of replicas, and which of them are members.
    Replicas,
    /// What replicas and stores say to each other.
    Network,
    /// PostgreSQL.
    Postgres,
    /// Redis.
    Redis,
    /// Workers.
    Workers,
    /// What clients send.
    Clients,
}

/// What a fault cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing but the cluster.
    Nothing,
    /// To be root.
    Root,
    /// A program, by its name.
    Program(&'static str),
    /// To be root, and a program.
    RootAndProgram(&'static str),
}

/// Why a strike has nothing to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Miss {
    /// It found nothing to strike, left no trace, or the harness could not do it.
    Idle(String),
    /// The product did not take it as it must, or did not do what it owes at any time.
    Broke(String),
    /// Nobody came to lead in the place of the leader that it had cut off. While others are struck, too, too few may have been
    /// left for that.
    NoSuccessor,
}

/// What came of a strike: what shows that it bit, or why nothing does.
pub type Struck = Result<String, Miss>;

impl Miss {
    /// A promise is broken, in these words.
    fn broke(why: impl Into<String>) -> Self {
        Self::Broke(why.into())
    }
}

// What is not said to be the product's fault is the harness's own trouble.
impl From<String> for Miss {
    fn from(why: String) -> Self {
        Self::Idle(why)
    }
}

impl From<&str> for Miss {
    fn from(why: &str) -> Self {
        Self::Idle(why.to_owned())
    }
}

/// A kind of fault.
pub struct Fault {
    /// As `--faults` takes it.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// What it strikes.
    pub subject: Subject,
    /// What it cannot do without.
    pub needs: Needs,
    /// Does it, once.
    pub strike: fn(Strike) -> BoxFuture<'static, Struck>,
}

/// All kinds.
pub const ALL: &[Fault] = &[
    clock_jump::FAULT,
    connection_flood::FAULT,
    cut_leader_postgres::FAULT,
    cut_leader_redis::FAULT,
    duplicate_completion::FAULT,
    freeze_leader::FAULT,
    freeze_leader_long::FAULT,
    kill_all::FAULT,
    kill_follower::FAULT,
    kill_leader::FAULT,
    lose_replies::FAULT_PEER,
    lose_replies::FAULT_POSTGRES,
    lossy_network::FAULT,
    malformed_flood::FAULT,
    membership_change::FAULT,
    partition_follower::FAULT,
    partition_leader::FAULT,
    partition_one_way::FAULT,
    partition_ring::FAULT,
    poison_job::FAULT,
    postgres_connections::FAULT,
    postgres_restart::FAULT,
    power_cut::FAULT,
    raft_disk_full::FAULT,
    raft_eio::FAULT,
    raft_flipped_bit::FAULT,
    raft_torn_tail::FAULT,
    redis_evict::FAULT,
    redis_flush::FAULT,
    redis_forge::FAULT,
    redis_kill::FAULT,
    redis_pause::FAULT,
    redis_spoil::FAULT,
    rolling_restart::FAULT,
    slow_loris::FAULT,
    slow_network::FAULT,
    stop_leader::FAULT,
    transfer_leader::FAULT,
    worker_crash::FAULT,
    zombie_worker::FAULT,
];

/// One strike under way.
pub struct Strike {
    /// What is struck.
    pub cluster: Arc<Cluster>,
    /// Who works there meanwhile.
    pub workload: Arc<Mutex<Workload>>,
    /// Its randomness.
    pub draw: Draw,
    recorder: Arc<Recorder>,
    number: u64,
    name: &'static str,
}

impl Fault {
    /// The kind with this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|fault| fault.name == name)
    }

    /// Whether this machine has what it needs.
    pub fn is_possible(&self) -> bool {
        match self.needs {
            Needs::Nothing => true,
            Needs::Root => is_root(),
            Needs::Program(program) => is_installed(program),
            Needs::RootAndProgram(program) => is_root() && is_installed(program),
        }
    }

    /// Strikes once and notes how it went; answers whether it bit.
    pub async fn strike_once(
        &self,
        cluster: &Arc<Cluster>,
        workload: &Arc<Mutex<Workload>>,
        recorder: &Arc<Recorder>,
        draw: Draw,
    ) -> Struck {
        let number = recorder.number();
        let strike = Strike {
            cluster: Arc::clone(cluster),
            workload: Arc::clone(workload),
            draw,
            recorder: Arc::clone(recorder),
            number,
            name: self.name,
        };
        let struck = (self.strike)(strike).await;
        let (proof, broke) = match &struck {
            Ok(proof) => (Some(proof.clone()), None),
            Err(Miss::Idle(_)) => (None, None),
            Err(Miss::Broke(why)) => (None, Some(why.clone())),
            Err(Miss::NoSuccessor) => (None, Some(NO_SUCCESSOR.to_owned())),
        };
        let phase = Phase::Over { proof, broke, no_successor: struck == Err(Miss::NoSuccessor) };
        recorder.note(Record::Fault { fault: number, name: self.name.to_owned(), phase });
        struck
    }
}

fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

fn is_installed(program: &str) -> bool {
    std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|folder| folder.join(program).exists())
    })
}

impl Strike {
    /// Notes, just before it is done, what is done to which replicas, and whether the leader is among them.
    pub fn begins(&self, replicas: &[usize], leader: bool, detail: impl Into<String>) {
        let phase = Phase::Begins { replicas: replicas.to_vec(), leader, detail: detail.into() };
        self.note(phase);
    }

    /// Notes that what was broken is whole again.
    pub fn heals(&self) {
        self.note(Phase::Heals);
    }

    /// Whoever leads.
    ///
    /// # Errors
    /// When nobody comes to, which the product owes whatever else is under way.
    async fn leader(&self) -> Result<usize, Miss> {
        self.cluster.leader_other_than(None).await.map_err(Miss::Broke)
    }

    /// Whoever leads, and one of the others of those that clients know.
    ///
    /// # Errors
    /// As for [`Strike::leader`].
    async fn leader_and_follower(&mut self) -> Result<(usize, usize), Miss> {
        let leader = self.leader().await?;
        let others: Vec<usize> = (0..self.cluster.size()).filter(|index| *index != leader).collect();
        Ok((leader, *self.draw.choose(&others)))
    }

    /// What clients and workers share.
    async fn shared(&self) -> Arc<Shared> {
        Arc::clone(self.workload.lock().await.shared())
    }

    fn note(&self, phase: Phase) {
        self.recorder.note(Record::Fault { fault: self.number, name: self.name.to_owned(), phase });
    }
}
