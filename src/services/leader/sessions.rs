//! What the leader does for workers' sessions.

use super::Leader;
use crate::domain::ids::{JobId, LeaseId, SessionId, WorkerId};
use crate::services::command::{Applied, Attach, Hear};
use crate::services::error::ServiceError;

impl Leader {
    pub(super) async fn attach(&self, _: Attach) -> Result<Vec<(JobId, LeaseId)>, ServiceError> {
        Err(ServiceError::Internal)
    }

    pub(super) async fn hear(&self, _: Hear) -> Result<Vec<Result<Applied, ServiceError>>, ServiceError> {
        Err(ServiceError::Internal)
    }

    pub(super) fn detach(&self, _: WorkerId, _: SessionId) {}
}
