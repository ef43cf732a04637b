//! The attempts of each job, one after the other.

use super::{AuditLimits, AuditRow, odd_rows};
use crate::storage::database::Database;
use crate::storage::error::StorageError;

impl Database {
    /// Attempts that do not follow from those before them, or do not fit to their job. Reads all executions and jobs
    /// once, and sorts the executions.
    pub async fn audit_histories(&self, limits: &AuditLimits) -> Result<Vec<AuditRow>, StorageError> {
        odd_rows!(
            self,
            limits,
            r#"SELECT c.name, coalesce(h.job_id, j.id)::text, c.detail
               FROM (SELECT e.id, e.job_id, e.attempt_number AS attempt, e.status, e.created_at,
                         lag(e.attempt_number) OVER one AS former, lag(e.status) OVER one AS former_status,
                         max(coalesce(e.completed_at, 'infinity')) OVER before AS busy_until,
                         count(*) FILTER (WHERE e.status = 'completed') OVER before AS completions,
                         lead(e.id) OVER one IS NULL AS last
                     FROM executions e
                     WINDOW one AS (PARTITION BY e.job_id ORDER BY e.created_at, e.id),
                         before AS (PARTITION BY e.job_id ORDER BY e.created_at, e.id
                                    ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)) h
                   FULL JOIN jobs j ON j.id = h.job_id
                   CROSS JOIN LATERAL (VALUES
                       -- One that was given back before it ran spends no attempt.
                       ('attempts_in_sequence', CASE
                           WHEN h.attempt < h.former OR h.attempt = h.former AND h.former_status <> 'cancelled'
                               THEN format('lease %s: attempt %s after attempt %s, which is %s',
                                           h.id, h.attempt, h.former, h.former_status)
                           WHEN h.attempt > j.retry_count + 1 OR h.id = j.lease_id AND h.attempt <> j.retry_count + 1
                               THEN format('lease %s: attempt %s of a job with %s retries spent',
                                           h.id, h.attempt, j.retry_count) END),
                       ('attempts_without_gaps', CASE WHEN h.attempt > coalesce(h.former, 0) + 1
                           THEN format('lease %s: attempt %s, and the one before is %s', h.id, h.attempt,
                                       coalesce(h.former::text, 'none')) END),
                       ('one_lease_at_a_time', CASE WHEN h.created_at < h.busy_until
                           THEN format('lease %s was granted before the one before it ended', h.id) END),
                       ('completed_once', CASE
                           WHEN h.completions > 0
                               THEN format('lease %s, %s, was granted after the job was completed', h.id, h.status)
                           WHEN h.status = 'completed' AND j.status <> 'completed'
                               THEN format('lease %s completed the job, which is %s', h.id, j.status) END),
                       -- Jobs that were driven from outside, or ended while they waited, have no time of assignment.
                       ('jobs_end_as_their_attempts', CASE
                           WHEN j.completed_at IS NULL OR j.assigned_at IS NULL THEN NULL
                           WHEN h.id IS NULL THEN format('assigned and %s, without any execution', j.status)
                           WHEN h.last AND h.status <> j.status
                               THEN format('%s, and its last attempt, lease %s, is %s', j.status, h.id, h.status) END),
                       ('executions_have_jobs', CASE WHEN j.id IS NULL
                           THEN format('lease %s, %s, belongs to no job', h.id, h.status) END)
                   ) AS c (name, detail)
               WHERE c.detail IS NOT NULL
                   -- Most jobs have one attempt, and nothing of all that can be said of them: taking them out first
                   -- takes a third of the time.
                   AND (j.id IS NOT NULL AND h.former IS NULL AND h.last AND h.attempt = 1
                       AND (h.status <> 'completed' OR j.status = 'completed')
                       AND (j.completed_at IS NULL OR j.assigned_at IS NULL OR h.status = j.status)
                       AND (h.id IS DISTINCT FROM j.lease_id OR j.retry_count = 0)) IS NOT TRUE"#
        )
    }
}
