//! CORTEX: a highly available job orchestrator.

#![warn(clippy::expect_used, clippy::unwrap_used)]

pub mod api;
pub mod app;
pub mod bench;
pub mod cli;
pub mod config;
pub mod dev;
pub mod domain;
pub mod forward;
pub mod genome;
pub mod group;
pub mod leadership;
pub mod loops;
pub mod planted;
pub mod ready_queue;
pub mod security;
pub mod services;
#[cfg(test)]
mod simulation;
pub mod storage;
pub mod telemetry;
pub mod verify;
