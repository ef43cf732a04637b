//! The cluster under faults, with real processes: three replicas, workers, PostgreSQL and Redis, and
//! somebody who kills, freezes and empties them.
//!
//! Each test has a cluster of its own and they take turns, for they load the machine. What every test
//! checks in the end is in `history`: no accepted job lost, none run twice, no write of a former leader.
//! The tests of crash points need `--features crash-points`, those of planted defects `planted-defects`.

#[path = "../support/collector.rs"]
mod collector;
#[path = "../support/mod.rs"]
mod support;

#[cfg(feature = "crash-points")]
mod crashes;
mod events;
mod group;
mod history;
mod leaders;
mod ledger;
mod limits;
mod load;
#[cfg(feature = "planted-defects")]
mod planted;
mod roster;
mod scene;
mod stores;
mod traces;
mod workers;
