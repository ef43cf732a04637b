//! `cortex verify`: whether a live installation is as it must be, as far as PostgreSQL and Redis can tell.
//!
//! Only reads. What one snapshot decides is reported at once. What a healthy cluster has for a moment, and what two
//! stores say that are looked at one after the other, is looked at twice, `settle` apart, and counts only if the
//! same is odd in the same way both times. A check that could not be made is unknown, never clean. What is kept of
//! what is found is bounded; how much there is, is counted.
//!
//! It repairs nothing, and knows nothing of what only replicas know: Raft, and who is connected.

mod catalog;
mod queue;
mod report;
mod rows;

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use catalog::Group;
pub use catalog::{CHECKS, Check, Severity, check};
pub use report::{Checked, Finding, Outcome, Report, Sample, Verdict};

use crate::domain::ambient::Ambient;
use crate::ready_queue::ReadyQueue;
use crate::storage::{AuditLimits, Database};
use crate::telemetry::whole_story;

/// Findings of each check that are remembered until the second look.
const KEEP: usize = 100_000;

/// How to look.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Time between the two looks, if the first has found what may settle.
    pub settle: Duration,
    /// Most findings of each check that are shown.
    pub samples: usize,
    /// Longest time of a statement.
    pub statement_timeout: Duration,
    /// `scheduler.worker_timeout`.
    pub worker_timeout: Duration,
}

/// What the checks of a group have found, by their names; a check that is not named has found nothing. Or why they
/// could not be made.
type Looked = Result<BTreeMap<String, Odd>, String>;
/// The groups that were looked at.
type Looks = BTreeMap<Group, Looked>;

/// What one check has found.
#[derive(Debug, Clone, Default)]
struct Odd {
    total: u64,
    /// What, and what is odd about it; at most [`KEEP`].
    rows: Vec<(String, String)>,
}

impl Odd {
    fn push(&mut self, id: impl ToString, detail: impl Into<String>) {
        self.total += 1;
        if self.rows.len() < KEEP {
            self.rows.push((id.to_string(), detail.into()));
        }
    }

    fn extend(&mut self, found: Option<(String, String)>) {
        if let Some((id, detail)) = found {
            self.push(id, detail);
        }
    }

    /// What a scan has named twice counts once.
    fn once_each(mut self) -> Self {
        let named = self.rows.len();
        self.rows.sort_unstable();
        self.rows.dedup();
        self.total -= (named - self.rows.len()) as u64;
        self
    }

    fn is_cut(&self) -> bool {
        self.total > self.rows.len() as u64
    }
}

/// Looks at everything.
pub async fn run(database: &Database, queue: &ReadyQueue, options: &Options, clock: &dyn Ambient) -> Report {
    let began = clock.instant();
    let stores = Stores { database, queue, options };
    let first = stores.look(&Group::ALL).await;
    let has_found = |group: &Group| {
        let looked = first.get(group).and_then(|looked| looked.as_ref().ok());
        looked.is_some_and(|found| found.values().any(|odd| odd.total > 0))
    };
    let unsettled: Vec<Group> =
        Group::ALL.into_iter().filter(|group| group.settles() && has_found(group)).collect();
    let mut second = Looks::new();
    if !unsettled.is_empty() {
        tokio::time::sleep(options.settle).await;
        second = stores.look(&unsettled).await;
    }
    let outcomes = CHECKS.iter().map(|check| (check, outcome(check, &first, &second))).collect();
    Report::of(outcomes, options.samples, clock.instant().duration_since(began))
}

/// What becomes of a check after one look, or two.
fn outcome(check: &Check, first: &Looks, second: &Looks) -> Outcome {
    let found = match first.get(&check.group) {
        None => return Outcome::Unknown { reason: "it was not looked at".to_owned() },
        Some(Err(reason)) => return Outcome::Unknown { reason: reason.clone() },
        Some(Ok(found)) => found.get(check.name).filter(|odd| odd.total > 0),
    };
    let Some(before) = found else { return Outcome::Clean };
    if !check.settles() {
        return Outcome::Off(Finding::of(check, before.total, false, before.rows.clone()));
    }
    let again = match second.get(&check.group) {
        None => return Outcome::Unknown { reason: "it was not looked at again".to_owned() },
        Some(Err(reason)) => return Outcome::Unknown { reason: format!("at the second look: {reason}") },
        Some(Ok(found)) => found.get(check.name).filter(|odd| odd.total > 0),
    };
    let Some(now) = again else { return Outcome::Clean };
    let known: HashSet<_> = before.rows.iter().collect();
    let stayed: Vec<_> = now.rows.iter().filter(|row| known.contains(row)).cloned().collect();
    let at_least = before.is_cut() || now.is_cut();
    if stayed.is_empty() {
        return match at_least {
            true => Outcome::Unknown {
                reason: "more was found than can be compared; look again later".to_owned(),
            },
            false => Outcome::Clean,
        };
    }
    Outcome::Off(Finding::of(check, stayed.len() as u64, at_least, stayed))
}

/// Both stores.
struct Stores<'a> {
    database: &'a Database,
    queue: &'a ReadyQueue,
    options: &'a Options,
}

impl Stores<'_> {
    /// What statements of a group may take and answer: what is not compared need not be kept.
    fn limits(&self, group: Group) -> AuditLimits {
        let keep = if group.settles() { KEEP } else { self.options.samples };
        AuditLimits {
            statement: self.options.statement_timeout,
            // One row at least, or nobody would learn how many there are.
            keep: i64::try_from(keep.max(1)).unwrap_or(i64::MAX),
            worker_timeout: self.options.worker_timeout,
        }
    }

    /// Looks at these groups, one after the other: nobody who serves requests is to feel it.
    async fn look(&self, groups: &[Group]) -> Looks {
        let (schema, rows_readable) = self.schema().await;
        let queue_readable = self.queue.ping().await.map_err(|error| whole_story(&error));
        let mut looks = Looks::new();
        for &group in groups {
            let looked = if group == Group::Schema {
                schema.clone()
            } else if let Err(reason) = &rows_readable {
                Err(reason.clone())
            } else if let Some(looked) = self.rows(group).await {
                looked
            } else if let Err(reason) = &queue_readable {
                Err(reason.clone())
            } else {
                self.queue_group(group).await.unwrap_or_else(|| Err("it was not looked at".to_owned()))
            };
            looks.insert(group, looked);
        }
        looks
    }
}
