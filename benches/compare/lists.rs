//! `lists`: pages of jobs, filters and statistics over REST at a follower, among a million finished jobs.

use std::time::Duration;

use cortex::domain::ambient::{Ambient, System};
use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::past::plant;
use crate::report::{BARS, Bar, Report, bar_row, figure, say, table};
use crate::stage::{ROOMY, Stage};
use crate::{Failure, Options};

/// Finished jobs.
const FINISHED: i64 = 1_000_000;
/// Page and its size.
const PAGES: [(u32, u32); 4] = [(1, 20), (1, 100), (1_000, 20), (1_000, 100)];
/// Requests for each page, unless they take too long.
const REQUESTS: u64 = 200;
/// Fewest requests, however long they take.
const FEWEST: u64 = 20;
/// Longest time for one cell.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is asked for, and how.
const FILTERS: [(&str, &str); 28] = [
    ("none", ""),
    ("status completed", "status=completed"),
    ("status failed", "status=failed"),
    ("status timeout", "status=timeout"),
    ("status queued", "status=queued"),
    ("priority, the default", "priority=5"),
    ("priority, frequent", "priority=3"),
    ("priority, rare", "priority=10"),
    ("model, frequent", "model_name=model-0"),
    ("model, rare", "model_name=model-480"),
    ("model, unknown", "model_name=nobody"),
    ("creator, frequent", "created_by=creator-0"),
    ("creator, rare", "created_by=creator-190"),
    ("creator, unknown", "created_by=nobody"),
    ("completed, frequent model", "status=completed&model_name=model-0"),
    ("completed, rare creator", "status=completed&created_by=creator-190"),
    ("completed, default priority", "status=completed&priority=5"),
    ("failed, frequent model", "status=failed&model_name=model-0"),
    ("frequent model, rare priority", "model_name=model-0&priority=10"),
    ("frequent model, frequent creator", "model_name=model-0&created_by=creator-0"),
    ("frequent creator, default priority", "created_by=creator-0&priority=5"),
    ("tag, of a few", "tag=run:run-77"),
    ("tag, unknown", "tag=run:none"),
    ("tag, of some", "tag=team:team-7"),
    ("tag, of many", "tag=env:prod"),
    ("completed, tag of many", "status=completed&tag=env:prod"),
    ("frequent model, tag of many", "model_name=model-0&tag=env:prod"),
    ("frequent model, tag of a few", "model_name=model-0&tag=run:run-77"),
];

/// What was measured.
struct Cell {
    tagged: bool,
    deep: bool,
    p50: f64,
    p99: f64,
}

pub async fn run(options: &Options, report: &mut Report) -> Result<(), Failure> {
    let finished = options.size(FINISHED, 20_000);
    let stage = Stage::start(ROOMY).await?;
    say(&format!("{finished} jobs are being stored"));
    plant(stage.cluster.database_url(), finished, "1 day").await?;
    let follower = (stage.leader().await? + 1) % stage.cluster.size();
    let asker =
        Asker { client: reqwest::Client::new(), url: format!("http://{}", stage.cluster.http(follower)) };
    let (mut rows, mut cells) = (Vec::new(), Vec::new());
    for (title, filter) in FILTERS {
        let mut row = vec![title.to_owned()];
        for (page, size) in PAGES {
            let path = format!("/api/v1/jobs?{filter}&page={page}&page_size={size}");
            let (total, times) = asker.ask(&path, options.size(REQUESTS, 3)).await?;
            let cell = Cell::of(&times, filter.contains("tag="), page > 1);
            let line = json!({"path": path, "total": total, "requests": times.len(), "p50_ms": cell.p50, "p99_ms": cell.p99});
            report.keep("cortex", title, 1, &line)?;
            if row.len() == 1 {
                row.push(total.to_string());
            }
            row.push(cell.shown());
            cells.push(cell);
        }
        rows.push(row);
    }
    let (_, times) = asker.ask("/api/v1/jobs/stats/summary", options.size(REQUESTS * 5, 3)).await?;
    let statistics = Cell::of(&times, false, false);
    report.keep("cortex", "statistics", 1, &json!({"p50_ms": statistics.p50, "p99_ms": statistics.p99}))?;
    stage.stop().await?;
    let worst = |tagged: bool, deep: bool| {
        let those = cells.iter().filter(|cell| cell.tagged == tagged && cell.deep == deep);
        those.map(|cell| cell.p99).max_by(f64::total_cmp)
    };
    let bar = Bar::AtMost(50.0, 50.0);
    let bars = [
        bar_row("page 1, slowest filter, p99", "ms", worst(false, false), bar),
        bar_row("page 1,000, slowest filter, p99", "ms", worst(false, true), bar),
        bar_row("page 1, slowest filter with a tag, p99", "ms", worst(true, false), bar),
        bar_row("page 1,000, slowest filter with a tag, p99", "ms", worst(true, true), bar),
        bar_row("statistics, p99", "ms", Some(statistics.p99), Bar::AtMost(5.0, 5.0)),
    ];
    let head = [
        "filter",
        "`total` on page 1",
        "page 1 of 20",
        "page 1 of 100",
        "page 1,000 of 20",
        "page 1,000 of 100",
    ];
    report.print("lists", &format!("{}\n{}", table(&head, &rows), table(&BARS, &bars)))
}

/// Asks one replica.
struct Asker {
    client: reqwest::Client,
    url: String,
}

impl Asker {
    /// Asks so often, one request at a time; answers `total`, if there is one, and the times in microseconds.
    async fn ask(&self, path: &str, requests: u64) -> Result<(i64, Histogram<u64>), Failure> {
        let mut times = Histogram::new_with_bounds(1, 600_000_000, 3)?;
        // The first ones bring into memory what the others find there.
        let mut total = 0;
        for _ in 0..3 {
            total = self.once(path).await?["total"].as_i64().unwrap_or(0);
        }
        let began = System.instant();
        let enough = |asked| asked >= requests || asked >= FEWEST && System.instant() - began > PATIENCE;
        while !enough(times.len()) {
            let before = System.instant();
            self.once(path).await?;
            times.saturating_record(
                u64::try_from((System.instant() - before).as_micros()).unwrap_or(u64::MAX),
            );
        }
        Ok((total, times))
    }

    async fn once(&self, path: &str) -> Result<Value, Failure> {
        let answer = self.client.get(format!("{}{path}", self.url)).send().await?.error_for_status()?;
        Ok(serde_json::from_slice(&answer.bytes().await?)?)
    }
}

impl Cell {
    fn of(times: &Histogram<u64>, tagged: bool, deep: bool) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "microseconds below 2^52")]
        let at = |part| times.value_at_quantile(part) as f64 / 1000.0;
        Self { tagged, deep, p50: at(0.5), p99: at(0.99) }
    }

    fn shown(&self) -> String {
        format!("{} / {}", figure(self.p50), figure(self.p99))
    }
}
