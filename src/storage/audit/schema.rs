//! Whether the schema is the one that the statements are made for, and in force.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{AuditLimits, AuditRow, Snapshot, odd_rows};
use crate::storage::database::Database;
use crate::storage::error::StorageError;

/// What the migrations that were applied say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SchemaAudit {
    /// What is odd: the migration, and what is odd about it.
    pub odd: Vec<(String, String)>,
    /// The schema is that of another version: its tables may be others than the statements suppose.
    pub foreign: bool,
}

/// A migration that was applied.
struct Applied {
    version: i64,
    checksum: Vec<u8>,
    success: bool,
}

impl Database {
    /// Compares the migrations that were applied with those that this program has.
    pub async fn audit_schema(&self, within: Duration) -> Result<SchemaAudit, StorageError> {
        let mut snapshot = Snapshot::of(self, within).await?;
        let known = sqlx::query_scalar!(r#"SELECT to_regclass('_sqlx_migrations') IS NOT NULL AS "known!""#)
            .fetch_one(snapshot.session())
            .await?;
        if !known {
            let odd =
                vec![("_sqlx_migrations".to_owned(), "the database has never been migrated".to_owned())];
            return Ok(SchemaAudit { odd, foreign: true });
        }
        // The migrator's own table, which no migration of ours makes.
        let rows: Vec<(i64, Vec<u8>, bool)> =
            sqlx::query_as("SELECT version, checksum, success FROM _sqlx_migrations")
                .fetch_all(snapshot.session())
                .await?;
        let applied =
            rows.into_iter().map(|(version, checksum, success)| Applied { version, checksum, success });
        Ok(compare(applied.map(|migration| (migration.version, migration)).collect()))
    }

    /// Constraints and indexes of the tables that are not there, or are there and do not hold.
    pub async fn audit_constraints(&self, limits: &AuditLimits) -> Result<Vec<AuditRow>, StorageError> {
        odd_rows!(
            self,
            limits,
            r#"SELECT 'constraints_in_force', o.id, o.detail
               FROM (SELECT e.relation || '.' || e.name AS id, CASE WHEN c.oid IS NULL THEN 'it is missing'
                         ELSE 'it does not hold for all rows' END AS detail
                     FROM unnest($2::text[], $3::text[]) AS e (relation, name)
                         LEFT JOIN pg_constraint c ON c.conname = e.name AND c.conrelid = to_regclass(e.relation)
                     -- Since PostgreSQL 18 one can be there without being enforced.
                     WHERE c.oid IS NULL OR NOT c.convalidated OR to_jsonb(c)->>'conenforced' = 'false'
                     UNION ALL
                     SELECT i.indrelid::regclass || '.' || i.indexrelid::regclass, 'the index is not valid'
                     FROM pg_index i
                     WHERE i.indrelid = ANY(ARRAY(SELECT to_regclass(relation) FROM unnest($2::text[]) AS e (relation)))
                         AND NOT (i.indisvalid AND i.indisready)) o"#,
            &CONSTRAINTS.map(|(relation, _)| relation.to_owned()),
            &CONSTRAINTS.map(|(_, name)| name.to_owned()),
        )
    }

    /// Whether the row is there that says who may write.
    pub async fn audit_leadership(&self, limits: &AuditLimits) -> Result<Vec<AuditRow>, StorageError> {
        odd_rows!(
            self,
            limits,
            r#"SELECT 'leadership_known', 'leadership', 'no replica has ever led on this database'
               WHERE NOT EXISTS (SELECT FROM leadership)"#
        )
    }

    /// The epoch that may write, if anybody has ever led.
    pub async fn stored_epoch(&self) -> Result<Option<i64>, StorageError> {
        Ok(sqlx::query_scalar!("SELECT epoch FROM leadership").fetch_optional(&self.reads).await?)
    }
}

fn compare(mut applied: BTreeMap<i64, Applied>) -> SchemaAudit {
    let (mut odd, mut foreign) = (Vec::new(), false);
    let migrator = sqlx::migrate!("./migrations");
    for ours in migrator.iter() {
        let what = match applied.remove(&ours.version) {
            None => "it was not applied",
            Some(theirs) if !theirs.success => "it was begun and not finished",
            Some(theirs) if theirs.checksum != *ours.checksum => {
                odd.push((ours.version.to_string(), "it was applied in another form".to_owned()));
                continue;
            }
            Some(_) => continue,
        };
        foreign = true;
        odd.push((ours.version.to_string(), what.to_owned()));
    }
    foreign |= !applied.is_empty();
    let newer = "it is of another version of CORTEX, which this program does not know";
    odd.extend(applied.into_keys().map(|version| (version.to_string(), newer.to_owned())));
    SchemaAudit { odd, foreign }
}

/// The constraints that the statements lean on.
pub(super) const CONSTRAINTS: [(&str, &str); 27] = [
    ("executions", "executions_attempt_from_one"),
    ("executions", "executions_end_is_dated"),
    ("executions", "executions_pkey"),
    ("executions", "executions_status_known"),
    ("idempotency_keys", "idempotency_keys_pkey"),
    ("job_counters", "job_counters_pkey"),
    ("jobs", "jobs_assigned_has_a_lease"),
    ("jobs", "jobs_counts_in_range"),
    ("jobs", "jobs_end_is_dated"),
    ("jobs", "jobs_lease_is_held"),
    ("jobs", "jobs_pending_has_a_time"),
    ("jobs", "jobs_pkey"),
    ("jobs", "jobs_priority_in_range"),
    ("jobs", "jobs_queued_is_dated"),
    ("jobs", "jobs_status_known"),
    ("jobs", "jobs_timeout_in_range"),
    ("jobs", "jobs_trace_context_well_formed"),
    ("jobs", "jobs_work_has_a_deadline"),
    ("leadership", "leadership_pkey"),
    ("leadership", "leadership_singleton_check"),
    ("leases", "leases_pkey"),
    ("queue_metrics", "queue_metrics_pkey"),
    ("workers", "workers_hostname_port_key"),
    ("workers", "workers_pkey"),
    ("workers", "workers_removed_is_offline"),
    ("workers", "workers_slots_in_range"),
    ("workers", "workers_status_known"),
];
