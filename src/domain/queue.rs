//! The ready queue as people see it, and the record of how it fared.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::ids::JobId;
use super::pause::Paused;

/// Lowest and highest priority.
pub const PRIORITIES: std::ops::RangeInclusive<u8> = 1..=10;

/// The ready queue at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct QueueView {
    /// Jobs that wait.
    pub depth: u64,
    /// Milliseconds that the job has waited which is next of its priority; the longest of them.
    pub oldest_wait_ms: Option<i64>,
    /// What is held back.
    #[serde(flatten)]
    pub paused: Paused,
    /// The most urgent priority first.
    pub priorities: Vec<PriorityView>,
}

/// The jobs of one priority that wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct PriorityView {
    /// 10 to 1.
    pub priority: u8,
    /// How many.
    pub depth: u64,
    /// Milliseconds that the next one has waited.
    pub oldest_wait_ms: Option<i64>,
}

impl QueueView {
    /// Puts the view together from what waits by priority, 1 first.
    pub fn new(depth: [u64; 10], oldest_wait_ms: [Option<i64>; 10], paused: Paused) -> Self {
        let by_priority = PRIORITIES.zip(depth.into_iter().zip(oldest_wait_ms));
        let view = |(priority, (depth, oldest_wait_ms))| PriorityView { priority, depth, oldest_wait_ms };
        Self {
            depth: depth.iter().sum(),
            oldest_wait_ms: oldest_wait_ms.into_iter().flatten().max(),
            paused,
            priorities: by_priority.rev().map(view).collect(),
        }
    }
}

/// A place in the order of dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// 1 to 10, 10 first.
    pub priority: u8,
    /// Within a priority the earliest first.
    pub submitted_at: DateTime<Utc>,
    /// Within a moment the lowest first.
    pub id: JobId,
}

/// One row of the series `queue_metrics`.
#[derive(Debug, Clone, PartialEq, Serialize, utoipa::ToSchema)]
#[expect(missing_docs, reason = "the columns of the specification's table")]
pub struct QueueMetrics {
    pub id: i64,
    /// Jobs in the ready queue.
    pub queue_depth: i32,
    pub pending_jobs: i32,
    pub running_jobs: i32,
    pub priority_1_count: i32,
    pub priority_2_count: i32,
    pub priority_3_count: i32,
    pub priority_4_count: i32,
    pub priority_5_count: i32,
    pub priority_6_count: i32,
    pub priority_7_count: i32,
    pub priority_8_count: i32,
    pub priority_9_count: i32,
    pub priority_10_count: i32,
    /// Workers that are not offline.
    pub total_workers: i32,
    pub idle_workers: i32,
    pub busy_workers: i32,
    /// Of the jobs that were assigned since the row before.
    pub average_wait_time_ms: Option<i32>,
    /// Of the attempts that were completed since the row before.
    pub average_execution_time_ms: Option<i32>,
    /// Completed attempts.
    pub jobs_per_minute: Option<f64>,
    pub recorded_at: DateTime<Utc>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_urgent_priority_comes_first_and_the_longest_wait_counts() {
        let (mut depth, mut waits) = ([0; 10], [None; 10]);
        (depth[0], depth[9]) = (3, 4);
        (waits[0], waits[9]) = (Some(900), Some(20));
        let view = QueueView::new(depth, waits, Paused::default());
        assert_eq!((view.depth, view.oldest_wait_ms), (7, Some(900)));
        let first = PriorityView { priority: 10, depth: 4, oldest_wait_ms: Some(20) };
        assert_eq!((view.priorities[0], view.priorities.len()), (first, 10));
    }
}
