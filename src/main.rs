//! The `cortex` program.

#![warn(clippy::expect_used, clippy::unwrap_used)]

use std::process::ExitCode;

use clap::Parser;
use cortex::cli::args::{Cli, Command};
use cortex::cli::{bench, cluster, dev, jobs, migrate, queues, serve, token, verify, worker, workers};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Huge pages would double the memory of an idle replica. Where the kernel refuses, only that is lost.
    let _ = nix::sys::prctl::set_thp_disable(true);
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(run(Cli::parse().command)),
        Err(error) => {
            eprintln!("error: the runtime could not be started: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> ExitCode {
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
