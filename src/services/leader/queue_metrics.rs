//! Recording how the queue fares, and forgetting it after a while.

use std::time::{Duration, Instant};

use super::Leader;
use super::upkeep::UpkeepError;
use crate::domain::worker::WorkerStatus;
use crate::storage::{NewQueueMetrics, Totals};

/// Rows that are deleted in one transaction.
const PAGE: i64 = 1_000;
/// Pause while the ready queue is being rebuilt.
const REBUILT_SOON: Duration = Duration::from_secs(1);

/// What is remembered from one row to the next.
#[derive(Default)]
pub struct Recording {
    before: Option<(Instant, Totals)>,
}

impl Leader {
    /// Adds a row to `queue_metrics`. Averages and throughput are those since the row before; the first row of a
    /// leadership has none. Answers when to come again, if that is sooner than usual.
    pub async fn record_queue_metrics(
        &self,
        memory: &mut Recording,
    ) -> Result<Option<Duration>, UpkeepError> {
        let core = &self.core;
        let (database, queue) = (&core.parts.database, &core.parts.queue);
        let Some(depth) = queue.while_whole(queue.depth()).await? else {
            // A Redis that was just emptied would make it look as if no job waited.
            return Ok(Some(REBUILT_SOON));
        };
        let (now, totals, stats) = (core.now(), database.totals().await?, database.stats().await?);
        let workers = core.fleet().count_by_status();
        let of = |status| workers.get(&status).copied().unwrap_or(0);
        let row = NewQueueMetrics {
            depth: depth.map(|jobs| i32::try_from(jobs).unwrap_or(i32::MAX)),
            pending_jobs: column(stats.pending),
            running_jobs: column(stats.running),
            total_workers: column(workers.values().sum::<i64>() - of(WorkerStatus::Offline)),
            idle_workers: column(of(WorkerStatus::Idle)),
            busy_workers: column(of(WorkerStatus::Busy)),
            ..memory
                .before
                .map(|(at, before)| growth(before, totals, now.duration_since(at)))
                .unwrap_or_default()
        };
        core.transaction("record_queue_metrics", || async {
            let mut transaction = core.begin().await?;
            transaction.record_queue_metrics(&row).await?;
            transaction.commit().await
        })
        .await?;
        memory.before = Some((now, totals));
        Ok(None)
    }

    /// Deletes a page of the rows that are older than `age`. Answers when to go on, or `None` if there are no more.
    pub async fn prune_queue_metrics(&self, age: Duration) -> Result<Option<Duration>, UpkeepError> {
        let core = &self.core;
        let began = core.now();
        let gone = core
            .transaction("prune_queue_metrics", || async {
                let mut transaction = core.begin().await?;
                let gone = transaction.prune_queue_metrics(age, PAGE).await?;
                transaction.commit().await.map(|()| gone)
            })
            .await?;
        // As long a pause as the work took: others have something to do, too.
        let more = gone >= PAGE.unsigned_abs();
        Ok(more.then(|| core.now().saturating_duration_since(began)))
    }
}

/// Averages and throughput of the time between two rows.
fn growth(before: Totals, after: Totals, took: Duration) -> NewQueueMetrics {
    let average = |sum: i64, count: i64| (count > 0).then(|| column(sum / count));
    let executions = after.executions - before.executions;
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let per_minute = (executions as f64 * 60.0 / took.as_secs_f64().max(0.001)).clamp(0.0, 99_999_999.0);
    NewQueueMetrics {
        average_wait_time_ms: average(after.wait_ms - before.wait_ms, after.waits - before.waits),
        average_execution_time_ms: average(after.execution_ms - before.execution_ms, executions),
        jobs_per_minute: Some(per_minute),
        ..NewQueueMetrics::default()
    }
}

/// A number as the table holds it.
fn column(number: i64) -> i32 {
    i32::try_from(number.max(0)).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_tells_of_the_time_since_the_row_before() {
        let before = Totals { wait_ms: 1_000, waits: 10, execution_ms: 500, executions: 5 };
        let after = Totals { wait_ms: 1_900, waits: 13, execution_ms: 900, executions: 7 };
        let row = growth(before, after, Duration::from_secs(30));
        assert_eq!((row.average_wait_time_ms, row.average_execution_time_ms), (Some(300), Some(200)));
        assert_eq!(row.jobs_per_minute, Some(4.0));
    }

    #[test]
    fn without_jobs_there_are_no_averages_and_the_throughput_is_zero() {
        let row = growth(Totals::default(), Totals::default(), Duration::ZERO);
        assert_eq!((row.average_wait_time_ms, row.average_execution_time_ms), (None, None));
        assert_eq!(row.jobs_per_minute, Some(0.0));
    }
}
