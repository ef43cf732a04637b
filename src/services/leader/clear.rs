//! Emptying the queue, a page at a time.

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
        // One that was assigned or called off meanwhile is refused.
        let cancelled = self.apply_all(places.iter().map(|place| (place.id, JobEvent::Clear))).await;
        let cancelled = cancelled.map_err(|error| {
            tracing::warn!(%error, "A page of the queue was not cleared to its end.");
            // Some of the page may be done.
            ServiceError::OutcomeUnknown
        })?;
        let full = i64::try_from(places.len()).unwrap_or(0) >= PAGE;
        Ok(Cleared { cancelled, until, after: places.last().copied().filter(|_| full) })
    }
}
