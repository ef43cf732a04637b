//! The commands of the `cortex` program: each takes its arguments apart, calls, and prints.
//!
//! Exit status: 0 done, 1 the request was refused or failed, 2 usage; `verify` has a further one.

pub mod args;
pub mod bench;
pub mod cluster;
pub mod cluster_args;
pub mod dev;
pub mod jobs;
pub mod migrate;
mod output;
pub mod queue_args;
pub mod queues;
pub mod serve;
mod signals;
mod submit;
pub mod token;
mod traced;
pub mod verify;
mod watch;
pub mod worker;
pub mod workers;

use std::process::ExitCode;

use args::Command;

/// Runs one command to its end.
pub async fn run(command: Command) -> ExitCode {
    match command {
        Command::Serve(args) => serve::run(args).await,
        Command::Dev(args) => dev::run(args).await,
        Command::Migrate(args) => migrate::run(args).await,
        Command::Worker(args) => worker::run(args).await,
        Command::Jobs(command) => jobs::run(command).await,
        Command::Workers(command) => workers::run(command).await,
        Command::Queues(command) => queues::run(command).await,
        Command::Cluster(command) => cluster::run(command).await,
        Command::Verify(args) => verify::run(args).await,
        Command::Token(command) => token::run(command),
        Command::Bench(args) => bench::run(args).await,
    }
}
