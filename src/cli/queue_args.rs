//! The command line of `cortex queues`.

use clap::{Args, Subcommand};

use super::args::ClientArgs;

/// Commands about the queue.
#[derive(Debug, Subcommand)]
pub enum QueuesCommand {
    /// Show how many jobs wait, for how long, and what is paused
    Depth(PriorityArgs),
    /// List the jobs that are next
    Peek(PeekArgs),
    /// Hold jobs back: those of a model, or all
    Pause(ModelArgs),
    /// Let them go on: those of a model, or all, whatever is paused
    Resume(ModelArgs),
    /// Cancel the jobs that wait
    Clear(PriorityArgs),
}

/// Arguments of `cortex queues depth` and `cortex queues clear`.
#[derive(Debug, Args)]
pub struct PriorityArgs {
    /// Only jobs of this priority
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=10))]
    pub priority: Option<i32>,
    /// Which replicas, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Arguments of `cortex queues peek`.
#[derive(Debug, Args)]
pub struct PeekArgs {
    /// Only jobs of this priority
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=10))]
    pub priority: Option<i32>,
    /// Most jobs to list
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub limit: u32,
    /// Which replicas, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Arguments of `cortex queues pause` and `cortex queues resume`.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// Only jobs of this model
    #[arg(long)]
    pub model: Option<String>,
    /// Which replicas, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}
