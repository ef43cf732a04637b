//! The fence: no write of a leader whom another one has replaced.
//!
//! A leader takes over by storing its epoch under an exclusive advisory lock. Each of its transactions takes
//! the same lock shared and checks the epoch: `cortex_fence` at the beginning of a [`FencedTransaction`],
//! `cortex_pass` within a statement that commits by itself. So taking over waits for what older leaders have
//! under way and shuts out all that comes later. Limits bound that wait when an old leader freezes in the
//! middle of a transaction: 2 s for a statement, 500 ms for a lock, 400 ms idle. The connection has them, and
//! behind a pooler each transaction (see `connections`).

use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Connection, Postgres};

use super::connections::{Connections, Session, Single};
use super::database::Database;
use super::error::StorageError;
use crate::domain::ids::{ClusterId, Epoch};
use crate::security::Vault;

/// Whatever the database's defaults are: with an older snapshot the fence would not see a newer epoch.
const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE";

/// A check that looks at nothing. One that a test has put in the place of the product's stays.
#[cfg(feature = "planted-defects")]
const FENCE_OFF: &str = "DO $plant$ BEGIN
    IF (SELECT prosrc FROM pg_proc WHERE proname = 'cortex_pass') LIKE '%is fenced off%' THEN
        CREATE OR REPLACE FUNCTION cortex_pass(of_cluster UUID, of_epoch BIGINT) RETURNS BOOLEAN LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_xact_lock_shared(cortex_fence_key());
            RETURN TRUE;
        END $$;
    END IF;
END $plant$";

/// What a leader must show to write: its Raft group and its epoch. A single statement may show it by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fence {
    /// The Raft group.
    pub cluster_id: ClusterId,
    /// The log index of the leadership.
    pub epoch: Epoch,
}

/// A transaction that has passed the fence and holds it open. Dropping it rolls back.
pub struct FencedTransaction {
    connection: Option<PoolConnection<Postgres>>,
    pool: Connections,
    pub(super) vault: Vault,
}

impl Database {
    /// Makes `fence` the current one, once no transaction of an older leader is under way.
    pub async fn take_over(&self, fence: Fence, term: i64, leader_id: i64) -> Result<(), StorageError> {
        let mut connection = self.writes.acquire().await?;
        #[cfg(feature = "planted-defects")]
        if crate::planted::planted(crate::planted::Plant::FenceOff) {
            sqlx::raw_sql(FENCE_OFF).execute(&mut *connection).await?;
        }
        let statements = format!(
            "{BEGIN}; SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0; \
             SELECT cortex_take_over('{}', {}, {term}, {leader_id}); COMMIT",
            fence.cluster_id, fence.epoch
        );
        let taken = sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut *connection).await;
        if taken.is_err() {
            connection.close_on_drop();
        }
        taken.map_err(of_beginning)?;
        Ok(())
    }

    /// Gives the database to the Raft group `to`, whoever leads on it now: once no transaction is under way, all
    /// of the former group are shut out. Answers that group, if there was another one.
    pub async fn adopt(&self, to: ClusterId) -> Result<Option<ClusterId>, StorageError> {
        let mut connection = self.writes.acquire().await?;
        let mut transaction = connection.begin().await?;
        let alone = "SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0; \
             SELECT pg_advisory_xact_lock(cortex_fence_key())";
        sqlx::raw_sql(alone).execute(&mut *transaction).await?;
        let former = sqlx::query_scalar!(
            "UPDATE leadership l SET cluster_id = $1, epoch = 0, term = 0, leader_id = 0, since = now()
             FROM leadership former WHERE l.singleton = former.singleton AND former.cluster_id <> $1
             RETURNING former.cluster_id",
            to.0,
        )
        .fetch_optional(self.writes.session(&mut transaction))
        .await?;
        transaction.commit().await?;
        Ok(former.map(ClusterId))
    }

    /// Begins a leader transaction, which fails with [`StorageError::Fenced`] if the fence is not the
    /// current one.
    pub async fn begin(&self, fence: Fence) -> Result<FencedTransaction, StorageError> {
        let connection = self.writes.acquire().await?;
        let (pool, vault) = (self.writes.clone(), self.vault.clone());
        let mut transaction = FencedTransaction { connection: Some(connection), pool, vault };
        // One round trip.
        let begin = self.writes.opening(BEGIN);
        let begin = format!("{begin}; SELECT cortex_fence('{}', {})", fence.cluster_id, fence.epoch);
        let begun = sqlx::raw_sql(AssertSqlSafe(begin)).execute(transaction.connection()?).await;
        match begun {
            Ok(_) => Ok(transaction),
            Err(error) => {
                transaction.roll_back().await;
                Err(of_beginning(error))
            }
        }
    }

    /// A connection for one statement that passes the fence by itself, with `cortex_pass`, before it writes. Its
    /// parameters must depend on the answer: a plan that finds nothing to write would not ask otherwise.
    pub(super) async fn for_fenced_statement(&self) -> Result<Single, StorageError> {
        Ok(self.writes.single().await?)
    }
}

/// What went wrong with the beginning of a transaction. The server of a standby does not support (0A000) that
/// one may write.
fn of_beginning(error: sqlx::Error) -> StorageError {
    match &error {
        sqlx::Error::Database(database) if database.code().as_deref() == Some("0A000") => {
            StorageError::Unavailable(error)
        }
        _ => error.into(),
    }
}

impl FencedTransaction {
    /// The connection, for statements.
    pub(super) fn connection(&mut self) -> Result<Session<'_>, StorageError> {
        let Some(connection) = self.connection.as_deref_mut() else {
            return Err(StorageError::Unavailable(sqlx::Error::PoolClosed));
        };
        Ok(self.pool.session(connection))
    }

    /// Commits. A connection that breaks meanwhile is [`StorageError::OutcomeUnknown`].
    pub async fn commit(mut self) -> Result<(), StorageError> {
        let committed = sqlx::raw_sql("COMMIT").execute(self.connection()?).await;
        match committed {
            Ok(_) => {
                // Back to the pool, outside any transaction.
                self.connection = None;
                Ok(())
            }
            Err(error) => Err(StorageError::of_commit(error)),
        }
    }

    /// Gives up what was written and keeps the connection if it still works.
    pub async fn roll_back(mut self) {
        if let Some(connection) = self.connection.take() {
            end(connection).await;
        }
    }
}

impl Drop for FencedTransaction {
    fn drop(&mut self) {
        let Some(mut connection) = self.connection.take() else { return };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(end(connection))),
            Err(_) => connection.close_on_drop(),
        }
    }
}

/// Rolls back. Has nothing but the connection: a runtime that ends drops its new tasks at once, and a transaction among
/// them would begin the next one, for ever.
async fn end(mut connection: PoolConnection<Postgres>) {
    if sqlx::raw_sql("ROLLBACK").execute(&mut *connection).await.is_err() {
        connection.close_on_drop();
    }
}
