//! `cortex cluster`.

use std::process::ExitCode;

use super::args::{ClusterCommand, ClusterStatusArgs, Output};
use super::output::{CommandError, client, finish, optional, print_json, print_line, print_table, table};

/// Runs one of the commands about the replicas.
pub async fn run(command: ClusterCommand) -> ExitCode {
    finish(match command {
        ClusterCommand::Status(args) => status(&args).await,
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
