//! What PostgreSQL alone decides.

use super::catalog::Group;
use super::{Looked, Odd, Stores};
use crate::storage::{AuditRow, StorageError};
use crate::telemetry::whole_story;

impl Stores<'_> {
    /// Whether the schema is ours, and whether anything else of it can be understood.
    pub(super) async fn schema(&self) -> (Looked, Result<(), String>) {
        match self.database.audit_schema(self.options.statement_timeout).await {
            Err(error) => {
                let reason = whole_story(&error);
                (Err(reason.clone()), Err(reason))
            }
            Ok(audit) => {
                let mut odd = Odd::default();
                for (migration, detail) in audit.odd {
                    odd.push(migration, detail);
                }
                let readable = if audit.foreign {
                    Err("the schema is that of another version: see schema_current".to_owned())
                } else {
                    Ok(())
                };
                (Ok([("schema_current".to_owned(), odd)].into()), readable)
            }
        }
    }

    /// A group whose checks are statements.
    pub(super) async fn rows(&self, group: Group) -> Option<Looked> {
        let (database, limits) = (self.database, &self.limits(group));
        let rows = match group {
            Group::Constraints => database.audit_constraints(limits).await,
            Group::Leadership => database.audit_leadership(limits).await,
            Group::Counters => database.audit_counters(limits).await,
            Group::Times => database.audit_times(limits).await,
            Group::Histories => database.audit_histories(limits).await,
            Group::Leases => database.audit_leases(limits).await,
            Group::Keys => database.audit_keys(limits).await,
            Group::Waits => database.audit_waits(limits).await,
            Group::Schema
            | Group::QueueState
            | Group::QueueClaims
            | Group::QueueEntries
            | Group::QueuedJobs => return None,
        };
        Some(gathered(rows))
    }
}

fn gathered(rows: Result<Vec<AuditRow>, StorageError>) -> Looked {
    let mut found = std::collections::BTreeMap::<String, Odd>::new();
    for row in rows.map_err(|error| whole_story(&error))? {
        let odd = found.entry(row.name).or_default();
        odd.total = row.total.unsigned_abs();
        odd.rows.push((row.id, row.detail));
    }
    Ok(found)
}
