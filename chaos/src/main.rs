//! The `cortex-chaos` program. Called with a command of the product, it is the product: so the replicas under test are
//! of this very build.

#![warn(clippy::expect_used, clippy::unwrap_used)]

mod args;

use std::process::ExitCode;

use clap::Parser;
use cortex_chaos::checks::{self, Verdict};
use cortex_chaos::cluster::Error;
use cortex_chaos::faults;
use cortex_chaos::history::History;
use cortex_chaos::measures::{self, FlushOptions, IdleOptions, ReconnectOptions};
use cortex_chaos::power_cut::{self, PowerCutOptions};
use cortex_chaos::run::{self, RunOptions};
use cortex_chaos::workload::Size;

use args::{Cli, Command, FlushArgs, IdleArgs, PowerCutArgs, ReconnectArgs};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Commands of the product that this program runs as its own child.
const PRODUCT: [&str; 3] = ["serve", "migrate", "verify"];

fn main() -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime could not be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let first = std::env::args().nth(1);
    if first.is_some_and(|first| PRODUCT.contains(&first.as_str())) {
        return runtime.block_on(cortex::cli::run(cortex::cli::args::Cli::parse().command));
    }
    match runtime.block_on(dispatch(Cli::parse().command)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

async fn dispatch(command: Command) -> Result<bool, Error> {
    match command {
        Command::Run(args) => {
            let all = || faults::ALL.iter().map(|fault| fault.name).collect();
            let named = |name: &String| {
                faults::Fault::named(name)
                    .map(|fault| fault.name)
                    .ok_or_else(|| format!("no fault is called {name:?}"))
            };
            let faults = if args.faults.is_empty() {
                all()
            } else {
                args.faults.iter().map(named).collect::<Result<_, _>>()?
            };
            let options = RunOptions {
                seed: args.seed,
                duration: args.duration,
                faults,
                folder: args.output,
                size: Size { pace: args.pace, ..Size::default() },
                planted: None,
            };
            run::run(&options).await?;
            judge(&options.folder)
        }
        Command::Check(args) => judge(&args.folder),
        Command::Faults => {
            for fault in faults::ALL {
                println!("{:20} {}", fault.name, fault.about);
            }
            Ok(true)
        }
        Command::PowerCut(args) => {
            let PowerCutArgs { seed, cuts, planted, output: folder } = args;
            power_cut::run(&PowerCutOptions { seed, cuts, folder, planted }).await
        }
        Command::Reconnect(args) => {
            let ReconnectArgs { seed, workers, output: folder } = args;
            measures::reconnect(&ReconnectOptions { seed, workers: workers.into(), folder }).await
        }
        Command::Flush(args) => {
            let FlushArgs { seed, waiting, output: folder } = args;
            measures::flush(&FlushOptions { seed, waiting, folder }).await
        }
        Command::Idle(args) => {
            let IdleArgs { duration, share, output: folder } = args;
            measures::idle(&IdleOptions { duration, share, folder }).await
        }
        Command::Burn(args) => {
            measures::burn(args.share);
            Ok(true)
        }
    }
}

/// Judges a stored run; answers whether every promise that was tried was kept.
fn judge(folder: &std::path::Path) -> Result<bool, Error> {
    let judgements = checks::judge(&History::read(folder)?);
    std::fs::write(folder.join("judgements.json"), serde_json::to_vec_pretty(&judgements)?)?;
    for judgement in &judgements {
        println!("{:4} {:?}", judgement.promise, judgement.verdict);
    }
    Ok(judgements
        .iter()
        .all(|judgement| matches!(judgement.verdict, Verdict::Pass { .. } | Verdict::NotTried)))
}
