//! Lines of JSON, medians and Markdown.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use cortex::domain::ambient::{Ambient, System};
use serde_json::{Value, json};

use crate::Failure;

/// What is printed where there is no figure.
pub const NONE: &str = "–";

/// Where the runs of this program go.
pub struct Report {
    file: File,
    path: PathBuf,
    document: Option<PathBuf>,
    failed: bool,
}

/// What must be reached.
#[derive(Debug, Clone, Copy)]
pub enum Bar {
    AtLeast(f64, f64),
    AtMost(f64, f64),
}

impl Report {
    pub fn start(what: &str, document: Option<PathBuf>) -> Result<Self, Failure> {
        let name = format!("compare-{what}-{}.jsonl", System.now().format("%Y%m%d-%H%M%S"));
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        Ok(Self { file: File::create(&path)?, path, document, failed: false })
    }

    /// Keeps a run.
    pub fn keep(&mut self, system: &str, case: &str, round: u32, line: &Value) -> Result<(), Failure> {
        let record = json!({"system": system, "case": case, "round": round, "line": line});
        writeln!(self.file, "{record}")?;
        say(&format!("{system} {case} {round}: {}", brief(line)));
        Ok(())
    }

    /// A run of CORTEX came to nothing.
    pub fn fail(&mut self, what: &str, error: &Failure) {
        self.failed = true;
        say(&format!("{what} FAILED: {error}"));
    }

    /// Prints a table, and puts it between its marks in the document, if there is one.
    pub fn print(&self, section: &str, table: &str) -> Result<(), Failure> {
        println!("{table}");
        let Some(path) = &self.document else { return Ok(()) };
        let text = fs::read_to_string(path)?;
        fs::write(path, replace(&text, section, table)?)?;
        Ok(())
    }

    /// Says where the runs are; answers whether all worked.
    pub fn finish(self) -> bool {
        say(&format!("every run is in {}", self.path.display()));
        !self.failed
    }
}

/// For people, on standard error.
pub fn say(text: &str) {
    eprintln!("{} {text}", System.now().format("%H:%M:%S"));
}

/// The text with another table between the marks of a section.
fn replace(text: &str, section: &str, table: &str) -> Result<String, Failure> {
    let begin = format!("<!-- {section}: written by benches/compare -->\n");
    let end = format!("<!-- end of {section} -->");
    let missing = || format!("the document has no section {section}");
    let (before, rest) = text.split_once(&begin).ok_or_else(missing)?;
    let (_, after) = rest.split_once(&end).ok_or_else(missing)?;
    Ok(format!("{before}{begin}\n{}\n\n{end}{after}", table.trim_end()))
}

fn brief(line: &Value) -> String {
    let keys = ["jobs", "jobs_per_s", "p50_ms", "p99_ms", "refused", "cpu_client_s", "cpu_stolen_s", "notes"];
    let known = keys.iter().filter_map(|key| match &line[key] {
        Value::Null => None,
        Value::Number(number) => Some(format!("{key} {}", figure(number.as_f64().unwrap_or(0.0)))),
        other => Some(format!("{key} {other}")),
    });
    let known: Vec<String> = known.collect();
    if known.is_empty() { line.to_string() } else { known.join(", ") }
}

/// A Markdown table.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let mut text = format!("| {} |\n|{}\n", head.join(" | "), " --- |".repeat(head.len()));
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

/// The figures of one kind in several runs.
pub fn figures(lines: &[Value], key: &str) -> Vec<f64> {
    lines.iter().filter_map(|line| line[key].as_f64()).collect()
}

/// The middle one, or the mean of the two in the middle.
pub fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    Some(if sorted.len() % 2 == 1 { upper } else { f64::midpoint(sorted[middle - 1], upper) })
}

/// Median, and in brackets the smallest and the largest where there are several.
pub fn spread(figures: &[f64]) -> String {
    let Some(middle) = median(figures) else { return NONE.to_owned() };
    let (least, most) = figures
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), one| (least.min(*one), most.max(*one)));
    if figures.len() == 1 {
        return figure(middle);
    }
    format!("{} ({}–{})", figure(middle), figure(least), figure(most))
}

/// One by another, if both are known.
pub fn ratio(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    other.filter(|other| *other > 0.0).and_then(|other| one.map(|one| one / other))
}

/// A number as people read it: thousands parted, three digits that count.
pub fn figure(number: f64) -> String {
    if number.abs() < 10.0 {
        return format!("{number:.2}");
    }
    if number.abs() < 100.0 {
        return format!("{number:.1}");
    }
    let digits = format!("{:.0}", number.abs());
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0.0 { format!("-{text}") } else { text }
}

/// The row of something that must be reached: what, measured, required, aimed at, and how it stands.
pub fn bar_row(what: &str, unit: &str, measured: Option<f64>, bar: Bar) -> Vec<String> {
    let (sign, required, aimed_at) = match bar {
        Bar::AtLeast(required, aimed_at) => ("≥", required, aimed_at),
        Bar::AtMost(required, aimed_at) => ("≤", required, aimed_at),
    };
    let with_unit = |number: f64| format!("{} {unit}", figure(number)).trim_end().to_owned();
    let reaches = |limit: f64, measured: f64| match bar {
        Bar::AtLeast(..) => measured >= limit,
        Bar::AtMost(..) => measured <= limit,
    };
    let standing = match measured {
        None => NONE,
        Some(measured) if reaches(aimed_at, measured) => "goal",
        Some(measured) if reaches(required, measured) => "bar",
        Some(_) => "below",
    };
    vec![
        what.to_owned(),
        measured.map_or_else(|| NONE.to_owned(), with_unit),
        format!("{sign} {}", with_unit(required)),
        format!("{sign} {}", with_unit(aimed_at)),
        standing.to_owned(),
    ]
}

/// The head of a table of such rows.
pub const BARS: [&str; 5] = ["what", "measured", "bar", "goal", "reached"];
