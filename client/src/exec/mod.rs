//! A shell command per job.
//!
//! The command gets the input on its standard input and answers the output, a
//! JSON object, on its standard output. It runs in a process group of its own,
//! and no process of that group outlives the job.

mod group;
mod handler;
mod pipes;

pub use handler::ExecHandler;
