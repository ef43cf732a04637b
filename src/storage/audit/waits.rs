//! What the leader's loops should have seen to by now.

use super::{AuditLimits, AuditRow, odd_rows};
use crate::storage::database::Database;
use crate::storage::error::StorageError;

impl Database {
    /// Leases that have run out or whose workers are lost, retries that are due, workers whose load is not what they
    /// hold. Each is that for a moment in a healthy cluster too; what stays is odd. Reads indexes and small tables.
    pub async fn audit_waits(&self, limits: &AuditLimits) -> Result<Vec<AuditRow>, StorageError> {
        odd_rows!(
            self,
            limits,
            r#"SELECT o.name, o.id, o.detail
               FROM (WITH held AS MATERIALIZED (
                         SELECT j.id, j.lease_id, j.lease_expires_at, j.assigned_worker_id, j.assigned_at
                         FROM leases l JOIN jobs j ON j.id = l.job_id AND j.lease_id = l.id
                     )
                     SELECT 'leases_of_lost_workers' AS name, h.id::text AS id,
                         format('lease %s of worker %s, which is %s', h.lease_id, w.id, CASE
                             WHEN w.removed_at IS NOT NULL THEN 'removed'
                             WHEN w.status = 'offline' THEN 'offline' ELSE 'silent' END) AS detail
                     FROM held h JOIN workers w ON w.id = h.assigned_worker_id
                     WHERE w.status = 'offline' OR w.removed_at IS NOT NULL
                         -- A new leader gives each a heartbeat's time beyond the limit.
                         OR w.last_heartbeat < now() - make_interval(secs => 10 + w.heartbeat_interval_seconds
                             + least($2::float8, 3 * w.heartbeat_interval_seconds))
                     UNION ALL
                     SELECT 'leases_expired', h.id::text, format('lease %s ran out at %s', h.lease_id, h.lease_expires_at)
                     FROM held h WHERE h.lease_expires_at < now() - interval '3 s'
                     UNION ALL
                     SELECT 'leases_expired', j.id::text, format('driven from outside until %s', j.driven_until)
                     FROM jobs j WHERE j.driven_until < now() - interval '3 s'
                     UNION ALL
                     SELECT 'retries_promoted', j.id::text, format('due since %s', j.next_retry_at)
                     FROM jobs j WHERE j.next_retry_at < now() - interval '3 s'
                     UNION ALL
                     -- The leader writes a change within a second or two; only then can the two be compared.
                     SELECT 'worker_load_matches_leases', w.id::text,
                         format('its row says %s, and it holds %s', w.current_job_count, coalesce(held_by.jobs, 0))
                     FROM workers w LEFT JOIN (
                             SELECT assigned_worker_id AS id, count(*) AS jobs, max(assigned_at) AS newest
                             FROM held GROUP BY assigned_worker_id) held_by ON held_by.id = w.id
                     WHERE w.current_job_count <> coalesce(held_by.jobs, 0)
                         AND greatest(w.updated_at, held_by.newest) < now() - interval '5 s'
                    ) o"#,
            limits.worker_timeout.as_secs_f64(),
        )
    }
}
