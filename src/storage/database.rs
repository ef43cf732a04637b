//! Connections and migrations.

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, PgPool};

use super::error::StorageError;

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

/// PostgreSQL. Cheap to clone.
#[derive(Clone)]
pub struct Database {
    pub(super) reads: PgPool,
    /// Leader transactions have connections of their own, so that reads cannot starve them.
    pub(super) writes: PgPool,
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
                .connect_lazy_with(connect)
        };
        let reads = connect.clone().options([("statement_timeout", READ_TIMEOUT), ("jit", "off")]);
        Ok(Self { reads: pool(reads), writes: pool(connect) })
    }

    /// Brings the schema up to date. Safe to call from several replicas at once: one migrates under an
    /// advisory lock, the others wait and find nothing left to do.
    pub async fn migrate(&self) -> Result<(), sqlx::migrate::MigrateError> {
        sqlx::migrate!("./migrations").run(&self.writes).await
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
