//! Changes of the membership, made by the leader: new members, removed ones,
//! new addresses, and the mark of a member whose log is durable.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, RaftError};
use tokio::sync::{Mutex, watch};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::config::Addresses;
use crate::control::{ControlCommand, ControlOutcome, ControlState};
use crate::leadership::Leadership;
use crate::raft::{Raft, Types};

/// How often the leader looks for members to mark or to correct.
const KEEP: Duration = Duration::from_millis(100);
/// Longest time for a change of the membership.
const CHANGE: Duration = Duration::from_secs(5);
/// Longest time for a new member to catch up with a log that is short: one that does not is not running, or cannot be
/// reached.
const CATCH_UP: Duration = Duration::from_secs(5);

/// Why a change was not made.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    #[error("this replica does not lead the cluster{}", known(.leader))]
    NotLeader { leader: Option<u64> },
    #[error("member ids must be greater than 0")]
    InvalidId,
    #[error("member {0} was removed; ids are never used twice, choose a new one")]
    RemovedId(u64),
    #[error("member {0} is not in the cluster")]
    UnknownMember(u64),
    #[error("member {0} leads the cluster; transfer the leadership first")]
    IsLeader(u64),
    #[error("member {0} has not caught up in {CATCH_UP:?}; it stays a learner, add it again to go on")]
    NotCaughtUp(u64),
    #[error("the cluster refused the change: {0}")]
    Refused(String),
    #[error("the change was not committed in {0:?}; whether it will be is not known")]
    Timeout(Duration),
    #[error("the change may or may not be committed, the leader changed meanwhile: {0}")]
    Unknown(String),
    #[error("this replica has stopped: {0}")]
    Stopped(String),
}

fn known(leader: &Option<u64>) -> String {
    leader.map(|leader| format!("; member {leader} does")).unwrap_or_default()
}

impl ChangeError {
    /// True when the same call may succeed later or at another replica.
    pub fn retryable(&self) -> bool {
        match self {
            ChangeError::NotLeader { .. }
            | ChangeError::NotCaughtUp(_)
            | ChangeError::Timeout(_)
            | ChangeError::Unknown(_) => true,
            ChangeError::InvalidId
            | ChangeError::RemovedId(_)
            | ChangeError::UnknownMember(_)
            | ChangeError::IsLeader(_)
            | ChangeError::Refused(_)
            | ChangeError::Stopped(_) => false,
        }
    }
}

impl From<RaftError<Types, ClientWriteError<Types>>> for ChangeError {
    fn from(error: RaftError<Types, ClientWriteError<Types>>) -> Self {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
                ChangeError::NotLeader { leader: to.leader_id }
            }
            RaftError::APIError(error @ ClientWriteError::LogEntryDiscarded(_)) => {
                ChangeError::Unknown(error.to_string())
            }
            RaftError::APIError(error) => ChangeError::Refused(error.to_string()),
            RaftError::Fatal(error) => ChangeError::Stopped(error.to_string()),
        }
    }
}

/// Makes the changes, one at a time.
pub(crate) struct Membership {
    node_id: u64,
    advertise: Addresses,
    raft: Raft,
    control: watch::Receiver<Arc<ControlState>>,
    busy: Mutex<()>,
}

impl Membership {
    pub fn new(
        node_id: u64,
        advertise: Addresses,
        raft: Raft,
        control: watch::Receiver<Arc<ControlState>>,
    ) -> Self {
        Membership { node_id, advertise, raft, control, busy: Mutex::new(()) }
    }

    /// Commits one command. Cancelling the call does not take it back.
    pub async fn propose(&self, command: ControlCommand) -> Result<u64, ChangeError> {
        let deadline = Instant::now() + CHANGE;
        let written = timeout_at(deadline, self.raft.client_write(command)).await;
        let written = written.map_err(|_| ChangeError::Timeout(CHANGE))??;
        match written.data {
            ControlOutcome::Applied { .. } => Ok(written.log_id.index),
            ControlOutcome::Refused { reason } => Err(ChangeError::Refused(reason)),
        }
    }

    /// Adds a member: as a learner until it has caught up, then as a voter.
    /// Adding a member again goes on where an earlier call ended.
    pub async fn add(&self, id: u64, addresses: Addresses) -> Result<(), ChangeError> {
        if id == 0 {
            return Err(ChangeError::InvalidId);
        }
        if self.control.borrow().removed.contains(&id) {
            return Err(ChangeError::RemovedId(id));
        }
        let _busy = self.busy.lock().await;
        let node = BTreeMap::from([(id, addresses)]);
        self.change(ChangeMembers::SetNodes(node)).await?;
        self.caught_up(id).await?;
        self.change(ChangeMembers::AddVoterIds(BTreeSet::from([id]))).await
    }

    /// Removes a member for good; its id may never be used again.
    pub async fn remove(&self, id: u64) -> Result<(), ChangeError> {
        if id == self.node_id {
            return Err(ChangeError::IsLeader(id));
        }
        let _busy = self.busy.lock().await;
        let config = self.raft.metrics().borrow_watched().membership_config.clone();
        let is_voter = config.membership().voter_ids().any(|voter| voter == id);
        if config.membership().get_node(&id).is_none() && !self.control.borrow().joined.contains(&id) {
            return Err(ChangeError::UnknownMember(id));
        }
        let ids = BTreeSet::from([id]);
        // Whoever learns that it was removed stops. Until then its vote may be needed, even for taking it away.
        if is_voter {
            self.change_keeping(ChangeMembers::RemoveVoters(ids.clone()), true).await?;
        }
        // The mark comes before the end: after a crash between the two the id must not look unused. Removing again
        // completes the rest.
        self.propose(ControlCommand::Removed { node_id: id }).await?;
        if config.membership().get_node(&id).is_some() {
            return self.change(ChangeMembers::RemoveNodes(ids)).await;
        }
        Ok(())
    }

    /// Records where a member says it is, in the background.
    pub fn move_member(self: &Arc<Self>, id: u64, addresses: Addresses) {
        if self.address_of(id).is_none_or(|known| known == addresses) {
            return;
        }
        let this = Arc::clone(self);
        tokio::spawn(async move {
            // Who is refused here announces itself again.
            let Ok(_busy) = this.busy.try_lock() else {
                return;
            };
            let text = addresses.to_string();
            match this.change(ChangeMembers::SetNodes(BTreeMap::from([(id, addresses)]))).await {
                Ok(()) => tracing::info!(member = id, addresses = text, "A member announced new addresses."),
                Err(error) => {
                    tracing::warn!(member = id, %error, "New addresses of a member were not recorded.")
                }
            }
        });
    }

    /// Marks members and corrects this one's addresses while it leads.
    pub async fn keep(self: Arc<Self>, mut leadership: watch::Receiver<Leadership>, stop: CancellationToken) {
        let work = async {
            loop {
                if leadership.borrow_and_update().is_leading() {
                    self.move_member(self.node_id, self.advertise.clone());
                    self.mark_joined().await;
                    sleep(KEEP).await;
                } else if leadership.changed().await.is_err() {
                    return;
                }
            }
        };
        stop.run_until_cancelled(work).await;
    }

    async fn mark_joined(&self) {
        let unmarked: Vec<u64> = {
            let metrics = self.raft.metrics();
            let metrics = metrics.borrow_watched();
            let control = self.control.borrow();
            let durable = metrics.replication.iter().flatten().filter(|(_, matched)| matched.is_some());
            durable
                .map(|(id, _)| *id)
                .filter(|id| !control.joined.contains(id) && !control.removed.contains(id))
                .collect()
        };
        for node_id in unmarked {
            if let Err(error) = self.propose(ControlCommand::Joined { node_id }).await {
                tracing::debug!(member = node_id, %error, "The mark of a member was not committed.");
                return;
            }
        }
    }

    fn address_of(&self, id: u64) -> Option<Addresses> {
        let metrics = self.raft.metrics();
        let config = metrics.borrow_watched().membership_config.clone();
        config.membership().get_node(&id).cloned()
    }

    async fn change(&self, change: ChangeMembers<u64, Addresses>) -> Result<(), ChangeError> {
        self.change_keeping(change, false).await
    }

    /// The same; voters that are taken away can be kept as learners.
    async fn change_keeping(
        &self,
        change: ChangeMembers<u64, Addresses>,
        as_learners: bool,
    ) -> Result<(), ChangeError> {
        let deadline = Instant::now() + CHANGE;
        let changed = timeout_at(deadline, self.raft.change_membership(change, as_learners)).await;
        changed.map_err(|_| ChangeError::Timeout(CHANGE))??;
        Ok(())
    }

    /// Waits until a learner holds all that was in the log when it was added.
    async fn caught_up(&self, id: u64) -> Result<(), ChangeError> {
        let deadline = Instant::now() + CATCH_UP;
        let mut metrics = self.raft.metrics();
        let goal = metrics.borrow_watched().last_log_index;
        loop {
            let (leads, matched) = {
                let current = metrics.borrow_watched();
                let matched = current.replication.as_ref().map(|all| all.get(&id).copied().flatten());
                (matched.is_some(), matched.flatten().map(|matched| matched.index))
            };
            if !leads {
                return Err(ChangeError::NotLeader { leader: None });
            }
            if id == self.node_id || matched >= goal {
                return Ok(());
            }
            match timeout_at(deadline, metrics.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(ChangeError::Stopped(error.to_string())),
                Err(_) => return Err(ChangeError::NotCaughtUp(id)),
            }
        }
    }
}
