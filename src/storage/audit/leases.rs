//! Whether the three places that know of a live lease agree: the job, its execution, and the table of leases.

use super::{AuditLimits, AuditRow, odd_rows};
use crate::storage::database::Database;
use crate::storage::error::StorageError;

impl Database {
    /// Leases of which not all places say the same. Reads all jobs and executions once.
    pub async fn audit_leases(&self, limits: &AuditLimits) -> Result<Vec<AuditRow>, StorageError> {
        odd_rows!(
            self,
            limits,
            r#"SELECT o.name, o.id, o.detail
               FROM (WITH held AS MATERIALIZED (
                         SELECT id, status, lease_id, assigned_worker_id FROM jobs WHERE lease_id IS NOT NULL
                     ), live AS MATERIALIZED (
                         SELECT id, job_id FROM executions WHERE status IN ('started', 'running')
                     )
                     SELECT 'leases_match_executions' AS name, h.id::text AS id, CASE
                         WHEN e.id IS NULL THEN format('lease %s has no execution', h.lease_id)
                         WHEN e.job_id <> h.id THEN format('lease %s is that of job %s', h.lease_id, e.job_id)
                         WHEN e.worker_id <> h.assigned_worker_id
                             THEN format('lease %s is that of worker %s, the job says %s', h.lease_id, e.worker_id,
                                         h.assigned_worker_id)
                         ELSE format('%s, and its lease %s is %s', h.status, h.lease_id, e.status) END AS detail
                     FROM held h LEFT JOIN executions e ON e.id = h.lease_id
                     WHERE (e.job_id, e.worker_id, e.status) IS DISTINCT FROM
                         (h.id, h.assigned_worker_id, CASE h.status WHEN 'running' THEN 'running' ELSE 'started' END)
                     UNION ALL
                     SELECT 'leases_match_executions', e.job_id::text,
                         format('lease %s has not ended, and the job does not have it', e.id)
                     FROM live e LEFT JOIN held h ON h.lease_id = e.id WHERE h.id IS NULL
                     UNION ALL
                     SELECT 'leases_match_jobs', coalesce(l.job_id, h.id)::text,
                         format('the table of leases says %s, the job %s', coalesce(l.id::text, 'none'),
                                coalesce(h.lease_id::text, 'none'))
                     FROM leases l FULL JOIN held h ON h.id = l.job_id WHERE l.id IS DISTINCT FROM h.lease_id
                     UNION ALL
                     SELECT 'lease_holders_known', h.id::text,
                         format('lease %s is held by worker %s, which is not registered', h.lease_id,
                                h.assigned_worker_id)
                     FROM held h LEFT JOIN workers w ON w.id = h.assigned_worker_id WHERE w.id IS NULL
                    ) o"#
        )
    }
}
