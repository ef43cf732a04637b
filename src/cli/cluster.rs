//! `cortex cluster`.

use std::process::ExitCode;

use cortex_client::NewMember;
use serde_json::json;

use super::args::Output;
use super::cluster_args::{AddArgs, AdoptArgs, ClusterCommand, ClusterStatusArgs, RemoveArgs, TransferArgs};
use super::migrate::database;
use super::output::{
    CommandError, client, finish, optional, patient, print_json, print_line, print_table, table,
};
use crate::domain::ids::ClusterId;

/// Runs one of the commands about the replicas.
pub async fn run(command: ClusterCommand) -> ExitCode {
    finish(match command {
        ClusterCommand::Status(args) => status(&args).await,
        ClusterCommand::Add(args) => add(args).await,
        ClusterCommand::Remove(args) => remove(&args).await,
        ClusterCommand::Transfer(args) => transfer(&args).await,
        ClusterCommand::Adopt(args) => adopt(args).await,
    })
}

async fn status(args: &ClusterStatusArgs) -> Result<(), CommandError> {
    let cluster = client(&args.client)?.cluster().await?;
    if args.client.output == Output::Json {
        return print_json(&cluster);
    }
    let leader = cluster.leader.map_or_else(|| "none".to_owned(), |id| id.to_string());
    print_line(&format!("leader {leader}, term {}", optional(cluster.term)))?;
    let mut table = table(&["id", "role", "http", "grpc", "peer", "last contact", "log lag"]);
    for member in cluster.members {
        table.add_row([
            member.id.to_string(),
            member.role,
            optional(member.http),
            optional(member.grpc),
            optional(member.peer),
            optional(member.last_contact_ms.map(|ms| format!("{ms} ms"))),
            optional(member.log_lag),
        ]);
    }
    print_table(table)
}

async fn add(args: AddArgs) -> Result<(), CommandError> {
    let client = patient(&args.client)?;
    let member = NewMember { id: args.id, peer: args.peer, http: args.http, grpc: args.grpc };
    let member = client.add_member(&member).await?;
    match args.client.output {
        Output::Json => print_json(&member),
        Output::Table => print_line(&format!("member {} votes", member.id)),
    }
}

async fn remove(args: &RemoveArgs) -> Result<(), CommandError> {
    patient(&args.client)?.remove_member(args.id).await?;
    match args.client.output {
        Output::Json => print_json(&json!({"removed": args.id})),
        Output::Table => print_line(&format!("member {} is removed", args.id)),
    }
}

async fn transfer(args: &TransferArgs) -> Result<(), CommandError> {
    let leader = patient(&args.client)?.transfer_leadership(args.to).await?;
    match args.client.output {
        Output::Json => print_json(&json!({"leader": leader})),
        Output::Table => print_line(&format!("member {leader} leads")),
    }
}

async fn adopt(args: AdoptArgs) -> Result<(), CommandError> {
    let cluster_id = match args.cluster_id {
        Some(id) => id,
        None => {
            let id = client(&args.client)?.cluster().await?.cluster_id.and_then(|id| id.parse().ok());
            id.ok_or_else(|| CommandError::Failed("the replica does not know its cluster yet".to_owned()))?
        }
    };
    let database = database(args.database.database_url, args.database.config)?;
    let failed = |error: crate::storage::StorageError| CommandError::Failed(error.to_string());
    let former = database.adopt(ClusterId(cluster_id)).await.map_err(failed)?;
    let former = former.map(|ClusterId(former)| former);
    match args.client.output {
        Output::Json => print_json(&json!({"cluster_id": cluster_id, "former_cluster_id": former})),
        Output::Table => print_line(&match former {
            Some(former) => {
                format!("the database belongs to cluster {cluster_id} now, no longer to {former}")
            }
            None => format!("the database belongs to no other cluster than {cluster_id}"),
        }),
    }
}
