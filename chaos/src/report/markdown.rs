//! `report.md`.

use std::fmt::{self, Write};

use super::{Report, Verdict, ms, words};

/// Violations that are told.
const TOLD: usize = 20;

pub(super) fn render(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a text cannot fail.
    let _ = write(report, &mut text);
    text
}

fn write(report: &Report, out: &mut String) -> fmt::Result {
    writeln!(out, "# {}\n", report.title)?;
    writeln!(out, "**{}**: `{}`\n", report.overall().word(), report.command)?;
    writeln!(
        out,
        "{} rounds, {} acknowledged jobs, {} submissions of which the client does not know the outcome, {} runs of jobs, \
         {} effects outside of the cluster.\n",
        report.rounds.len(),
        report.total(|round| round.acknowledged),
        report.total(|round| round.unknown_submissions),
        report.total(|round| round.starts),
        report.total(|round| round.effects),
    )?;
    writeln!(out, "| promise | | verdict | |\n| --- | --- | --- | --- |")?;
    for row in report.rows() {
        let (word, more) = words(&row.verdict);
        writeln!(out, "| {} {} | {} | **{word}** | {more} |", row.id, row.name, row.text)?;
    }
    writeln!(out)?;
    for (what, names) in report.untold() {
        writeln!(out, "- {what}: {names}.")?;
    }
    writeln!(out, "\n## Faults\n\n| fault | strikes | shown to have bitten |\n| --- | --- | --- |")?;
    for (name, count, bitten) in report.strikes() {
        writeln!(out, "| {name} | {count} | {bitten} |")?;
    }
    writeln!(
        out,
        "\n## From the fault until it goes on, in ms\n\nMedian / 99th percentile / longest, counted by clients from the moment \
         of the fault.\n\n| fault | samples | next accepted submission | next dispatch |\n| --- | --- | --- | --- |"
    )?;
    for times in report.times() {
        let line = |values: [Option<f64>; 3]| values.map(ms).join(" / ");
        writeln!(
            out,
            "| {} | {} | {} | {} |",
            times.name,
            times.count,
            line(times.submission),
            line(times.dispatch)
        )?;
    }
    writeln!(out, "\n| what L4 promises | samples | p99 | bar | |\n| --- | --- | --- | --- | --- |")?;
    for bar in report.bars() {
        let (samples, p99, word) = (bar.samples, ms(bar.p99), bar.word());
        writeln!(out, "| {} | {samples} | {p99} | {:.0} | **{word}** |", bar.what, bar.bar)?;
    }
    writeln!(
        out,
        "\n## Rounds\n\n| seed | jobs | faults | verdict | command |\n| --- | --- | --- | --- | --- |"
    )?;
    for round in &report.rounds {
        let strikes: u64 = round.faults.values().map(|(count, _)| count).sum();
        writeln!(
            out,
            "| {} | {} | {strikes} | {} | `{}` |",
            round.info.seed,
            round.acknowledged,
            round.overall().word(),
            round.info.command
        )?;
    }
    let mut told = false;
    for round in &report.rounds {
        for judgement in &round.judgements {
            let Verdict::Fail { violations, .. } = &judgement.verdict else { continue };
            if !told {
                writeln!(out, "\n## Violations\n")?;
                told = true;
            }
            for violation in violations.iter().take(TOLD) {
                writeln!(out, "- seed {}, {}: {violation}", round.info.seed, judgement.promise)?;
            }
        }
    }
    Ok(())
}
