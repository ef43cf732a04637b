//! Use cases of the queue as a whole.

use super::command::{Answer, ClearPage, Command};
use super::control::{Change, Changed};
use super::error::ServiceError;
use super::facade::Services;
use crate::domain::pause::Paused;
use crate::domain::queue::QueueView;

type Result<T> = std::result::Result<T, ServiceError>;

impl Services {
    /// What waits, and what is held back, as far as this replica knows.
    pub async fn queue(&self) -> Result<QueueView> {
        self.queries.queue(Paused::clone(&self.control.paused())).await
    }

    /// Holds back the jobs of a model, or all jobs, in all of the group and through changes of the leader. Once this
    /// is answered, none of them is assigned any more; those that are assigned already go on.
    pub async fn pause_queue(&self, model: Option<String>) -> Result<Paused> {
        self.change_pauses(Change::Pause(model)).await
    }

    /// Lets the jobs of a model go on, or ends every pause.
    pub async fn resume_queue(&self, model: Option<String>) -> Result<Paused> {
        self.change_pauses(Change::Resume(model)).await
    }

    /// Calls off the jobs that wait in the queue by now, of one priority or of all, page by page. Answers how many.
    /// Where it fails on the way, what was called off stays so, and it can be called again.
    pub async fn clear_queue(&self, priority: Option<u8>) -> Result<u64> {
        let mut page = ClearPage { priority, until: None, after: None };
        let mut cancelled = 0;
        loop {
            let answer = self.execute(Command::ClearQueue(page)).await;
            let cleared = match answer {
                Ok(Answer::ClearQueue(cleared)) => cleared,
                Ok(_) => return Err(ServiceError::Internal),
                // Nothing was done about this page, but about those before it.
                Err(error) if cancelled > 0 && error.retryable() => return Err(ServiceError::OutcomeUnknown),
                Err(error) => return Err(error),
            };
            cancelled += cleared.cancelled;
            if cleared.after.is_none() {
                return Ok(cancelled);
            }
            page = ClearPage { priority, until: Some(cleared.until), after: cleared.after };
        }
    }

    async fn change_pauses(&self, change: Change) -> Result<Paused> {
        match self.execute(Command::Control(change)).await? {
            Answer::Control(Changed::Pauses(paused)) => Ok(paused),
            _ => Err(ServiceError::Internal),
        }
    }
}
