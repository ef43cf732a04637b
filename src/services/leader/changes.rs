//! Telling of changes, after their commit, while anybody wants to know.
//!
//! Nothing is kept while nobody asks; then a change costs one look at a flag.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::{Core, Leader};
use crate::domain::changes::{ChangeLog, Cursor, JobChange};
use crate::domain::ids::Epoch;
use crate::services::command::{Changes, ReadChanges};
use crate::services::error::ServiceError;

/// How long changes are kept that nobody asks for.
const KEEP: Duration = Duration::from_secs(60);
/// Most changes of one answer.
const BATCH: usize = 1_000;

/// The changes of one leadership.
pub(super) struct Announcer {
    wanted: AtomicBool,
    record: Mutex<Record>,
    news: Notify,
}

struct Record {
    log: ChangeLog,
    asked: Option<Instant>,
}

impl Announcer {
    /// Numbers go on from the microsecond: a leader that starts over under the same epoch must not give one a second
    /// time, and a million changes in a second are more than there can be.
    pub(super) fn of(epoch: Epoch, now: DateTime<Utc>) -> Self {
        let number = now.timestamp_micros().cast_unsigned();
        let record = Record { log: ChangeLog::after(Cursor { epoch, number }), asked: None };
        Self { wanted: AtomicBool::new(false), record: Mutex::new(record), news: Notify::new() }
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// Tells of changes that were committed. What a later commit depends on is told before that.
    pub(super) fn announce<I: IntoIterator<Item = JobChange>>(&self, changes: impl FnOnce() -> I) {
        let announcer = &self.changes;
        if !announcer.wanted.load(Ordering::Acquire) {
            return;
        }
        let mut record = announcer.record();
        if record.asked.is_none_or(|asked| self.now().duration_since(asked) > KEEP) {
            announcer.wanted.store(false, Ordering::Release);
            record.log.restart();
            return;
        }
        record.log.extend(changes());
        drop(record);
        announcer.news.notify_waiters();
    }

    /// The changes after a place. From the answer on none is left out: who looks at a job afterwards misses nothing.
    fn changes_after(&self, after: Option<Cursor>) -> Changes {
        let announcer = &self.changes;
        let mut record = announcer.record();
        record.asked = Some(self.now());
        if !announcer.wanted.swap(true, Ordering::AcqRel) {
            record.log.restart();
        }
        let from = after.filter(|after| record.log.reaches(*after)).unwrap_or(record.log.start());
        let read = record.log.read(from, BATCH).unwrap_or_default();
        Changes {
            from,
            changes: read.into_iter().map(|(_, change)| change).collect(),
            head: record.log.head(),
        }
    }
}

impl Leader {
    /// The changes after a place; waits for some if there are none.
    pub(super) async fn read_changes(&self, wanted: ReadChanges) -> Result<Changes, ServiceError> {
        let core = &self.core;
        let mut end = core.end.subscribe();
        let news = core.changes.news.notified();
        tokio::pin!(news);
        news.as_mut().enable();
        let now = core.changes_after(wanted.after);
        if !now.changes.is_empty() || wanted.after != Some(now.from) {
            return Ok(now);
        }
        tokio::select! {
            _ = end.wait_for(Option::is_some) => Err(ServiceError::NoLeader),
            _ = timeout(wanted.wait, news) => Ok(core.changes_after(wanted.after)),
        }
    }
}
