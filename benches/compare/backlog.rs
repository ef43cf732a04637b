//! `backlog`: what a long queue costs. So many jobs are drained while so many more of them wait.

use crate::report::{BARS, Bar, Report, bar_row, figures, median, ratio, spread, table};
use crate::stage::{At, ROOMY, Stage};
use crate::{Failure, Options};

/// Jobs that are measured.
const MEASURED: u32 = 50_000;
/// Jobs that wait meanwhile.
const FEW: u32 = 1_000;
const MANY: u32 = 1_000_000;

pub async fn run(options: &Options, report: &mut Report) -> Result<(), Failure> {
    let measured = options.size(MEASURED, 2_000);
    let backlogs = [FEW, options.size(MANY, 20_000)];
    let mut runs = backlogs.map(|_| Vec::new());
    for round in 1..=options.runs() {
        // On empty stores, because the backlog of one round is the history of the next.
        let stage = Stage::start(ROOMY).await?;
        for (waiting, runs) in backlogs.iter().zip(&mut runs) {
            let (jobs, first) = ((measured + waiting).to_string(), measured.to_string());
            let line = stage.bench_once(At::Leader, &["drain", "--jobs", &jobs, "--first", &first]).await?;
            report.keep("cortex", &format!("backlog-{waiting}"), round, &line)?;
            runs.push(line);
        }
        stage.stop().await?;
    }
    let rates = runs.map(|lines| figures(&lines, "jobs_per_s"));
    let row = |(waiting, rates): (&u32, &Vec<f64>)| vec![waiting.to_string(), spread(rates)];
    let rows: Vec<_> = backlogs.iter().zip(&rates).map(row).collect();
    let part = ratio(median(&rates[1]), median(&rates[0]));
    let bar = bar_row("dispatch with many waiting ÷ with few", "", part, Bar::AtLeast(0.8, 0.95));
    let text = format!("{}\n{}", table(&["more jobs waiting", "jobs/s"], &rows), table(&BARS, &[bar]));
    report.print("backlog", &text)
}
