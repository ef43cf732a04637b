//! Use cases of the group of replicas.

use super::command::{Answer, Command};
use super::control::{Change, Changed, NewMember};
use super::error::ServiceError;
use super::facade::Services;

type Result<T> = std::result::Result<T, ServiceError>;

impl Services {
    /// Takes a running replica into the group. `true` says that it did not vote before.
    pub async fn add_member(&self, member: NewMember) -> Result<bool> {
        match self.execute(Command::Control(Change::AddMember(member))).await? {
            Answer::Control(Changed::Added(new)) => Ok(new),
            _ => Err(ServiceError::Internal),
        }
    }

    /// Takes a replica out of the group; its id is never used again.
    pub async fn remove_member(&self, id: u64) -> Result<()> {
        match self.execute(Command::Control(Change::RemoveMember(id))).await? {
            Answer::Control(Changed::Removed) => Ok(()),
            _ => Err(ServiceError::Internal),
        }
    }

    /// Lets another replica lead. Answers which one does.
    pub async fn transfer_leadership(&self, to: Option<u64>) -> Result<u64> {
        let former = self.control.leader();
        match self.execute(Command::Control(Change::Transfer(to))).await {
            Ok(Answer::Control(Changed::Leads(leader))) => Ok(leader),
            Ok(_) => Err(ServiceError::Internal),
            // The stream to the former leader may end with its leadership, before its answer. What counts can be seen.
            Err(ServiceError::OutcomeUnknown) => {
                let leader = self.control.leader_after(former).await;
                leader.filter(|leader| to.is_none_or(|to| to == *leader)).ok_or(ServiceError::OutcomeUnknown)
            }
            Err(error) => Err(error),
        }
    }
}
