//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use super::cluster_args::ClusterCommand;
pub use super::queue_args::QueuesCommand;
pub use super::verify::VerifyArgs;
use crate::bench::Workload;
use crate::security::Role;

/// A highly available job orchestrator for fleets of ML workers.
#[derive(Debug, Parser)]
#[command(name = "cortex", version, about, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run one replica
    Serve(ServeArgs),
    /// Run a whole cluster on this machine, with its own PostgreSQL and Redis
    Dev(DevArgs),
    /// Bring the database up to date
    Migrate(MigrateArgs),
    /// Run jobs
    Worker(WorkerArgs),
    /// Submit and follow jobs
    #[command(subcommand)]
    Jobs(JobsCommand),
    /// Look at the workers, and drain them
    #[command(subcommand)]
    Workers(WorkersCommand),
    /// Look at the queue, hold it, empty it
    #[command(subcommand)]
    Queues(QueuesCommand),
    /// Look at the replicas, add and remove them
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Measure a running cluster
    Bench(BenchArgs),
    /// Look for what is off in PostgreSQL and Redis, and change nothing
    Verify(VerifyArgs),
    /// Make tokens
    #[command(subcommand)]
    Token(TokenCommand),
}

/// Arguments of `cortex serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Configuration file
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
}

/// Arguments of `cortex migrate`.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct MigrateArgs {
    /// Configuration file that names the database
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The database
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,
}

/// Arguments of `cortex dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Number of replicas, each a process of its own
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(crate::dev::MAX_REPLICAS)))]
    pub replicas: u16,
    /// Number of demo workers
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=i64::from(crate::dev::MAX_WORKERS)))]
    pub workers: u16,
    /// Folder of all data and logs
    #[arg(long, value_name = "DIR", default_value = ".cortex")]
    pub data_dir: PathBuf,
    /// HTTP port of the first replica; the others follow. 0 chooses free ports
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub http_port: u16,
    /// gRPC port of the first replica; the others follow. 0 chooses free ports
    #[arg(long, value_name = "PORT", default_value_t = 9090)]
    pub grpc_port: u16,
    /// Peer port of the first replica; the others follow. 0 chooses free ports
    #[arg(long, value_name = "PORT", default_value_t = 7070)]
    pub peer_port: u16,
    /// Use this PostgreSQL instead of a private one
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,
    /// Use this Redis instead of a private one
    #[arg(long, value_name = "URL")]
    pub redis_url: Option<String>,
    /// Set a configuration key (dotted path) in every replica; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Require a token for every call; makes keys, and tokens for all roles, in the data folder
    #[arg(long)]
    pub auth: bool,
    /// Token of the demo workers and of this command, with --auth, instead of those that it makes
    #[arg(long, env = "CORTEX_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

/// Arguments of `cortex worker`.
#[derive(Debug, Args)]
pub struct WorkerArgs {
    /// gRPC addresses of the replicas, comma-separated
    #[arg(long, value_name = "URL[,URL...]", default_value = "http://127.0.0.1:9090")]
    pub endpoint: String,
    /// Bearer token
    #[arg(long, env = "CORTEX_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Name; a worker that restarts under its name is the same worker
    #[arg(long, default_value = "worker")]
    pub name: String,
    /// Models that it can run, comma-separated; any if left out
    #[arg(long, value_name = "MODEL[,MODEL...]", value_delimiter = ',')]
    pub models: Option<Vec<String>>,
    /// It has a GPU
    #[arg(long)]
    pub gpu: bool,
    /// Memory that jobs may ask for, in GB
    #[arg(long, value_name = "GB")]
    pub memory_gb: Option<f64>,
    /// Jobs at a time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub slots: u16,
    /// Collector for the spans of jobs that are traced (OTLP over gRPC); none are sent without
    #[arg(long, value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT", hide_env_values = true)]
    pub otlp_endpoint: Option<String>,
    /// How a job is run.
    #[command(flatten)]
    pub action: WorkerAction,
}

/// How `cortex worker` runs a job: exactly one of the two.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct WorkerAction {
    /// Shell command to run per job: input JSON on stdin, output JSON on stdout
    #[arg(long, value_name = "CMD")]
    pub exec: Option<String>,
    /// Do nothing for this many milliseconds per job
    #[arg(long, value_name = "N")]
    pub sleep_ms: Option<u64>,
}

/// Arguments of `cortex bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to measure
    #[arg(value_enum)]
    pub workload: Workload,
    /// Jobs; how many is enough depends on the workload
    #[arg(long, conflicts_with = "seconds", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub jobs: Option<u64>,
    /// How many of the jobs to measure, while the others wait (drain)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub first: Option<u64>,
    /// How long, instead
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub seconds: Option<u64>,
    /// Submissions in flight
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4_096))]
    pub in_flight: u16,
    /// Jobs of one batch
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub batch: u16,
    /// Submissions a second (latency, soak)
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub rate: u32,
    /// Workers in this process
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub workers: u16,
    /// Jobs at a time, each worker
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub slots: u16,
    /// Size of a job's input, about
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(40..=500_000))]
    pub payload_bytes: u32,
    /// The replicas
    #[command(flatten)]
    pub server: ServerArgs,
    /// gRPC addresses for the workers, comma-separated; those of all members if left out
    #[arg(long, value_name = "URL[,URL...]")]
    pub worker_endpoint: Option<String>,
    /// A PostgreSQL in which limit makes a scratch database and drops it again
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,
}

/// Commands about tokens.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Print a token, signed with a private key whose public one the replicas know
    Issue(IssueArgs),
}

/// Arguments of `cortex token issue`.
#[derive(Debug, Args)]
pub struct IssueArgs {
    /// Who bears it: 1 to 255 bytes
    #[arg(long, value_parser = subject)]
    pub subject: String,
    /// What the bearer may do: viewer, submitter, worker, admin
    #[arg(long)]
    pub role: Role,
    /// How long it is good for: a number with s, m, h or d
    #[arg(long, default_value = "1h", value_parser = duration)]
    pub ttl: Duration,
    /// RSA private key, a PEM file
    #[arg(long, value_name = "FILE")]
    pub key: PathBuf,
    /// Claim iss; needed where security.jwt_issuer is set
    #[arg(long)]
    pub issuer: Option<String>,
    /// Claim aud; needed where security.jwt_audience is set
    #[arg(long)]
    pub audience: Option<String>,
}

fn subject(text: &str) -> Result<String, String> {
    let fits = (1..=255).contains(&text.len()) && !text.chars().any(char::is_control);
    fits.then(|| text.to_owned()).ok_or_else(|| "must have 1 to 255 bytes, no control characters".to_owned())
}

/// At most ten years.
fn duration(text: &str) -> Result<Duration, String> {
    const MOST: u64 = 3650 * 86_400;
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let seconds = match unit {
        "s" | "" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => 0,
    };
    let seconds = number.parse::<u64>().ok().and_then(|number| number.checked_mul(seconds));
    seconds
        .filter(|seconds| (1..=MOST).contains(seconds))
        .map(Duration::from_secs)
        .ok_or_else(|| "must be a number with s, m, h or d, up to 3650d".to_owned())
}

/// The replicas that a command calls.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// HTTP addresses of the replicas, comma-separated
    #[arg(
        long,
        value_name = "URL[,URL...]",
        env = "CORTEX_ENDPOINT",
        default_value = "http://127.0.0.1:8080"
    )]
    pub endpoint: String,
    /// Bearer token
    #[arg(long, env = "CORTEX_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

/// What every command has that calls a replica and prints its answer.
#[derive(Debug, Args)]
pub struct ClientArgs {
    /// The replicas
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to print the answer
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// How an answer is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Table,
    /// For programs: the replica's answer
    Json,
}

/// Commands about jobs.
#[derive(Debug, Subcommand)]
pub enum JobsCommand {
    /// Submit a job, or several alike
    Submit(SubmitArgs),
    /// Show one job
    Get(JobArgs),
    /// List jobs, newest first
    List(ListArgs),
    /// Print every change of jobs until they are finished
    Watch(JobIdsArgs),
    /// Cancel jobs
    Cancel(JobIdsArgs),
    /// Run finished jobs again, or waiting ones at once
    Retry(JobIdsArgs),
}

/// Arguments of `cortex jobs submit`.
#[derive(Debug, Args)]
pub struct SubmitArgs {
    /// Name of the job; the model's if left out
    #[arg(long)]
    pub name: Option<String>,
    /// Model that the job needs
    #[arg(long)]
    pub model: String,
    /// Version of the model
    #[arg(long, default_value = "1")]
    pub model_version: String,
    /// Input: a JSON object, @FILE to read it from a file, - from standard input
    #[arg(long, value_name = "JSON|@FILE|-")]
    pub input: String,
    /// 1 (lowest) to 10
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=10))]
    pub priority: Option<i32>,
    /// Retries after the first attempt, 0 to 10
    #[arg(long, value_parser = clap::value_parser!(i32).range(0..=10))]
    pub max_retries: Option<i32>,
    /// Longest run time of an attempt
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(i32).range(1..))]
    pub timeout_seconds: Option<i32>,
    /// Label; may be repeated
    #[arg(long = "tag", value_name = "KEY=VALUE")]
    pub tags: Vec<String>,
    /// Requirements, retry policy and other metadata: a JSON object
    #[arg(long, value_name = "JSON")]
    pub metadata: Option<String>,
    /// Submit this many jobs
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub count: u32,
    /// Wait until they are finished; fail unless all completed
    #[arg(long)]
    pub wait: bool,
    /// Which replicas, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Arguments of `cortex jobs get`.
#[derive(Debug, Args)]
pub struct JobArgs {
    /// The job
    pub id: String,
    /// Which replicas, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Arguments of commands on several jobs.
#[derive(Debug, Args)]
pub struct JobIdsArgs {
    /// The jobs
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<String>,
    /// Which replicas, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Arguments of `cortex jobs list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only jobs in this state
    #[arg(long)]
    pub status: Option<String>,
    /// Only jobs of this priority
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..=10))]
    pub priority: Option<i32>,
    /// Only jobs that need this model
    #[arg(long)]
    pub model: Option<String>,
    /// Only jobs that this user submitted
    #[arg(long)]
    pub created_by: Option<String>,
    /// Which page
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub page: u32,
    /// Jobs per page
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub page_size: u32,
    /// Which replicas, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Commands about workers.
#[derive(Debug, Subcommand)]
pub enum WorkersCommand {
    /// List the workers
    List(WorkersListArgs),
    /// Give workers no new jobs until they register again; what they run they keep
    Drain(WorkerIdsArgs),
}

/// Arguments of commands on several workers.
#[derive(Debug, Args)]
pub struct WorkerIdsArgs {
    /// The workers
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<String>,
    /// Which replicas, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Arguments of `cortex workers list`.
#[derive(Debug, Args)]
pub struct WorkersListArgs {
    /// Only workers in this state
    #[arg(long)]
    pub status: Option<String>,
    /// Which replicas, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
