//! CORTEX: a highly available job orchestrator.

pub mod domain;
pub mod services;
pub mod storage;
