//! `cortex jobs`.

use std::process::ExitCode;

use comfy_table::Table;
use cortex_client::{Job, JobFilter};

use super::args::{JobArgs, JobIdsArgs, JobsCommand, ListArgs, Output};
use super::output::{
    CommandError, client, finish, optional, print_json, print_json_line, print_line, print_table, table,
};
use super::{submit, watch};

/// Runs one of the commands about jobs.
pub async fn run(command: JobsCommand) -> ExitCode {
    finish(match command {
        JobsCommand::Submit(args) => submit::run(&args).await,
        JobsCommand::Get(args) => get(&args).await,
        JobsCommand::List(args) => list(&args).await,
        JobsCommand::Watch(args) => watch(&args).await,
        JobsCommand::Cancel(args) => cancel(&args).await,
        JobsCommand::Retry(args) => retry(&args).await,
    })
}

/// One row per job.
pub(super) fn job_table(jobs: &[Job]) -> Table {
    let mut table = table(&["id", "name", "model", "status", "priority", "retries", "submitted"]);
    for job in jobs {
        let model = format!("{}:{}", job.model_name, job.model_version);
        let retries = format!("{}/{}", job.retry_count, job.max_retries);
        let cells = [
            job.id.clone(),
            job.name.clone(),
            model,
            job.status.clone(),
            job.priority.to_string(),
            retries,
            job.submitted_at.clone(),
        ];
        table.add_row(cells);
    }
    table
}

async fn get(args: &JobArgs) -> Result<(), CommandError> {
    let job = client(&args.client)?.get(&args.id).await?;
    if args.client.output == Output::Json {
        return print_json(&job);
    }
    let mut table = table(&[]);
    let tags: Vec<String> = job.tags.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let milliseconds = |value: Option<i64>| optional(value.map(|ms| format!("{ms} ms")));
    for (name, value) in [
        ("id", job.id),
        ("name", job.name),
        ("model", format!("{}:{}", job.model_name, job.model_version)),
        ("status", job.status),
        ("priority", job.priority.to_string()),
        ("retries", format!("{} of {}", job.retry_count, job.max_retries)),
        ("next retry", optional(job.next_retry_at)),
        ("timeout", format!("{} s", job.timeout_seconds)),
        ("worker", optional(job.assigned_worker_id)),
        ("submitted", job.submitted_at),
        ("started", optional(job.started_at)),
        ("completed", optional(job.completed_at)),
        ("waited", milliseconds(job.queue_wait_time_ms)),
        ("ran", milliseconds(job.execution_duration_ms)),
        ("tags", tags.join(" ")),
        ("input", job.input_data.to_string()),
        ("output", optional(job.output_data)),
        ("error", optional(job.error_message)),
    ] {
        table.add_row([name, &value]);
    }
    print_table(table)
}

async fn list(args: &ListArgs) -> Result<(), CommandError> {
    let filter = JobFilter {
        status: args.status.clone(),
        priority: args.priority,
        model_name: args.model.clone(),
        created_by: args.created_by.clone(),
        page: Some(args.page),
        page_size: Some(args.page_size),
    };
    let list = client(&args.client)?.list(&filter).await?;
    if args.client.output == Output::Json {
        return print_json(&list);
    }
    print_table(job_table(&list.jobs))?;
    print_line(&format!("page {} of {}, {} jobs", list.page, list.pages, list.total))
}

async fn watch(args: &JobIdsArgs) -> Result<(), CommandError> {
    let client = client(&args.client)?;
    watch::follow(&client, &args.ids, args.client.output, true).await.map(drop)
}

async fn cancel(args: &JobIdsArgs) -> Result<(), CommandError> {
    let client = client(&args.client)?;
    for id in &args.ids {
        client.cancel(id).await?;
        match args.client.output {
            Output::Table => print_line(&format!("{id}  cancelled"))?,
            Output::Json => print_json_line(&serde_json::json!({"id": id, "status": "cancelled"}))?,
        }
    }
    Ok(())
}

async fn retry(args: &JobIdsArgs) -> Result<(), CommandError> {
    let client = client(&args.client)?;
    for id in &args.ids {
        let job = client.retry(id).await?;
        match args.client.output {
            Output::Table => print_line(&format!("{id}  {}", job.status))?,
            Output::Json => print_json_line(&job)?,
        }
    }
    Ok(())
}
