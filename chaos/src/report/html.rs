//! `report.html`: one page that loads nothing.

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::{Report, Verdict, ms, timeline, words};
use crate::history::History;

const STYLE: &str = "
body { font: 15px/1.45 system-ui, sans-serif; max-width: 1040px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; width: 100%; margin: 1em 0; }
th, td { text-align: left; padding: .3em .6em; border-bottom: 1px solid #ddd; vertical-align: top; }
code { background: #f3f3f3; padding: .1em .3em; overflow-wrap: anywhere; }
.pass { color: #00664a; } .fail { color: #b00020; } .unknown { color: #8a5a00; }
.figures { display: flex; gap: 2em; flex-wrap: wrap; } .figures b { display: block; font-size: 1.6em; }
@media (prefers-color-scheme: dark) {
  body { background: #16181a; color: #ddd; } th, td { border-color: #333; } code { background: #26292c; }
  svg text { fill: #bbb; } .pass { color: #4fd1a5; } .fail { color: #ff7a85; } .unknown { color: #e6b04d; }
}";

pub(super) fn render(report: &Report, history: Option<&History>) -> Markup {
    let overall = report.overall().word();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { (report.title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (report.title) ": " span class=(overall) { (overall) } }
                p { code { (report.command) } }
                div .figures {
                    (figure(report.rounds.len() as u64, "rounds"))
                    (figure(report.total(|round| round.acknowledged), "acknowledged jobs"))
                    (figure(report.total(|round| round.faults.values().map(|(count, _)| count).sum()), "faults"))
                    (figure(report.total(|round| round.starts), "runs of jobs"))
                    (figure(report.total(|round| round.effects), "effects outside of the cluster"))
                    (figure(report.total(|round| round.unknown_submissions), "submissions with an unknown outcome"))
                }
                @if let Some(history) = history {
                    h2 { "Timeline" @if report.rounds.len() > 1 { " of the round with seed " (history.info.seed) } }
                    (timeline::draw(history))
                }
                h2 { "Promises" }
                (promises(report))
                ul { @for (what, names) in report.untold() { li { (what) ": " (names) "." } } }
                h2 { "From the fault until it goes on" }
                p { "Median / 99th percentile / longest in milliseconds, counted by clients from the moment of the fault." }
                (times(report))
                h2 { "Faults" }
                table {
                    tr { th { "fault" } th { "strikes" } th { "shown to have bitten" } }
                    @for (name, count, bitten) in report.strikes() {
                        tr { td { (name) } td { (count) } td { (bitten) } }
                    }
                }
                h2 { "Rounds" }
                (rounds(report))
            }
        }
    }
}

fn figure(value: u64, name: &str) -> Markup {
    html! { div { b { (value) } (name) } }
}

fn promises(report: &Report) -> Markup {
    html! {
        table {
            tr { th { "promise" } th { "in full" } th { "verdict" } }
            @for row in report.rows() {
                @let (word, more) = words(&row.verdict);
                tr {
                    td { (row.id) " " (row.name) }
                    td { (row.text) }
                    td { b class=(word) { (word) } " " (more)
                        @if let Verdict::Fail { violations, .. } = &row.verdict {
                            ul { @for violation in violations { li { (violation) } } }
                        }
                    }
                }
            }
        }
    }
}

fn times(report: &Report) -> Markup {
    let line = |values: [Option<f64>; 3]| values.map(ms).join(" / ");
    html! {
        table {
            tr { th { "fault" } th { "samples" } th { "next accepted submission" } th { "next dispatch" } }
            @for times in report.times() {
                tr { td { (times.name) } td { (times.count) } td { (line(times.submission)) } td { (line(times.dispatch)) } }
            }
        }
        table {
            tr { th { "what" } th { "samples" } th { "p99, ms" } th { "bar, ms" } th {} }
            @for bar in report.bars() {
                tr {
                    td { (bar.what) } td { (bar.samples) } td { (ms(bar.p99)) } td { (format!("{:.0}", bar.bar)) }
                    td { b class=(bar.word()) { (bar.word()) } }
                }
            }
        }
    }
}

fn rounds(report: &Report) -> Markup {
    html! {
        table {
            tr { th { "seed" } th { "jobs" } th { "faults" } th { "verdict" } th { "command" } }
            @for round in &report.rounds {
                @let overall = round.overall().word();
                tr {
                    td { (round.info.seed) }
                    td { (round.acknowledged) }
                    td { (round.faults.iter().map(|(name, (count, _))| format!("{name} {count}")).collect::<Vec<_>>().join(", ")) }
                    td { b class=(overall) { (overall) } }
                    td { code { (round.info.command) } }
                }
            }
        }
    }
}
