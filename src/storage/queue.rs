//! Looks at the jobs that wait in the queue, by the index of ready jobs.

use chrono::{DateTime, Utc};

use super::database::Database;
use super::error::StorageError;
use crate::domain::ids::JobId;
use crate::domain::queue::{PRIORITIES, Place};

impl Database {
    /// How long the next job of each priority has waited, in milliseconds: index 0 is priority 1.
    pub async fn oldest_waits(&self) -> Result<[Option<i64>; 10], StorageError> {
        // One step into the index for each priority, however many jobs wait.
        let rows = sqlx::query!(
            r#"SELECT p.priority AS "priority!",
                   (SELECT greatest(0, extract(epoch FROM now() - j.queued_at) * 1000)::bigint FROM jobs j
                    WHERE j.ready AND -j.priority = -p.priority
                    ORDER BY -j.priority, j.submitted_at, j.id LIMIT 1) AS wait_ms
               FROM generate_series(1, 10) AS p (priority)"#
        )
        .fetch_all(&self.reads)
        .await?;
        let mut waits = [None; 10];
        for row in rows {
            if let Some(wait) = usize::try_from(row.priority - 1).ok().and_then(|at| waits.get_mut(at)) {
                *wait = row.wait_ms;
            }
        }
        Ok(waits)
    }

    /// A page of the jobs that have waited since `until` or longer, in dispatch order, after `after`; those of
    /// one priority, or all.
    pub async fn waiting_since(
        &self,
        until: DateTime<Utc>,
        priority: Option<u8>,
        after: Option<Place>,
        limit: i64,
    ) -> Result<Vec<Place>, StorageError> {
        let highest = i32::from(priority.unwrap_or(*PRIORITIES.end()));
        let lowest = i32::from(priority.unwrap_or(*PRIORITIES.start()));
        let rows = sqlx::query!(
            "SELECT id, priority, submitted_at FROM jobs
             WHERE ready AND (-priority, submitted_at, id) > ($1::int, $2::timestamptz, $3::uuid)
                 AND -priority BETWEEN $4::int AND $5::int AND queued_at <= $6
             ORDER BY -priority, submitted_at, id LIMIT $7",
            after.map_or(i32::MIN, |place| -i32::from(place.priority)),
            after.map_or(DateTime::UNIX_EPOCH, |place| place.submitted_at),
            after.map_or(uuid::Uuid::nil(), |place| place.id.0),
            -highest,
            -lowest,
            until,
            limit,
        )
        .fetch_all(&self.reads)
        .await?;
        let place = |(id, priority, submitted_at)| Place {
            priority: u8::try_from(priority).unwrap_or_default(),
            submitted_at,
            id: JobId(id),
        };
        Ok(rows.into_iter().map(|row| place((row.id, row.priority, row.submitted_at))).collect())
    }
}
