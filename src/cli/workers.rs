//! `cortex workers`.

use std::process::ExitCode;

use comfy_table::Table;
use cortex_client::WorkerInfo;

use super::args::{Output, WorkerIdsArgs, WorkersCommand, WorkersListArgs};
use super::output::{CommandError, client, finish, print_json, print_table, table};

/// Runs one of the commands about workers.
pub async fn run(command: WorkersCommand) -> ExitCode {
    finish(match command {
        WorkersCommand::List(args) => list(&args).await,
        WorkersCommand::Drain(args) => drain(&args).await,
    })
}

async fn list(args: &WorkersListArgs) -> Result<(), CommandError> {
    let list = client(&args.client)?.workers(args.status.as_deref()).await?;
    if args.client.output == Output::Json {
        return print_json(&list);
    }
    print_table(shown(list.workers))
}

/// Workers before the one that cannot be drained are drained, and stay so.
async fn drain(args: &WorkerIdsArgs) -> Result<(), CommandError> {
    let client = client(&args.client)?;
    let mut drained = Vec::with_capacity(args.ids.len());
    for id in &args.ids {
        drained.push(client.drain_worker(id).await?);
    }
    match args.client.output {
        Output::Json => print_json(&drained),
        Output::Table => print_table(shown(drained)),
    }
}

fn shown(workers: Vec<WorkerInfo>) -> Table {
    let mut table =
        table(&["id", "name", "address", "status", "jobs", "completed", "failed", "last heartbeat"]);
    for worker in workers {
        let status = if worker.draining { format!("{}, draining", worker.status) } else { worker.status };
        table.add_row([
            worker.id,
            worker.name,
            format!("{}:{}", worker.hostname, worker.port),
            status,
            format!("{}/{}", worker.current_job_count, worker.max_concurrent_jobs),
            worker.total_jobs_completed.to_string(),
            worker.total_jobs_failed.to_string(),
            worker.last_heartbeat,
        ]);
    }
    table
}
