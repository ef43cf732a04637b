//! The `cortex-chaos` program. Called with a command of the product, it is the product: so the replicas under test are
//! of this very build.

#![warn(clippy::expect_used, clippy::unwrap_used)]

mod args;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use cortex_chaos::campaign::{self, CampaignOptions};
use cortex_chaos::checks::Verdict;
use cortex_chaos::cluster::{Error, NetworkKind, enter_network, keep_mounts};
use cortex_chaos::faults;
use cortex_chaos::history::History;
use cortex_chaos::measures::{self, FlushOptions, IdleOptions, ReconnectOptions};
use cortex_chaos::planted::{self, Defect};
use cortex_chaos::power_cut::{self, Cut, PowerCutOptions};
use cortex_chaos::report::{Overall, Report, Summary};
use cortex_chaos::run::{self, RunOptions};
use cortex_chaos::workload::Size;
use nix::errno::Errno;

use args::{
    CampaignArgs, Cli, Command, FlushArgs, IdleArgs, PlantedArgs, PowerCutArgs, ReconnectArgs, RunArgs,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Commands of the product that this program runs as its own child.
const PRODUCT: [&str; 3] = ["serve", "migrate", "verify"];

fn main() -> ExitCode {
    let first = std::env::args().nth(1);
    let product = first.is_some_and(|first| PRODUCT.contains(&first.as_str()));
    let command = (!product).then(|| Cli::parse().command);
    // Before there is a second thread: a namespace is the thread's that enters it.
    if let Some(command) = &command
        && let Err(error) = enter_namespaces(command)
    {
        eprintln!("error: {error}");
        return ExitCode::from(2);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: the runtime could not be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    let Some(command) = command else {
        return runtime.block_on(cortex::cli::run(cortex::cli::args::Cli::parse().command));
    };
    match runtime.block_on(dispatch(command)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

/// A network of its own where one is asked for; in any case what will be mounted is kept to this process.
fn enter_namespaces(command: &Command) -> Result<(), Error> {
    let network = match command {
        Command::Run(args) => args.network,
        Command::Campaign(args) => args.network,
        _ => NetworkKind::Loopback,
    };
    match network {
        NetworkKind::Namespaces => enter_network(),
        // Who may not have a namespace may not mount anything either.
        NetworkKind::Loopback => match keep_mounts() {
            Ok(()) | Err(Errno::EPERM) => Ok(()),
            Err(error) => Err(format!("mounts cannot be kept apart: {error}").into()),
        },
    }
}

async fn dispatch(command: Command) -> Result<bool, Error> {
    match command {
        Command::Run(args) => run_once(args).await,
        Command::Check(args) => Ok(judge(&args.folder)? == Overall::Pass),
        Command::Campaign(args) => run_campaign(args).await,
        Command::Planted(args) => run_planted(args).await,
        Command::Faults => {
            for fault in faults::ALL {
                let possible = if fault.is_possible() { "" } else { " (not on this machine)" };
                println!("{:24} {}{possible}", fault.name, fault.about);
            }
            Ok(true)
        }
        Command::PowerCut(args) => {
            let PowerCutArgs { seed, cuts, output: folder } = args;
            let cuts = power_cut::run(&PowerCutOptions { seed, cuts, folder }).await?;
            Ok(cuts.iter().all(Cut::is_clean))
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

async fn run_once(args: RunArgs) -> Result<bool, Error> {
    let options = RunOptions {
        seed: args.seed,
        duration: args.duration,
        faults: kinds(&args.faults)?,
        folder: args.output,
        network: args.network,
        size: Size { pace: args.pace, ..Size::default() },
        planted: None,
    };
    run::run(&options).await?;
    Ok(judge(&options.folder)? == Overall::Pass)
}

async fn run_campaign(args: CampaignArgs) -> Result<bool, Error> {
    let faults = kinds(&args.faults)?;
    let seconds = args.duration.as_secs_f64();
    let mut command = format!(
        "cargo run --release -p cortex-chaos -- campaign --rounds {} --seed {} --duration {seconds}s --kinds {} --network {}",
        args.rounds,
        args.seed,
        args.kinds,
        args.network.name()
    );
    if !args.faults.is_empty() {
        command.push_str(&format!(" --faults {}", faults.join(",")));
    }
    let options = CampaignOptions {
        rounds: args.rounds,
        first_seed: args.seed,
        round_s: seconds,
        kinds: args.kinds,
        network: args.network.name().to_owned(),
        faults: faults.into_iter().map(str::to_owned).collect(),
        command,
        build: campaign::build()?,
    };
    let overall = campaign::run(&options, &args.output).await?;
    println!("{}: {}", overall.word(), args.output.join("report.html").display());
    Ok(overall == Overall::Pass)
}

async fn run_planted(args: PlantedArgs) -> Result<bool, Error> {
    let wanted =
        |defect: &&Defect| args.defects.is_empty() || args.defects.iter().any(|name| name == defect.name);
    let defects: Vec<_> = planted::DEFECTS.iter().filter(wanted).collect();
    if let Some(name) =
        args.defects.iter().find(|name| planted::DEFECTS.iter().all(|defect| defect.name != **name))
    {
        return Err(format!("no defect is called {name:?}").into());
    }
    let caught = planted::run(&defects, args.rounds, args.duration, &args.output).await?;
    Ok(caught.iter().all(|caught| caught.round.is_some()))
}

/// The kinds with these names; all if none is named.
fn kinds(names: &[String]) -> Result<Vec<&'static str>, Error> {
    if names.is_empty() {
        return Ok(faults::ALL.iter().map(|fault| fault.name).collect());
    }
    let named = |name: &String| {
        let found = faults::Fault::named(name).map(|fault| fault.name);
        found.ok_or_else(|| format!("no fault is called {name:?}; `cortex-chaos faults` lists them").into())
    };
    names.iter().map(named).collect()
}

/// Judges a stored run, and writes its summary and report.
fn judge(folder: &Path) -> Result<Overall, Error> {
    let history = History::read(folder)?;
    let summary = Summary::of(&history);
    summary.write(folder)?;
    for judgement in &summary.judgements {
        match &judgement.verdict {
            Verdict::Pass { cases } => println!("{:4} pass, {cases} cases", judgement.promise),
            Verdict::NotTried => println!("{:4} not tried", judgement.promise),
            Verdict::Unknown { why } => println!("{:4} UNKNOWN: {why}", judgement.promise),
            Verdict::Fail { count, violations } => {
                println!("{:4} FAIL, {count} violations", judgement.promise);
                violations.iter().for_each(|violation| println!("       {violation}"));
            }
        }
    }
    let overall = summary.overall();
    let command = summary.info.command.clone();
    let report = Report { title: "CORTEX under faults: a run".to_owned(), command, rounds: vec![summary] };
    report.write(folder, Some(&history))?;
    println!("{}: {}", overall.word(), folder.join("report.html").display());
    Ok(overall)
}
