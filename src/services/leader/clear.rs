//! Emptying the queue, a page at a time.

use tokio::sync::oneshot;

use super::Leader;
use crate::domain::transition::JobEvent;
use crate::services::command::{ClearPage, Cleared};
use crate::services::error::ServiceError;

/// Jobs of a page: two batches of events, so that reports which come meanwhile do not wait for long.
const PAGE: i64 = 1_000;

impl Leader {
    /// Calls off the next page of the jobs that waited in the queue when its clearing began.
    pub(super) async fn clear_page(&self, page: ClearPage) -> Result<Cleared, ServiceError> {
        let database = &self.core.parts.database;
        let until = match page.until {
            Some(until) => until,
            None => database.now().await?,
        };
        let places = database.waiting_since(until, page.priority, page.after, PAGE).await?;
        let mut answers = Vec::with_capacity(places.len());
        for place in &places {
            let (reply, answer) = oneshot::channel();
            self.push_event(place.id, JobEvent::Clear, Some(reply))?;
            answers.push(answer);
        }
        let mut cancelled = 0;
        for answer in answers {
            match answer.await.unwrap_or(Err(ServiceError::OutcomeUnknown)) {
                Ok(_) => cancelled += 1,
                // It was assigned or called off meanwhile.
                Err(ServiceError::Conflict(_) | ServiceError::NotFound { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let full = i64::try_from(places.len()).unwrap_or(0) >= PAGE;
        Ok(Cleared { cancelled, until, after: places.last().copied().filter(|_| full) })
    }
}
