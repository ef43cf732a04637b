//! openraft's state machine around [`ControlState`]. The state lives in memory;
//! after a restart it is the last snapshot plus the committed log.

use std::io;
use std::sync::Arc;

use futures::{Stream, TryStreamExt};
use openraft::entry::RaftPayload;
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::watch;

use super::database::StoredSnapshot;
use super::{Store, log};
use crate::codec;
use crate::control::{ControlOutcome, ControlState};
use crate::raft::{Entry, LogId, Snapshot, SnapshotMeta, StoredMembership, Types};

/// Applies committed entries and shows the result on a watch channel.
pub(crate) struct StateMachine {
    store: Arc<Store>,
    control: watch::Sender<Arc<ControlState>>,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl StateMachine {
    pub fn new(store: Arc<Store>) -> Self {
        let (control, _) = watch::channel(Arc::default());
        StateMachine { store, control, applied: None, membership: StoredMembership::default() }
    }

    /// The control state as of the last applied entry, and its changes.
    pub fn watch(&self) -> watch::Receiver<Arc<ControlState>> {
        self.control.subscribe()
    }

    fn apply_entry(&mut self, entry: &Entry) -> ControlOutcome {
        self.applied = Some(entry.log_id);
        if let Some(membership) = entry.payload.get_membership() {
            self.membership = StoredMembership::new(Some(entry.log_id), membership);
        }
        let EntryPayload::Normal(command) = &entry.payload else {
            return ControlOutcome::Applied { cluster_id: self.control.borrow().cluster_id };
        };
        let mut control = ControlState::clone(&self.control.borrow());
        let outcome = control.apply(entry.log_id.index, command);
        self.control.send_replace(Arc::new(control));
        outcome
    }

    /// Tells the simulation, which compares what all members apply.
    #[cfg(any(test, feature = "simulation"))]
    fn observe(&self, entry: Option<&Entry>) {
        crate::simulation::observe(self.store.path(), self.applied, entry, &self.control.borrow());
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = Vec<u8>;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let outcome = self.apply_entry(&entry);
            #[cfg(any(test, feature = "simulation"))]
            self.observe(Some(&entry));
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder {
            store: Arc::clone(&self.store),
            control: Arc::clone(&self.control.borrow()),
            meta: SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() },
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: Vec<u8>) -> Result<(), io::Error> {
        let control: ControlState = codec::decode(&snapshot)?;
        let stored = StoredSnapshot { meta: meta.clone(), data: snapshot };
        log::run(&self.store, move |store| store.save_snapshot(&stored)).await?;
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.control.send_replace(Arc::new(control));
        #[cfg(any(test, feature = "simulation"))]
        self.observe(None);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let stored = log::run(&self.store, |store| store.read_snapshot()).await?;
        Ok(stored.map(|stored| Snapshot { meta: stored.meta, snapshot: stored.data }))
    }
}

/// A view of the state at one index, to be written as a snapshot.
pub(crate) struct SnapshotBuilder {
    store: Arc<Store>,
    control: Arc<ControlState>,
    meta: SnapshotMeta,
}

impl RaftSnapshotBuilder<Types> for SnapshotBuilder {
    type SnapshotData = Vec<u8>;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let data = codec::encode(self.control.as_ref())?;
        let stored = StoredSnapshot { meta: self.meta.clone(), data: data.clone() };
        log::run(&self.store, move |store| store.save_snapshot(&stored)).await?;
        Ok(Snapshot { meta: self.meta.clone(), snapshot: data })
    }
}
