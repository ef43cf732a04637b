//! Opens the stores.

use std::time::Duration;

use sqlx::migrate::MigrateError;
use tokio_util::sync::CancellationToken;

use super::AppError;
use crate::config::{self, Config};
use crate::ready_queue::{QueueError, ReadyQueue};
use crate::security;
use crate::storage::{Database, DatabaseOptions, StorageError};
use crate::telemetry::whole_story;

/// Pause between two tries to reach PostgreSQL at the start.
const RECONNECT: Duration = Duration::from_millis(500);
/// Longest wait for a connection, whatever is configured: a leader is not to wait for longer.
const LONGEST_ACQUIRE: Duration = Duration::from_secs(5);
/// How long Redis may take to tell its version at the start.
const QUEUE_WITHIN: Duration = Duration::from_secs(3);

/// Brings the schema up to date, waiting for PostgreSQL if it is not there yet, or takes no writes. What waiting
/// will not help against ends the start.
pub(super) async fn open_database(
    config: &Config,
    shutdown: &CancellationToken,
) -> Result<Database, AppError> {
    let database = Database::connect_lazily(&options(&config.database)).map_err(AppError::Database)?;
    let mut told = String::new();
    loop {
        let error = match prepare(&database).await {
            Ok(()) => return Ok(database),
            Err(AppError::Database(error)) if !error.is_final() => error,
            Err(error) => return Err(error),
        };
        let reason = whole_story(&error);
        if reason != told {
            tracing::warn!(%reason, "PostgreSQL cannot be used yet; the replica waits for it.");
            told = reason;
        }
        tokio::select! {
            () = shutdown.cancelled() => return Err(AppError::Database(error)),
            () = tokio::time::sleep(RECONNECT) => {}
        }
    }
}

/// How the database is reached.
pub(crate) fn options(database: &config::Database) -> DatabaseOptions {
    DatabaseOptions {
        url: database.url.expose().to_owned(),
        max_connections: database.pool_size,
        acquire_timeout: database.pool_timeout.min(LONGEST_ACQUIRE),
        max_lifetime: database.pool_recycle,
        pooler: database.pooler.is_some(),
    }
}

async fn prepare(database: &Database) -> Result<(), AppError> {
    database.check().await.map_err(AppError::Database)?;
    database.migrate().await.map_err(|error| match error {
        MigrateError::Execute(error) => match StorageError::from(error) {
            StorageError::Unexpected(error) => AppError::Migrate(MigrateError::Execute(error)),
            error => AppError::Database(error),
        },
        error => AppError::Migrate(error),
    })
}

/// The ready queue, which connects when it is used.
pub(crate) fn queue(config: &config::Queue) -> Result<ReadyQueue, AppError> {
    let tls = config.tls.as_ref().map(security::redis_tls).transpose()?;
    Ok(ReadyQueue::connect_with(config.redis_url.expose(), &config.queue_prefix, tls.as_ref())?)
}

/// A Redis that is away is no reason not to start; one that can never serve is.
pub(super) async fn open_queue(config: &config::Queue) -> Result<ReadyQueue, AppError> {
    let queue = queue(config)?;
    match tokio::time::timeout(QUEUE_WITHIN, queue.ping()).await {
        Ok(Err(error @ QueueError::TooOld { .. })) => return Err(error.into()),
        Ok(Err(error)) => {
            let reason = whole_story(&error);
            tracing::warn!(%reason, "Redis cannot be used yet; jobs wait in PostgreSQL until it can.");
        }
        Err(_) => tracing::warn!("Redis does not answer yet; jobs wait in PostgreSQL until it does."),
        Ok(Ok(())) => {}
    }
    Ok(queue)
}
