//! `cortex queues`.

use std::process::ExitCode;
use std::time::Duration;

use cortex_client::{JobsClient, Paused};
use serde_json::json;

use super::args::{ClientArgs, Output};
use super::jobs::job_table;
use super::output::{CommandError, client, finish, optional, print_json, print_line, print_table, table};
use super::queue_args::{ModelArgs, PeekArgs, PriorityArgs, QueuesCommand};

/// Longest wait for the end of a clearing, which goes through all jobs that wait.
const CLEAR_WITHIN: Duration = Duration::from_secs(610);

/// Runs one of the commands about the queue.
pub async fn run(command: QueuesCommand) -> ExitCode {
    finish(match command {
        QueuesCommand::Depth(args) => depth(&args).await,
        QueuesCommand::Peek(args) => peek(&args).await,
        QueuesCommand::Pause(args) => pause(&args).await,
        QueuesCommand::Resume(args) => resume(&args).await,
        QueuesCommand::Clear(args) => clear(&args).await,
    })
}

async fn depth(args: &PriorityArgs) -> Result<(), CommandError> {
    let client = client(&args.client)?;
    if args.priority.is_some() {
        let depth = client.queue_depth(args.priority).await?;
        return match args.client.output {
            Output::Json => print_json(&json!({"depth": depth})),
            Output::Table => print_line(&depth.to_string()),
        };
    }
    let queue = client.queue().await?;
    if args.client.output == Output::Json {
        return print_json(&queue);
    }
    let wait = |ms: Option<i64>| optional(ms.map(|ms| format!("{ms} ms")));
    let mut table = table(&["priority", "depth", "oldest wait"]);
    for of in queue.priorities {
        table.add_row([of.priority.to_string(), of.depth.to_string(), wait(of.oldest_wait_ms)]);
    }
    table.add_row(["all".to_owned(), queue.depth.to_string(), wait(queue.oldest_wait_ms)]);
    print_table(table)?;
    print_line(&describe(&queue.paused))
}

async fn peek(args: &PeekArgs) -> Result<(), CommandError> {
    let jobs = client(&args.client)?.queue_peek(args.limit, args.priority).await?;
    match args.client.output {
        Output::Json => print_json(&jobs),
        Output::Table => print_table(job_table(&jobs)),
    }
}

async fn pause(args: &ModelArgs) -> Result<(), CommandError> {
    show(&args.client, &client(&args.client)?.pause_queue(args.model.as_deref()).await?)
}

async fn resume(args: &ModelArgs) -> Result<(), CommandError> {
    show(&args.client, &client(&args.client)?.resume_queue(args.model.as_deref()).await?)
}

async fn clear(args: &PriorityArgs) -> Result<(), CommandError> {
    let server = &args.client.server;
    let client = JobsClient::builder(&server.endpoint).token(server.token.clone());
    let client = client.request_timeout(CLEAR_WITHIN).deadline(CLEAR_WITHIN).build()?;
    let cancelled = client.clear_queue(args.priority).await?;
    match args.client.output {
        Output::Json => print_json(&json!({"cancelled": cancelled})),
        Output::Table => print_line(&format!("{cancelled} jobs cancelled")),
    }
}

fn show(args: &ClientArgs, paused: &Paused) -> Result<(), CommandError> {
    match args.output {
        Output::Json => print_json(paused),
        Output::Table => print_line(&describe(paused)),
    }
}

fn describe(paused: &Paused) -> String {
    let models = paused.models.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    match (paused.all, models.is_empty()) {
        (false, true) => "nothing is paused".to_owned(),
        (false, false) => format!("paused: {models}"),
        (true, true) => "paused: everything".to_owned(),
        (true, false) => format!("paused: everything, and by name: {models}"),
    }
}
