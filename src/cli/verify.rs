//! `cortex verify`.
//!
//! Exit status: 0 nothing is off, 1 something is, 3 nothing is off as far as could be seen and not all was looked at;
//! as everywhere, 1 as well where it could not begin, which leaves standard output empty.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::args::Output;
use super::output::{CommandError, finish, print_json, print_line, print_table, table};
use crate::app;
use crate::config::Config;
use crate::domain::ambient::System;
use crate::storage::{Database, DatabaseOptions};
use crate::telemetry;
use crate::verify::{self, Checked, Options, Outcome, Report, Verdict};

/// Arguments of `cortex verify`.
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// Configuration file that names the database, Redis and the queue
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// What healthy clusters have for a moment counts if it is still there after this time
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    pub settle: u64,
    /// Most findings of each check that are shown; all are counted
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(0..=1_000))]
    pub samples: u16,
    /// Longest time of one statement; a check that takes longer is unknown
    #[arg(long, value_name = "SECONDS", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// How to print the report
    #[arg(long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// Looks at the stores and prints the report.
pub async fn run(args: VerifyArgs) -> ExitCode {
    match look(&args).await {
        Ok(Verdict::Clean) => ExitCode::SUCCESS,
        Ok(Verdict::Off) => ExitCode::from(1),
        Ok(Verdict::Unknown) => ExitCode::from(3),
        Err(error) => finish(Err(error)),
    }
}

async fn look(args: &VerifyArgs) -> Result<Verdict, CommandError> {
    let failed = |error: &dyn std::error::Error| CommandError::Failed(telemetry::whole_story(error));
    let config = Config::load(&args.config).map_err(|error| failed(&error))?;
    let options = DatabaseOptions { max_connections: 2, ..app::database_options(&config.database) };
    let database = Database::connect_lazily(&options).map_err(|error| failed(&error))?;
    let queue = app::queue(&config.queue).map_err(|error| failed(&error))?;
    let options = Options {
        settle: Duration::from_secs(args.settle),
        samples: args.samples.into(),
        statement_timeout: Duration::from_secs(args.timeout),
        worker_timeout: config.scheduler.worker_timeout,
    };
    let report = verify::run(&database, &queue, &options, &System).await;
    database.close().await;
    match args.output {
        Output::Json => print_json(&report)?,
        Output::Table => print_report(&report)?,
    }
    Ok(report.verdict)
}

fn print_report(report: &Report) -> Result<(), CommandError> {
    let mut checks = table(&["check", "severity", "result"]);
    for check in &report.checks {
        checks.add_row([check.name.clone(), check.severity.as_str().to_owned(), result(check)]);
    }
    print_table(checks)?;
    for (check, finding) in report.findings() {
        print_line(&format!("\n{} ({}, {})", check.name, check.severity.as_str(), result(check)))?;
        print_line(&format!("  {}", finding.means))?;
        print_line(&format!("  repair: {}", finding.repair))?;
        for sample in &finding.samples {
            print_line(&format!("  {}  {}", sample.id, sample.detail))?;
        }
        if finding.count > finding.samples.len() as u64 {
            print_line(&format!("  and {} more", finding.count - finding.samples.len() as u64))?;
        }
    }
    print_line(match report.verdict {
        Verdict::Clean => "\nNothing is off.",
        Verdict::Off => "\nSomething is off.",
        Verdict::Unknown => "\nNot all could be looked at; of the rest nothing is off.",
    })
}

fn result(check: &Checked) -> String {
    match &check.outcome {
        Outcome::Clean => "clean".to_owned(),
        Outcome::Off(finding) if finding.at_least => format!("off, at least {}", finding.count),
        Outcome::Off(finding) => format!("off, {}", finding.count),
        Outcome::Unknown { reason } => format!("unknown: {reason}"),
    }
}
