//! This replica in its group: what use cases ask of Raft.
//!
//! A pause is a setting of the control state (`domain::pause`). Changes are committed before they are answered, and
//! a leader has applied them by then.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cortex_cluster::{
    Addresses, ChangeError, ControlCommand, ControlState, Leadership, MemberStatus, Node, Role, TransferError,
};
use futures::FutureExt;
use futures::future::{BoxFuture, try_join_all};
use tokio::sync::watch;

use crate::domain::pause::Paused;
use crate::services::control::{Change, Changed, Control, NewMember};
use crate::services::error::{Conflict, ServiceError};

/// Longest transfer of the leadership, and longest wait to see what became of one.
const TRANSFER: Duration = Duration::from_secs(3);
/// Most models that are paused one by one: fewer than settings may be, so that all can be paused at any time.
const MAX_PAUSED_MODELS: usize = 1_000;

/// The group as this replica sees it.
pub struct Group {
    node: Node,
    control: watch::Receiver<Arc<ControlState>>,
    /// What was paused in which state: read anew only when the state has changed.
    paused: Mutex<(Arc<ControlState>, Arc<Paused>)>,
}

impl Group {
    /// The group of `node`.
    pub fn of(node: Node) -> Self {
        let control = node.control();
        Self { node, control, paused: Mutex::default() }
    }

    async fn pause(&self, model: Option<&str>) -> Result<Changed, ServiceError> {
        let paused = self.paused();
        if model.is_some_and(|model| !paused.models.contains(model))
            && paused.models.len() >= MAX_PAUSED_MODELS
        {
            let text = format!("{MAX_PAUSED_MODELS} models are paused, as many as may be; pause all instead");
            return Err(ServiceError::Conflict(Conflict::Group(text)));
        }
        let command = ControlCommand::Set { key: Paused::setting(model), value: "true".to_owned() };
        self.node.propose(command).await.map_err(refused)?;
        Ok(self.pauses())
    }

    async fn resume(&self, model: Option<&str>) -> Result<Changed, ServiceError> {
        let settings = match model {
            Some(_) => vec![Paused::setting(model)],
            None => self.paused().settings(),
        };
        let commands = settings.into_iter().map(|key| self.node.propose(ControlCommand::Unset { key }));
        try_join_all(commands).await.map_err(refused)?;
        Ok(self.pauses())
    }

    fn pauses(&self) -> Changed {
        Changed::Pauses(Paused::clone(&self.paused()))
    }

    fn member(&self, id: u64) -> Option<MemberStatus> {
        self.node.status().members.into_iter().find(|member| member.id == id)
    }

    async fn add(&self, NewMember { id, peer, http, grpc }: NewMember) -> Result<Changed, ServiceError> {
        if let Some(known) = self.member(id).filter(|member| member.role != Role::Learner) {
            if known.addresses.peer == peer {
                return Ok(Changed::Added(false));
            }
            let text = format!("member {id} is in the cluster already, at {}", known.addresses.peer);
            return Err(ServiceError::Conflict(Conflict::Group(text)));
        }
        self.node.add_member(id, Addresses { peer, http, grpc }).await.map_err(refused)?;
        Ok(Changed::Added(true))
    }

    async fn transfer(&self, to: Option<u64>) -> Result<Changed, ServiceError> {
        match self.node.transfer(to, TRANSFER).await {
            Ok(leader) if to.is_some_and(|to| to != leader) => {
                let text = format!("member {leader} leads, by another transfer at the same time");
                Err(ServiceError::Conflict(Conflict::Group(text)))
            }
            Ok(leader) => Ok(Changed::Leads(leader)),
            Err(TransferError::NotAVoter(id)) if self.member(id).is_none() => {
                Err(ServiceError::no_member(id))
            }
            Err(error @ (TransferError::NotAVoter(_) | TransferError::NoCandidate)) => {
                Err(ServiceError::Conflict(Conflict::Group(error.to_string())))
            }
            Err(TransferError::NotLeader | TransferError::Stopped(_)) => Err(ServiceError::NoLeader),
            Err(error @ TransferError::Timeout { .. }) => {
                tracing::warn!(%error, "A transfer of the leadership did not come to its end in time.");
                Err(ServiceError::OutcomeUnknown)
            }
        }
    }
}

impl Control for Group {
    fn paused(&self) -> Arc<Paused> {
        let state = Arc::clone(&self.control.borrow());
        let mut known = self.paused.lock().unwrap_or_else(PoisonError::into_inner);
        if !Arc::ptr_eq(&known.0, &state) {
            let paused = Arc::new(Paused::of(&state.settings));
            *known = (state, paused);
        }
        Arc::clone(&known.1)
    }

    fn change(&self, change: Change) -> BoxFuture<'_, Result<Changed, ServiceError>> {
        async move {
            match change {
                Change::Pause(model) => self.pause(model.as_deref()).await,
                Change::Resume(model) => self.resume(model.as_deref()).await,
                Change::AddMember(member) => self.add(member).await,
                Change::RemoveMember(id) => {
                    self.node.remove_member(id).await.map(|()| Changed::Removed).map_err(refused)
                }
                Change::Transfer(to) => self.transfer(to).await,
            }
        }
        .boxed()
    }

    fn leader(&self) -> Option<u64> {
        self.node.status().leader
    }

    fn leader_after(&self, former: Option<u64>) -> BoxFuture<'_, Option<u64>> {
        async move {
            let own = self.node.id();
            let leader = move |leadership: &Leadership| match leadership {
                Leadership::Leading { .. } => Some(own),
                Leadership::Following { leader } => leader.as_ref().map(|leader| leader.id),
                Leadership::Stopped { .. } => None,
            };
            let mut leadership = self.node.leadership();
            let another = leadership.wait_for(|now| leader(now).is_some_and(|id| Some(id) != former));
            let another = tokio::time::timeout(TRANSFER, another).await.ok()?.ok()?;
            leader(&another)
        }
        .boxed()
    }
}

fn refused(error: ChangeError) -> ServiceError {
    match error {
        ChangeError::NotLeader { .. } | ChangeError::Stopped(_) => ServiceError::NoLeader,
        ChangeError::UnknownMember(id) => ServiceError::no_member(id),
        ChangeError::InvalidId
        | ChangeError::RemovedId(_)
        | ChangeError::IsLeader(_)
        | ChangeError::NotCaughtUp(_)
        | ChangeError::Refused(_) => ServiceError::Conflict(Conflict::Group(error.to_string())),
        ChangeError::Timeout(_) | ChangeError::Unknown(_) => {
            tracing::warn!(%error, "A change of the control state did not come to its end.");
            ServiceError::OutcomeUnknown
        }
    }
}
