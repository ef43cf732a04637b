//! Runs CORTEX under faults, writes down what everybody saw, and judges by that whether its promises held.

#![warn(clippy::expect_used, clippy::unwrap_used)]

pub mod campaign;
pub mod checks;
pub mod cluster;
mod disk;
pub mod draw;
pub mod faults;
pub mod history;
pub mod measures;
pub mod monitor;
pub mod planted;
pub mod power_cut;
pub mod report;
pub mod run;
mod votes;
pub mod workload;
