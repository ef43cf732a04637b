//! `cortex workers`.

use std::process::ExitCode;

use super::args::{Output, WorkersCommand, WorkersListArgs};
use super::output::{CommandError, client, finish, print_json, print_table, table};

/// Runs one of the commands about workers.
pub async fn run(command: WorkersCommand) -> ExitCode {
    finish(match command {
        WorkersCommand::List(args) => list(&args).await,
    })
}

async fn list(args: &WorkersListArgs) -> Result<(), CommandError> {
    let list = client(&args.client)?.workers(args.status.as_deref()).await?;
    if args.client.output == Output::Json {
        return print_json(&list);
    }
    let mut table =
        table(&["id", "name", "address", "status", "jobs", "completed", "failed", "last heartbeat"]);
    for worker in list.workers {
        table.add_row([
            worker.id,
            worker.name,
            format!("{}:{}", worker.hostname, worker.port),
            worker.status,
            format!("{}/{}", worker.current_job_count, worker.max_concurrent_jobs),
            worker.total_jobs_completed.to_string(),
            worker.total_jobs_failed.to_string(),
            worker.last_heartbeat,
        ]);
    }
    print_table(table)
}
