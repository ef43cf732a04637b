//! The command line of `cortex cluster`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use uuid::Uuid;

use super::args::ClientArgs;

/// Commands about the replicas.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show the replicas and who leads
    Status(ClusterStatusArgs),
    /// Take a running replica in
    Add(AddArgs),
    /// Take a replica out for good; its id is never used again
    Remove(RemoveArgs),
    /// Let another replica lead
    Transfer(TransferArgs),
    /// Give a database to the cluster that runs on it now, after the Raft data of the one before was lost
    Adopt(AdoptArgs),
}

/// Arguments of `cortex cluster status`.
#[derive(Debug, Args)]
pub struct ClusterStatusArgs {
    /// Which replicas, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Arguments of `cortex cluster add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// The replica's cluster.node_id
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub id: u64,
    /// Where other replicas reach it
    #[arg(long, value_name = "HOST:PORT")]
    pub peer: String,
    /// Where it serves REST; it announces that itself
    #[arg(long, value_name = "HOST:PORT")]
    pub http: Option<String>,
    /// Where it serves workers; it announces that itself
    #[arg(long, value_name = "HOST:PORT")]
    pub grpc: Option<String>,
    /// Which replicas, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Arguments of `cortex cluster remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// The replica
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    pub id: u64,
    /// Which replicas, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Arguments of `cortex cluster transfer`.
#[derive(Debug, Args)]
pub struct TransferArgs {
    /// The replica that is to lead; the best prepared one if left out
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(u64).range(1..))]
    pub to: Option<u64>,
    /// Which replicas, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Arguments of `cortex cluster adopt`.
#[derive(Debug, Args)]
pub struct AdoptArgs {
    /// Where the database is.
    #[command(flatten)]
    pub database: AdoptDatabase,
    /// The cluster; the one that the replicas belong to if left out
    #[arg(long, value_name = "UUID")]
    pub cluster_id: Option<Uuid>,
    /// Which replicas, and how to print.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// The database of `cortex cluster adopt`: exactly one of the two.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub struct AdoptDatabase {
    /// Configuration file that names the database
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The database
    #[arg(long, value_name = "URL")]
    pub database_url: Option<String>,
}
