//! The `cortex` program.

#![warn(clippy::expect_used, clippy::unwrap_used)]

use std::process::ExitCode;

use clap::Parser;
use cortex::cli::{self, args::Cli};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Huge pages would double the memory of an idle replica. Where the kernel refuses, only that is lost.
    let _ = nix::sys::prctl::set_thp_disable(true);
    match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(cli::run(Cli::parse().command)),
        Err(error) => {
            eprintln!("error: the runtime could not be started: {error}");
            ExitCode::FAILURE
        }
    }
}
