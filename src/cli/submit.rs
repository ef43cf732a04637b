//! `cortex jobs submit`.

use std::collections::BTreeMap;
use std::io::Read;

use cortex_client::{Job, NewJob};
use futures::stream::{self, StreamExt, TryStreamExt};
use serde_json::{Map, Value};

use super::args::{Output, SubmitArgs};
use super::jobs::job_table;
use super::output::{CommandError, client, print_json, print_table};
use super::watch;

/// Submissions under way at the same time.
const IN_FLIGHT: usize = 64;

pub(super) async fn run(args: &SubmitArgs) -> Result<(), CommandError> {
    let job = &new_job(args)?;
    let client = client(&args.client)?;
    let submissions = stream::iter((0..args.count).map(|_| client.submit(job)));
    let mut jobs: Vec<Job> = submissions.buffered(IN_FLIGHT).try_collect().await?;
    if args.wait {
        let ids: Vec<String> = jobs.iter().map(|job| job.id.clone()).collect();
        jobs = watch::follow(&client, &ids, args.client.output, false).await?;
    }
    match (args.client.output, &jobs[..]) {
        (Output::Json, [job]) => print_json(job)?,
        (Output::Json, jobs) => print_json(&jobs)?,
        (Output::Table, jobs) => print_table(job_table(jobs))?,
    }
    if args.wait { watch::all_completed(&jobs) } else { Ok(()) }
}

fn new_job(args: &SubmitArgs) -> Result<NewJob, CommandError> {
    let input = Value::Object(object("--input", &input_text(&args.input)?)?);
    let name = args.name.as_ref().unwrap_or(&args.model);
    let metadata = args.metadata.as_deref().map(|text| object("--metadata", text)).transpose()?;
    Ok(NewJob {
        priority: args.priority,
        max_retries: args.max_retries,
        timeout_seconds: args.timeout_seconds,
        tags: tags(&args.tags)?,
        metadata: metadata.unwrap_or_default(),
        ..NewJob::new(name, &args.model, &args.model_version, input)
    })
}

fn input_text(input: &str) -> Result<String, CommandError> {
    let failed = |from: &str, error| CommandError::Usage(format!("--input: cannot read {from}: {error}"));
    if input == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map_err(|error| failed("standard input", error))?;
        return Ok(text);
    }
    match input.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).map_err(|error| failed(path, error)),
        None => Ok(input.to_owned()),
    }
}

fn object(option: &str, text: &str) -> Result<Map<String, Value>, CommandError> {
    match serde_json::from_str(text) {
        Ok(Value::Object(members)) => Ok(members),
        Ok(_) => Err(CommandError::Usage(format!("{option} must be a JSON object"))),
        Err(error) => Err(CommandError::Usage(format!("{option} must be a JSON object: {error}"))),
    }
}

fn tags(tags: &[String]) -> Result<BTreeMap<String, String>, CommandError> {
    let split = |tag: &String| match tag.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(CommandError::Usage(format!("--tag must be KEY=VALUE, not {tag:?}"))),
    };
    tags.iter().map(split).collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Command, JobsCommand};

    fn job(options: &[&str]) -> Result<NewJob, CommandError> {
        let line = ["cortex", "jobs", "submit", "--model", "m"].iter().chain(options);
        match Cli::try_parse_from(line).unwrap().command {
            Command::Jobs(JobsCommand::Submit(args)) => new_job(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_options_make_the_job() {
        let options = ["--input", r#"{"a": 1}"#, "--tag", "k=v=w", "--metadata", r#"{"requires_gpu": true}"#];
        let job = job(&options).unwrap();
        assert_eq!((job.name.as_str(), job.model_version.as_str()), ("m", "1"));
        assert_eq!(job.input_data["a"], 1);
        assert_eq!(job.tags["k"], "v=w");
        assert_eq!(job.metadata["requires_gpu"], true);
        assert_eq!(job.priority, None);
    }

    #[test]
    fn the_input_may_be_a_file() {
        let path = std::env::temp_dir().join(format!("cortex-input-{}.json", std::process::id()));
        std::fs::write(&path, r#"{"a": 2}"#).unwrap();
        let job = job(&["--input", &format!("@{}", path.display())]).unwrap();
        std::fs::remove_file(path).unwrap();
        assert_eq!(job.input_data["a"], 2);
    }

    #[test]
    fn what_is_no_object_is_a_usage_error_that_names_the_option() {
        for (options, name) in [
            (vec!["--input", "[1]"], "--input"),
            (vec!["--input", "{"], "--input"),
            (vec!["--input", "@/nonexistent"], "--input"),
            (vec!["--input", "{}", "--metadata", "1"], "--metadata"),
            (vec!["--input", "{}", "--tag", "novalue"], "--tag"),
        ] {
            let error = job(&options).unwrap_err();
            assert!(matches!(&error, CommandError::Usage(text) if text.contains(name)), "{error}");
        }
    }
}
