//! The `cortex` program.

#![warn(clippy::expect_used, clippy::unwrap_used)]

use std::process::ExitCode;

use clap::Parser;
use cortex::cli::args::{Cli, Command};
use cortex::cli::{cluster, dev, jobs, migrate, serve, worker, workers};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main]
async fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Serve(args) => serve::run(args).await,
        Command::Dev(args) => dev::run(args).await,
        Command::Migrate(args) => migrate::run(args).await,
        Command::Worker(args) => worker::run(args).await,
        Command::Jobs(command) => jobs::run(command).await,
        Command::Workers(command) => workers::run(command).await,
        Command::Cluster(command) => cluster::run(command).await,
    }
}
