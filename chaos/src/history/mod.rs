//! The record of a run, on disk as it happens, and what is read back from it to be judged.
//!
//! A run's folder has `run.json` (what was run), `history.jsonl` (calls, workers' acts, faults, views of the group, who
//! writes to Redis), `final/` (the tables, the trail of every change to a job and what Redis held, after quiet), `verify.json` and
//! `panics.json` (what the replicas' logs tell of panics).

mod last;
mod read;
mod record;
mod recorder;

pub use last::{Audit, Execution, Final, Job, Key, Lease, RedisState, Write, dump};
pub use read::{Call, FaultRun, History, RunInfo};
pub use record::{
    Act, Ending, Line, NO_SUCCESSOR, Outcome, Phase, Record, RedisAct, Request, Says, Seen, Stage, View,
};
pub use recorder::{Recorder, Writer};
