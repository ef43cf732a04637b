//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use cortex_chaos::cluster::NetworkKind;

/// Runs CORTEX under faults and judges whether its promises held.
#[derive(Debug, Parser)]
#[command(name = "cortex-chaos", version)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run once, judge, and write a report
    Run(RunArgs),
    /// Judge a stored run again
    Check(CheckArgs),
    /// Run many rounds, one seed each; go on with those that are missing
    Campaign(CampaignArgs),
    /// Run with one planted defect at a time, until it is caught
    Planted(PlantedArgs),
    /// List the kinds of faults
    Faults,
    /// Cut the power of the replicas' disks again and again
    PowerCut(PowerCutArgs),
    /// Measure how hundreds of workers fare that lose their leader
    Reconnect(ReconnectArgs),
    /// Measure how the queue fares when Redis is emptied
    Flush(FlushArgs),
    /// Watch whether a leader stays on a busy machine
    Idle(IdleArgs),
    /// Keep a core busy
    #[command(hide = true)]
    Burn(BurnArgs),
}

/// Arguments of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Where all randomness comes from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How long load and faults last, such as 30s or 10m
    #[arg(long, default_value = "60s", value_parser = duration)]
    pub duration: Duration,
    /// Kinds of faults, comma-separated; all that this machine allows by default
    #[arg(long, value_delimiter = ',')]
    pub faults: Vec<String>,
    /// How replicas and stores are connected: through relays on loopback, or netns for network namespaces (needs root)
    #[arg(long, default_value = "loopback", value_parser = network)]
    pub network: NetworkKind,
    /// Pause of each client between two submissions, such as 0.5s on a slow machine
    #[arg(long, default_value = "0.05s", value_parser = duration)]
    pub pace: Duration,
    /// Where everything is written; must not exist
    #[arg(long, value_name = "DIR", default_value = "target/chaos/run")]
    pub output: PathBuf,
}

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Folder of a run
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

/// Arguments of `campaign`.
#[derive(Debug, Args)]
pub struct CampaignArgs {
    /// Number of rounds
    #[arg(long, default_value_t = 60)]
    pub rounds: u64,
    /// Seed of the first round; each further one has the next
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How long load and faults last in each round
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub duration: Duration,
    /// How many kinds of faults each round has
    #[arg(long, default_value_t = 6)]
    pub kinds: usize,
    /// How replicas and stores are connected: loopback, or netns, which needs root
    #[arg(long, default_value = "loopback", value_parser = network)]
    pub network: NetworkKind,
    /// Kinds of faults to draw from, comma-separated; all that this machine allows by default
    #[arg(long, value_delimiter = ',')]
    pub faults: Vec<String>,
    /// Where everything is written
    #[arg(long, value_name = "DIR", default_value = "target/chaos/campaign")]
    pub output: PathBuf,
}

/// Arguments of `planted`.
#[derive(Debug, Args)]
pub struct PlantedArgs {
    /// Defects, comma-separated; all by default
    #[arg(long, value_delimiter = ',')]
    pub defects: Vec<String>,
    /// Rounds per defect at the most
    #[arg(long, default_value_t = 20)]
    pub rounds: u64,
    /// How long load and faults last in each round
    #[arg(long, default_value = "20s", value_parser = duration)]
    pub duration: Duration,
    /// Where everything is written
    #[arg(long, value_name = "DIR", default_value = "target/chaos/planted")]
    pub output: PathBuf,
}

/// Arguments of `power-cut`.
#[derive(Debug, Args)]
pub struct PowerCutArgs {
    /// Where all randomness comes from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How often
    #[arg(long, default_value_t = 20)]
    pub cuts: u32,
    /// Where everything is written; must not exist
    #[arg(long, value_name = "DIR", default_value = "target/chaos/power-cut")]
    pub output: PathBuf,
}

/// Arguments of `reconnect`.
#[derive(Debug, Args)]
pub struct ReconnectArgs {
    /// Where all randomness comes from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How many workers
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u16).range(1..=900))]
    pub workers: u16,
    /// Where everything is written; must not exist
    #[arg(long, value_name = "DIR", default_value = "target/chaos/reconnect")]
    pub output: PathBuf,
}

/// Arguments of `flush`.
#[derive(Debug, Args)]
pub struct FlushArgs {
    /// Where all randomness comes from
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// How many jobs wait
    #[arg(long, default_value_t = 100_000)]
    pub waiting: usize,
    /// Where everything is written; must not exist
    #[arg(long, value_name = "DIR", default_value = "target/chaos/flush")]
    pub output: PathBuf,
}

/// Arguments of `idle`.
#[derive(Debug, Args)]
pub struct IdleArgs {
    /// How long
    #[arg(long, default_value = "10m", value_parser = duration)]
    pub duration: Duration,
    /// Share of every core that others take, in percent
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub share: u32,
    /// Where everything is written; must not exist
    #[arg(long, value_name = "DIR", default_value = "target/chaos/idle")]
    pub output: PathBuf,
}

/// Arguments of `burn`.
#[derive(Debug, Args)]
pub struct BurnArgs {
    /// Share of the time, in percent
    #[arg(long)]
    pub share: u32,
}

fn network(text: &str) -> Result<NetworkKind, String> {
    NetworkKind::named(text).ok_or_else(|| format!("{text:?} is neither loopback nor netns"))
}

fn duration(text: &str) -> Result<Duration, String> {
    let usage = || format!("{text:?} is not a time such as 30s, 10m or 1.5h");
    let unit = text.chars().last().ok_or_else(usage)?;
    let seconds = match unit {
        's' => 1.0,
        'm' => 60.0,
        'h' => 3600.0,
        _ => return Err(usage()),
    };
    let number: f64 = text[..text.len() - 1].parse().map_err(|_| usage())?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| usage())
}
