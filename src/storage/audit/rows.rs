//! Jobs by themselves and in numbers, and what names them.

use super::{AuditLimits, AuditRow, odd_rows};
use crate::storage::database::Database;
use crate::storage::error::StorageError;

impl Database {
    /// States of which the counters say another number than the rows. Reads all jobs once.
    pub async fn audit_counters(&self, limits: &AuditLimits) -> Result<Vec<AuditRow>, StorageError> {
        odd_rows!(
            self,
            limits,
            r#"SELECT 'counters_match_rows', c.status, format('the counters say %s, the rows %s', c.counted, c.stored)
               FROM (SELECT count(*) FILTER (WHERE status = 'pending') AS pending,
                         count(*) FILTER (WHERE status = 'queued') AS queued,
                         count(*) FILTER (WHERE status = 'assigned') AS assigned,
                         count(*) FILTER (WHERE status = 'running') AS running,
                         count(*) FILTER (WHERE status = 'completed') AS completed,
                         count(*) FILTER (WHERE status = 'failed') AS failed,
                         count(*) FILTER (WHERE status = 'cancelled') AS cancelled,
                         count(*) FILTER (WHERE status = 'timeout') AS timeout
                     FROM jobs) j,
                   (SELECT sum(pending) AS pending, sum(queued) AS queued, sum(assigned) AS assigned,
                        sum(running) AS running, sum(completed) AS completed, sum(failed) AS failed,
                        sum(cancelled) AS cancelled, sum(timeout) AS timeout
                    FROM job_counters) s,
                   LATERAL (VALUES ('pending', s.pending, j.pending), ('queued', s.queued, j.queued),
                       ('assigned', s.assigned, j.assigned), ('running', s.running, j.running),
                       ('completed', s.completed, j.completed), ('failed', s.failed, j.failed),
                       ('cancelled', s.cancelled, j.cancelled), ('timeout', s.timeout, j.timeout))
                       AS c (status, counted, stored)
               WHERE c.counted IS DISTINCT FROM c.stored"#
        )
    }

    /// Jobs that did one thing before another that comes first. Statements date what they do by their beginning and
    /// may wait for each other, for 5 s at the most. Reads all jobs once.
    pub async fn audit_times(&self, limits: &AuditLimits) -> Result<Vec<AuditRow>, StorageError> {
        odd_rows!(
            self,
            limits,
            r#"SELECT 'times_in_order', o.id::text, o.detail
               FROM (SELECT id, CASE
                         WHEN completed_at < coalesce(started_at, assigned_at) - interval '5 s'
                             THEN format('ended at %s, begun at %s', completed_at, coalesce(started_at, assigned_at))
                         WHEN started_at < assigned_at - interval '5 s'
                             THEN format('begun at %s, assigned at %s', started_at, assigned_at)
                         WHEN assigned_at < queued_at - interval '5 s'
                             THEN format('assigned at %s, queued at %s', assigned_at, queued_at)
                         WHEN least(queued_at, assigned_at, started_at, completed_at) < submitted_at - interval '5 s'
                             THEN format('at work or ended at %s, submitted at %s',
                                         least(queued_at, assigned_at, started_at, completed_at), submitted_at)
                         END AS detail
                     FROM jobs) o
               WHERE o.detail IS NOT NULL"#
        )
    }

    /// Idempotency keys that count and stand for jobs that are not stored, a minute after their first use. Looks each
    /// of the jobs up.
    pub async fn audit_keys(&self, limits: &AuditLimits) -> Result<Vec<AuditRow>, StorageError> {
        odd_rows!(
            self,
            limits,
            r#"SELECT 'keys_have_jobs', o.key, format('%s of its %s jobs are not stored', o.missing, o.named)
               FROM (SELECT k.scope || '/' || k.key AS key, k.named, count(*) AS missing
                     FROM (SELECT scope, key, cardinality(job_ids) AS named, unnest(job_ids) AS id
                           FROM idempotency_keys
                           WHERE created_at BETWEEN now() - interval '24 hours' AND now() - interval '1 minute') k
                         LEFT JOIN jobs j ON j.id = k.id
                     WHERE j.id IS NULL GROUP BY k.scope, k.key, k.named) o"#
        )
    }
}
