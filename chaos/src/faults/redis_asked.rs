//! What all faults of Redis have in common.

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, FromRedisValue};

use crate::cluster::Cluster;
pub(super) use crate::cluster::queue_key as key;

/// A connection past the relays that waits for answers as long as they take.
///
/// # Errors
/// When Redis takes none.
pub(super) async fn connect(cluster: &Cluster) -> Result<MultiplexedConnection, String> {
    let patient = AsyncConnectionConfig::new().set_response_timeout(None);
    let connected = cluster.redis_client.get_multiplexed_async_connection_with_config(&patient).await;
    connected.map_err(|error| error.to_string())
}

/// Sends one command, its words separated by blanks.
///
/// # Errors
/// When Redis refuses or does not answer.
pub(super) async fn ask<T: FromRedisValue>(
    connection: &mut MultiplexedConnection,
    command: &str,
) -> Result<T, String> {
    let mut words = command.split(' ');
    let mut asked = redis::cmd(words.next().unwrap_or_default());
    words.for_each(|word| {
        asked.arg(word);
    });
    asked.query_async(connection).await.map_err(|error| format!("{command}: {error}"))
}

/// A field of what `INFO` says.
///
/// # Errors
/// When Redis does not answer, or says nothing of it.
pub(super) async fn info(connection: &mut MultiplexedConnection, field: &str) -> Result<String, String> {
    let text: String = ask(connection, "INFO").await?;
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    value.map(|value| value.trim().to_owned()).ok_or_else(|| format!("Redis does not tell {field}"))
}

/// What marks the ready queue as whole; `None` while it is being rebuilt.
pub(super) async fn generation(cluster: &Cluster) -> Result<Option<String>, String> {
    ask(&mut connect(cluster).await?, &format!("GET {}", key("generation"))).await
}

/// Waits until the ready queue is whole again, by another mark than before.
///
/// # Errors
/// When that does not come about.
pub(super) async fn whole_again(cluster: &Cluster, before: Option<&str>) -> Result<(), String> {
    let whole = || async {
        let now = generation(cluster).await;
        now.is_ok_and(|now| now.is_some() && now.as_deref() != before)
    };
    cluster.until("the ready queue is whole again", whole).await
}
