//! One type per kind of id, so that a lease cannot be passed where a job is meant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

macro_rules! uuid_ids {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }

        impl From<Uuid> for $name {
            fn from(uuid: Uuid) -> Self {
                Self(uuid)
            }
        }
    )*};
}

uuid_ids! {
    /// A job.
    JobId
    /// A worker; the same hostname and port keep the same id.
    WorkerId
    /// A lease: the id of the execution row of one attempt. It decides every dispute about a job.
    LeaseId
    /// One `PollJob` call, so that an answer that got lost can be given again.
    DeliveryId
    /// One stream of a worker's session; a newer one replaces it.
    SessionId
    /// A Raft group's identity, kept in PostgreSQL beside the fence.
    ClusterId
}

/// The fencing token of a leadership: the log index of its committed `LeaderEpoch` entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub i64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
