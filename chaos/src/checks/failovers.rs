//! stub
use serde::{Deserialize, Serialize};
/// How long.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Failover {
    pub fault: u64,
    pub name: String,
    pub kind: String,
    pub to_submission_ms: Option<f64>,
    pub to_dispatch_ms: Option<f64>,
}
/// All.
pub fn failovers(_: &crate::history::History) -> Vec<Failover> {
    Vec::new()
}
