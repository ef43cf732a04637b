//! Connections and migrations.

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection, PgConnection, PgPool};

use super::error::StorageError;
use crate::security::Vault;

/// Longest read, with its unit.
const READ_TIMEOUT: &str = "15s";

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
}

/// What holds on connections for leader writes. The limits bound how long a new leader waits for what an old
/// one has begun. The rest is about plans: leader statements are few and long, find their rows by id and have
/// arrays for parameters. One plan serves for all of them; planning anew costs more than running, and a plan
/// made while a table was small would go on scanning it when it has grown.
const WRITE_SETTINGS: [(&str, &str); 8] = [
    ("statement_timeout", "2s"),
    ("lock_timeout", "500ms"),
    ("idle_in_transaction_session_timeout", "400ms"),
    ("plan_cache_mode", "force_generic_plan"),
    ("enable_seqscan", "off"),
    ("enable_hashjoin", "off"),
    ("enable_mergejoin", "off"),
    // What is ruled out counts as endlessly dear, and dear plans would be compiled each time.
    ("jit", "off"),
];

/// A connection that was idle for so long is tried before it is used.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// PostgreSQL. Cheap to clone.
#[derive(Clone)]
pub struct Database {
    /// For what has to be done without limits.
    plain: PgConnectOptions,
    pub(super) reads: PgPool,
    /// Leader transactions have connections of their own, so that reads cannot starve them.
    pub(super) writes: PgPool,
    /// Seals and opens payloads.
    pub(super) vault: Vault,
}

impl Database {
    /// Prepares the pools; connections are opened when they are needed.
    pub fn connect_lazily(options: &DatabaseOptions) -> Result<Self, StorageError> {
        let connect = PgConnectOptions::from_str(&options.url)
            .map_err(StorageError::Unexpected)?
            .application_name("cortex")
            .disable_statement_logging();
        let pool = |connect: PgConnectOptions| {
            PgPoolOptions::new()
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
                .connect_lazy_with(connect)
        };
        let reads = connect.clone().options([("statement_timeout", READ_TIMEOUT), ("jit", "off")]);
        let writes = connect.clone().options(WRITE_SETTINGS);
        Ok(Self { plain: connect, reads: pool(reads), writes: pool(writes), vault: Vault::default() })
    }

    /// The same with payloads sealed by this vault from now on.
    #[must_use]
    pub fn with_vault(self, vault: Vault) -> Self {
        Self { vault, ..self }
    }

    /// Brings the schema up to date. Safe to call from several replicas at once: one migrates under an
    /// advisory lock, the others wait and find nothing left to do.
    pub async fn migrate(&self) -> Result<(), sqlx::migrate::MigrateError> {
        let mut connection = PgConnection::connect_with(&self.plain).await?;
        sqlx::migrate!("./migrations").run(&mut connection).await?;
        connection.close().await?;
        Ok(())
    }

    /// Whether PostgreSQL answers.
    pub async fn ping(&self) -> Result<(), StorageError> {
        sqlx::query("SELECT 1").execute(&self.reads).await?;
        Ok(())
    }

    /// Closes all connections.
    pub async fn close(&self) {
        self.reads.close().await;
        self.writes.close().await;
    }
}
