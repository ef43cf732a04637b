//! Connections and migrations.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, Row};
use tokio::sync::Semaphore;

use super::connections::{Connections, Way};
use super::error::StorageError;
use crate::security::Vault;

/// What holds on connections for reads.
const READ_SETTINGS: [(&str, &str); 2] = [("statement_timeout", "15s"), ("jit", "off")];

/// How to reach PostgreSQL.
#[derive(Clone)]
pub struct DatabaseOptions {
    /// `postgres://…`
    pub url: String,
    /// Most connections for reads and most for leader writes, each.
    pub max_connections: u32,
    /// How long to wait for a free connection.
    pub acquire_timeout: Duration,
    /// Age at which a connection is replaced.
    pub max_lifetime: Duration,
    /// Whether a pooler in transaction mode stands in between.
    pub pooler: bool,
}

/// What holds on connections for leader writes. The limits bound how long a new leader waits for what an old
/// one has begun. The rest is about plans: leader statements are few and long, find their rows by id and have
/// arrays for parameters. One plan serves for all of them; planning anew costs more than running, and a plan
/// made while a table was small would go on scanning it when it has grown.
const WRITE_SETTINGS: [(&str, &str); 9] = [
    ("statement_timeout", "2s"),
    ("lock_timeout", "500ms"),
    ("idle_in_transaction_session_timeout", "400ms"),
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    // What is ruled out counts as endlessly dear, and dear plans would be compiled each time.
    ("jit", "off"),
    // The rows of a submission's tags are written with it, so that the trigger need not (migration 14).
    ("cortex.indexes_tags", "on"),
];

/// Connections of each kind that a leader needs at once. They stand ready wherever one may come to lead.
const WARM: usize = 6;
/// Has a session look up what the statements of a leader need to know of their tables, as the first of them would have to.
/// Nothing is read and nothing written, and nobody is waited for who changes a table.
const REHEARSAL: &str = "SET LOCAL lock_timeout = '100ms'; \
     EXPLAIN SELECT FROM jobs, executions, leases, job_tags, workers, job_counters, idempotency_keys; \
     EXPLAIN SELECT cortex_pass(NULL, NULL)";
/// How long they may take to be opened: meanwhile others cannot have them.
const WARM_WITHIN: Duration = Duration::from_secs(1);
/// A connection that was idle for so long is tried before it is used.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// Pause between two questions whether PostgreSQL is there.
const ASK_EVERY: Duration = Duration::from_millis(100);
/// A sign of life that waits longer for a connection asks for the reason instead.
const PING_PATIENCE: Duration = Duration::from_millis(500);
/// The oldest PostgreSQL that the statements are made for, as `server_version_num` says it.
const OLDEST: i32 = 140_000;
/// The advisory lock of migrations behind a pooler, and the same for others.
const MIGRATION_LOCK: &str = "SELECT pg_advisory_xact_lock(4855372910287432)";
/// Whatever the database's default is: a migration that has waited for a lock must see what was committed meanwhile.
const MIGRATION_LOCK_OF_SESSION: &str = "SET default_transaction_isolation = 'read committed'; \
     SELECT pg_advisory_lock(4855372910287432)";

/// How many migrations were applied, as far as it can be told.
async fn applied(connection: &mut PgConnection) -> i64 {
    let count = "SELECT count(*)::text FROM _sqlx_migrations WHERE success";
    let row = sqlx::raw_sql(count).fetch_one(connection).await;
    row.ok().and_then(|row| row.try_get::<String, _>(0).ok()?.parse().ok()).unwrap_or(0)
}

/// PostgreSQL. Cheap to clone.
#[derive(Clone)]
pub struct Database {
    /// For what has to be done without limits.
    plain: PgConnectOptions,
    pub(super) reads: Connections,
    /// Leader transactions have connections of their own, so that reads cannot starve them.
    pub(super) writes: Connections,
    pooler: bool,
    /// For asking why no connection is free.
    asking: Arc<Semaphore>,
    /// For opening connections ahead.
    warming: Arc<Semaphore>,
    /// Seals and opens payloads.
    pub(super) vault: Vault,
}

impl Database {
    /// Prepares the pools; connections are opened when they are needed.
    pub fn connect_lazily(options: &DatabaseOptions) -> Result<Self, StorageError> {
        let mut connect = PgConnectOptions::from_str(&options.url)
            .map_err(StorageError::Url)?
            .application_name("cortex")
            .disable_statement_logging();
        if options.pooler {
            // It refuses what it does not know, and the servers' own value does as well.
            connect = connect.extra_float_digits(None);
        }
        let pool = |settings: &[(&str, &str)]| {
            let (connect, way) = if options.pooler {
                let set = settings.iter().map(|(name, value)| format!("SET LOCAL {name} = '{value}'"));
                (connect.clone(), Way::Pooler(set.collect::<Vec<_>>().join("; ").into()))
            } else {
                (connect.clone().options(settings.iter().copied()), Way::Straight)
            };
            let pool = PgPoolOptions::new()
                .max_connections(options.max_connections)
                .acquire_timeout(options.acquire_timeout)
                .max_lifetime(options.max_lifetime)
                .idle_timeout(Duration::from_secs(60))
                // Not before every use: that would be a round trip each time.
                .test_before_acquire(false)
                .before_acquire(|connection, meta| {
                    Box::pin(async move {
                        if meta.idle_for >= TRUSTED_FOR {
                            connection.ping().await?;
                        }
                        Ok(true)
                    })
                })
                .connect_lazy_with(connect);
            Connections::new(pool, way)
        };
        let (reads, writes) = (pool(&READ_SETTINGS), pool(&WRITE_SETTINGS));
        let once_at_a_time = || Arc::new(Semaphore::new(1));
        Ok(Self {
            plain: connect,
            reads,
            writes,
            pooler: options.pooler,
            asking: once_at_a_time(),
            warming: once_at_a_time(),
            vault: Vault::default(),
        })
    }

    /// The same with payloads sealed by this vault from now on.
    #[must_use]
    pub fn with_vault(self, vault: Vault) -> Self {
        Self { vault, ..self }
    }

    /// Brings the schema up to date. Safe to call from several replicas at once: one migrates under an
    /// advisory lock, the others wait and find nothing left to do.
    pub async fn migrate(&self) -> Result<(), MigrateError> {
        let mut connection = PgConnection::connect_with(&self.plain).await?;
        let before = applied(&mut connection).await;
        let mut migrator = sqlx::migrate!("./migrations");
        if self.pooler {
            // The migrator's own lock belongs to a session, which is none here. In one transaction all
            // goes over one server; a connection that breaks off in it takes the server with it.
            let mut transaction = connection.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await?;
            sqlx::raw_sql(MIGRATION_LOCK).execute(&mut *transaction).await?;
            migrator.set_locking(false).run(&mut *transaction).await?;
            // Their names would be in the way of the next client.
            transaction.clear_cached_statements().await?;
            transaction.commit().await?;
        } else {
            // Beside the migrator's own lock, which it does not take behind a pooler.
            sqlx::raw_sql(MIGRATION_LOCK_OF_SESSION).execute(&mut connection).await?;
            migrator.run(&mut connection).await?;
        }
        if before > 0 && applied(&mut connection).await > before {
            // A table that was written anew has no statistics, and its indexes alone do not tell who sees what.
            if let Err(error) =
                sqlx::raw_sql("VACUUM (ANALYZE) jobs, job_tags").execute(&mut connection).await
            {
                tracing::warn!(%error, "The tables could not be vacuumed after the migration; lists are slow until they are.");
            }
        }
        connection.close().await?;
        Ok(())
    }

    /// Opens connections ahead of a take-over, which would have to wait for each of them, or makes sure of those that are
    /// open.
    pub async fn warm_up(&self) {
        self.warm(None).await;
    }

    /// The same, and has each of them look up what the first statement would have to. Called from time to time, it keeps
    /// them open. Answers how many are ready.
    pub async fn rehearse(&self) -> usize {
        // Behind a pooler the next transaction may come to another server.
        self.warm((!self.pooler).then_some(REHEARSAL)).await
    }

    /// Runs statements, if any, on as many connections as a leader needs at once. They are held until all are open, so at
    /// most half of each pool, and by one call at a time: a take-over itself must not wait for them.
    async fn warm(&self, statements: Option<&'static str>) -> usize {
        let Ok(_turn) = self.warming.try_acquire() else { return 0 };
        let count = self.writes.capacity().min(self.reads.capacity()) / 2;
        let some = (0..count.min(WARM)).flat_map(|_| [&self.writes, &self.reads]);
        let some = some.map(async |pool: &Connections| {
            let mut connection = pool.acquire().await?;
            if let Some(statements) = statements {
                sqlx::raw_sql(statements).execute(&mut *connection).await?;
            }
            Ok::<_, sqlx::Error>(connection)
        });
        // What cannot be had in time will be missed later.
        let ready = tokio::time::timeout(WARM_WITHIN, join_all(some)).await.unwrap_or_default();
        ready.iter().filter(|connection| connection.is_ok()).count()
    }

    /// Whether PostgreSQL answers.
    pub async fn ping(&self) -> Result<(), StorageError> {
        let connection = match tokio::time::timeout(PING_PATIENCE, self.reads.acquire()).await {
            Ok(connection) => connection,
            // The pool knows that it got no connection in time, and not why.
            Err(_) => {
                // One at a time: whoever looks often must not take the connections that others wait for.
                let _turn = self.asking.try_acquire().map_err(|_| sqlx::Error::PoolTimedOut)?;
                PgConnection::connect_with(&self.plain).await?.close().await?;
                Err(sqlx::Error::PoolTimedOut)
            }
        };
        sqlx::raw_sql("SELECT 1").execute(&mut *connection?).await?;
        Ok(())
    }

    /// Ends once PostgreSQL has said nothing for `patience`, on a connection of its own. To refuse is to answer.
    pub async fn falls_silent(&self, patience: Duration) {
        let mut own = None;
        loop {
            let asked = tokio::time::timeout(patience, async {
                let connection = match &mut own {
                    Some(connection) => connection,
                    None => own.insert(PgConnection::connect_with(&self.plain).await?),
                };
                sqlx::raw_sql("SELECT 1").execute(connection).await
            });
            match asked.await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => own = None,
                Err(_) => return,
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Whether PostgreSQL answers and is new enough. Says why it lets nobody in.
    pub async fn check(&self) -> Result<(), StorageError> {
        let mut connection = PgConnection::connect_with(&self.plain).await?;
        let version = "SELECT current_setting('server_version_num'), current_setting('server_version')";
        let row = sqlx::raw_sql(version).fetch_one(&mut connection).await?;
        connection.close().await?;
        let (number, found): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        if number.parse().is_ok_and(|number: i32| number < OLDEST) {
            return Err(StorageError::TooOld { found });
        }
        Ok(())
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.reads.close().await;
        self.writes.close().await;
    }
}
