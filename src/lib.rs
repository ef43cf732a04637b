//! CORTEX: a highly available job orchestrator.

pub mod config;
pub mod domain;
pub mod ready_queue;
pub mod services;
pub mod storage;
pub mod telemetry;
