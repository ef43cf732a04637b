//! What the rows must be like, whoever wrote them: statements that look for those that are not.
//!
//! Each looks in one snapshot, which it takes with a connection of its own: read-only, so a standby can be asked as
//! well, without a lock beyond those of any read, with a limit of time and no parallel workers. All that is odd is
//! counted, and as much of it handed out as is asked for. Names of checks are those of `verify`, which knows
//! what they mean.

mod history;
mod leases;
mod rows;
mod schema;
mod waits;

use std::time::Duration;

use sqlx::AssertSqlSafe;
use sqlx::pool::PoolConnection;
use sqlx::postgres::Postgres;

use super::connections::{Connections, Session};
use super::database::Database;
use super::error::StorageError;

pub use schema::SchemaAudit;

/// Longest wait for a lock of a table, which only somebody who changes the schema makes us wait for.
const LOCK_TIMEOUT: &str = "5s";
/// Memory of one sort or hash.
const WORK_MEM: &str = "32MB";

/// How far a look goes.
#[derive(Debug, Clone, Copy)]
pub struct AuditLimits {
    /// Longest time of a statement.
    pub statement: Duration,
    /// Most findings of each check that are handed out; all are counted.
    pub keep: i64,
    /// `scheduler.worker_timeout`.
    pub worker_timeout: Duration,
}

/// Something that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditRow {
    /// The check that found it.
    pub name: String,
    /// What is odd, most often the id of a job.
    pub id: String,
    /// What is odd about it.
    pub detail: String,
    /// How much the check has found in all.
    pub total: i64,
}

/// One moment of the database.
struct Snapshot {
    connection: PoolConnection<Postgres>,
    pool: Connections,
}

impl Snapshot {
    async fn of(database: &Database, statement: Duration) -> Result<Self, StorageError> {
        let mut connection = database.reads.acquire().await?;
        // Closing it ends the transaction, whatever becomes of the caller.
        connection.close_on_drop();
        let begin = database.reads.opening("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
        let begin = format!(
            "{begin}; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'; \
             SET LOCAL work_mem = '{WORK_MEM}'; SET LOCAL max_parallel_workers_per_gather = 0",
            statement.as_millis()
        );
        sqlx::raw_sql(AssertSqlSafe(begin)).execute(&mut *connection).await?;
        Ok(Self { connection, pool: database.reads.clone() })
    }

    fn session(&mut self) -> Session<'_> {
        self.pool.session(&mut self.connection)
    }
}

/// The rows of a statement that names what is odd, `(name, id, detail)`: of each check all are counted, and the first
/// are answered, as many as `$1` says.
macro_rules! odd_rows {
    ($database:expr, $limits:expr, $statement:literal $(, $argument:expr)* $(,)?) => {{
        let mut snapshot = super::Snapshot::of($database, $limits.statement).await?;
        let rows = sqlx::query_as!(
            super::AuditRow,
            "WITH odd (name, id, detail) AS (" + $statement + r#")
             SELECT name AS "name!", id AS "id!", detail AS "detail!", total AS "total!"
             FROM (SELECT name, id, detail, count(*) OVER (PARTITION BY name) AS total,
                       row_number() OVER (PARTITION BY name ORDER BY id, detail) AS place
                   FROM odd) counted
             WHERE place <= $1 ORDER BY name, place"#,
            $limits.keep
            $(, $argument)*
        )
        .fetch_all(snapshot.session())
        .await?;
        Ok(rows)
    }};
}
use odd_rows;
