//! Follows jobs until they are finished.

use std::time::Duration;

use cortex_client::{Job, JobsClient};
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::time::sleep;

use super::args::Output;
use super::output::{CommandError, print_json_line, print_line};

/// Time between two looks at the jobs.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Questions under way at the same time.
const IN_FLIGHT: usize = 32;

/// Prints every change that is seen (states that pass between two looks are not), and answers the jobs as
/// they ended. `report` false prints nothing.
pub(super) async fn follow(
    client: &JobsClient,
    ids: &[String],
    output: Output,
    report: bool,
) -> Result<Vec<Job>, CommandError> {
    let mut seen: Vec<Option<Job>> = vec![None; ids.len()];
    loop {
        let open: Vec<usize> =
            (0..ids.len()).filter(|&index| !seen[index].as_ref().is_some_and(Job::is_terminal)).collect();
        if open.is_empty() {
            return Ok(seen.into_iter().flatten().collect());
        }
        let looks = stream::iter(
            open.into_iter()
                .map(|index| async move { client.get(&ids[index]).await.map(|job| (index, job)) }),
        );
        let jobs: Vec<(usize, Job)> = looks.buffered(IN_FLIGHT).try_collect().await?;
        for (index, job) in jobs {
            let changed = seen[index]
                .as_ref()
                .is_none_or(|before| (&before.status, before.retry_count) != (&job.status, job.retry_count));
            if changed && report {
                print_change(&job, output)?;
            }
            seen[index] = Some(job);
        }
        if seen.iter().flatten().any(|job| !job.is_terminal()) {
            sleep(LOOK_EVERY).await;
        }
    }
}

/// Fails unless all jobs completed.
pub(super) fn all_completed(jobs: &[Job]) -> Result<(), CommandError> {
    let other = jobs.iter().filter(|job| job.status != "completed").count();
    match other {
        0 => Ok(()),
        _ => Err(CommandError::Failed(format!("{other} of {} jobs did not complete", jobs.len()))),
    }
}

fn print_change(job: &Job, output: Output) -> Result<(), CommandError> {
    if output == Output::Json {
        return print_json_line(job);
    }
    let retries = match job.retry_count {
        0 => String::new(),
        count => format!("  retries {count}"),
    };
    let error = job.error_message.as_deref().map(|text| format!("  {text}")).unwrap_or_default();
    print_line(format!("{}  {:<9}{retries}{error}", job.id, job.status).trim_end())
}
