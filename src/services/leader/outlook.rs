//! What the leader says of a job that waits. What holds up jobs belongs here, as far as only a leader knows it.

use super::Leader;
use crate::domain::explain::{Outlook, Workers};
use crate::domain::matching::Shape;

/// Most workers that are shown one by one.
const SHOWN: usize = 100;

impl Leader {
    pub(super) fn outlook(&self, shape: &Shape) -> Outlook {
        let core = &self.core;
        let verdicts = core.fleet().verdicts(shape);
        Outlook {
            scheduling: core.parts.scheduling,
            paused: core.parts.control.paused().holds(&shape.model_name),
            workers: Workers::of(verdicts, SHOWN),
        }
    }
}
