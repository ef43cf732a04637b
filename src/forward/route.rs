//! Where commands go at the moment.

use std::fmt;
use std::sync::Arc;

use crate::services::command::Commands;

/// Where commands go, as far as this replica knows. A hint: the peer may have stopped leading since.
#[derive(Clone)]
pub enum Route {
    /// This replica leads and is ready to write.
    Here(Arc<dyn Commands>),
    /// Another replica leads.
    There {
        /// Its node id.
        id: u64,
        /// Its peer address, `host:port`.
        peer: String,
    },
    /// No leader is known.
    Nowhere,
}

impl Route {
    /// Whether commands go to the peer at this address.
    pub(super) fn leads_to(&self, address: &str) -> bool {
        match self {
            Self::There { peer, .. } => peer == address,
            Self::Here(_) | Self::Nowhere => false,
        }
    }

    /// Whether a leader is known.
    pub(super) fn is_known(&self) -> bool {
        match self {
            Self::Here(_) | Self::There { .. } => true,
            Self::Nowhere => false,
        }
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here(_) => f.write_str("Here"),
            Self::There { id, peer } => write!(f, "There({id} at {peer})"),
            Self::Nowhere => f.write_str("Nowhere"),
        }
    }
}
