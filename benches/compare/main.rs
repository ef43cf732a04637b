//! CORTEX beside other queues, and under what a long life brings:
//! `cargo bench --bench compare -- [WHAT] [--runs 5] [--quick] [--peers DIR] [--only a,b] [--write FILE]`.
//!
//! Every measurement but `affinity` is a run of the program `cortex bench` (docs/BENCHMARKS.md) against three
//! replicas with stores of their own. Prints Markdown on standard output, how it goes on standard error, and keeps every
//! run as a line of JSON in a file under `target/`.
//!
//! | file | what it does |
//! | --- | --- |
//! | `rounds.rs`, `cases.rs` | `table`: limit, CORTEX and the peers in turn, and the ratios |
//! | `peers.rs` | runs of other queues, through the harness in another folder |
//! | `backlog.rs` | dispatch beside a million jobs that wait |
//! | `shapes.rs` | a thousand workers of five hundred kinds |
//! | `history.rs` | the pipeline after two million finished jobs |
//! | `lists.rs` | pages of jobs, filters and statistics among a million finished jobs |
//! | `retention.rs` | dispatch while a million old jobs are pruned |
//! | `retries.rs` | how late the next attempts of failed jobs start |
//! | `past.rs` | finished jobs for `lists` and `retention`, put straight into the tables |
//! | `overload.rs` | twice as much as can be done |
//! | `affinity.rs`, `fleet.rs` | loads of models that placement saves, in a simulated fleet |
//! | `stage.rs`, `load.rs`, `process.rs` | a cluster, load from this process, what a process costs |
//! | `report.rs` | lines of JSON, medians, Markdown |

mod affinity;
mod backlog;
mod cases;
mod fleet;
mod history;
mod lists;
mod load;
mod overload;
mod past;
mod peers;
mod process;
mod report;
mod retention;
mod retries;
mod rounds;
mod shapes;
mod stage;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use report::Report;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// The workloads, the limit and the peers, with their ratios
    Table,
    /// The rate of a drain while 1,000 and while 1,000,000 more jobs wait
    Backlog,
    /// 1,000 workers and 500 shapes: idle cost, dispatch, memory with 1,000,000 jobs waiting
    Shapes,
    /// The pipeline at the start and after 2,000,000 finished jobs
    History,
    /// Pages of jobs, filters and statistics among 1,000,000 finished jobs
    Lists,
    /// Dispatch while 1,000,000 old jobs are pruned
    Retention,
    /// How late the next attempts of failed jobs start
    Retries,
    /// Throughput, refusals and memory at twice the sustainable load
    Overload,
    /// Loads of models with and without workers' reports of loaded ones, simulated
    Affinity,
}

/// Measures CORTEX on this machine.
#[derive(Debug, Parser)]
#[command(name = "compare")]
struct Options {
    /// What to measure
    #[arg(value_enum, default_value_t = What::Table)]
    what: What,
    /// How often; medians are printed
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    runs: u32,
    /// One small run of each: shows that everything works, and measures nothing
    #[arg(long)]
    quick: bool,
    /// Folder of the peers' harness
    #[arg(long, value_name = "DIR", env = "CORTEX_PEERS")]
    peers: Option<PathBuf>,
    /// Only these of the table's workloads and systems, comma-separated
    #[arg(long, value_name = "NAME[,NAME...]", value_delimiter = ',')]
    only: Vec<String>,
    /// Makes the finished jobs by running them, instead of by SQL (history)
    #[arg(long)]
    through_cortex: bool,
    /// Puts the tables into this document as well, between their marks
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Given by `cargo bench`, and not when all targets are run as tests
    #[arg(long, hide = true)]
    bench: bool,
}

impl Options {
    /// How often.
    fn runs(&self) -> u32 {
        if self.quick { 1 } else { self.runs }
    }

    /// A size, and the one that shows that it works.
    fn size<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    if !options.bench {
        eprintln!("nothing is measured: start it with `cargo bench --bench compare`");
        return ExitCode::SUCCESS;
    }
    match measure(&options).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("some runs failed, see above");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether every run of CORTEX worked.
async fn measure(options: &Options) -> Result<bool, Failure> {
    let name = options.what.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
    let mut report = Report::start(&name, options.write.clone())?;
    match options.what {
        What::Table => rounds::run(options, &mut report).await?,
        What::Backlog => backlog::run(options, &mut report).await?,
        What::Shapes => shapes::run(options, &mut report).await?,
        What::History => history::run(options, &mut report).await?,
        What::Lists => lists::run(options, &mut report).await?,
        What::Retention => retention::run(options, &mut report).await?,
        What::Retries => retries::run(options, &mut report).await?,
        What::Overload => overload::run(options, &mut report).await?,
        What::Affinity => affinity::run(options, &mut report)?,
    }
    Ok(report.finish())
}
