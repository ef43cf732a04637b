//! The handle, its connection, and how a request is sent.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    Client, Cmd, ErrorKind, FromRedisValue, IntoConnectionInfo, Pipeline, RedisError, RedisResult, Script,
    ScriptInvocation,
};

use crate::domain::ids::Epoch;

use super::error::QueueError;
use super::keys::Keys;

const CONNECTION_TIMEOUT: Duration = Duration::from_secs(1);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECTION_RETRIES: usize = 1;
const CONNECTION_RETRY_DELAY: Duration = Duration::from_millis(50);
/// After a network path went dead without a word the system would go on sending for a quarter of an
/// hour; the connection must be given up long before.
const DEAD_PATH_TIMEOUT: Duration = Duration::from_secs(3);

/// Most jobs that one script call takes. Redis does nothing else meanwhile: a few milliseconds.
pub(super) const CHUNK: usize = 1000;

/// A handle to the ready queue; clones share one connection.
///
/// Cancellation: dropping the future of an operation leaves it open whether it took effect. Every
/// operation but [`ReadyQueue::claim`] can simply be repeated, and claims that nobody learned of are
/// found by [`ReadyQueue::claims_older_than`].
#[derive(Clone)]
pub struct ReadyQueue(Arc<Inner>);

struct Inner {
    keys: Keys,
    client: Client,
    connection: RwLock<ConnectionManager>,
}

/// Whether a request is sent a second time after the connection broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Repeat {
    /// Doing it twice is the same as doing it once.
    Harmless,
    /// Only if it certainly never left: there was no connection.
    Unsent,
}

pub(super) enum Request<'a> {
    Command(&'a Cmd),
    Pipeline(&'a Pipeline),
    Script(&'a ScriptInvocation<'a>),
}

impl ReadyQueue {
    /// A handle to the queue under `prefix` in the Redis at `url` (`redis://…`, `redis+unix://…`).
    ///
    /// Connects with the first request, so it succeeds while Redis is down. A connection attempt and an
    /// answer may each take 1 s; a lost connection is made again by the requests that need it. Must be
    /// called inside a Tokio runtime.
    ///
    /// # Errors
    /// [`QueueError::Config`] if the URL cannot be read, or the prefix is empty or has a brace.
    pub fn connect(url: &str, prefix: &str) -> Result<Self, QueueError> {
        let keys = Keys::new(prefix)?;
        // The error's text is not passed on: a URL may hold a password.
        let info = url.into_connection_info().map_err(|error| {
            QueueError::Config(format!("the Redis URL cannot be read ({:?})", error.kind()))
        })?;
        let keepalive = TcpKeepalive::new().with_time(DEAD_PATH_TIMEOUT).with_interval(CONNECTION_TIMEOUT);
        let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
        #[cfg(target_os = "linux")]
        let tcp = tcp.set_user_timeout(DEAD_PATH_TIMEOUT);
        let client = Client::open(info.set_tcp_settings(tcp))?;
        let connection = RwLock::new(lazy_connection(&client)?);
        Ok(Self(Arc::new(Inner { keys, client, connection })))
    }

    /// Asks Redis for a sign of life.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`] if none comes within the time limits.
    pub async fn ping(&self) -> Result<(), QueueError> {
        self.command(&redis::cmd("PING")).await
    }

    pub(super) fn keys(&self) -> &Keys {
        &self.0.keys
    }

    /// A call of a script that writes; the caller adds the arguments of its own.
    pub(super) fn fenced<'a>(&self, script: &'a Script, epoch: Epoch) -> ScriptInvocation<'a> {
        let mut call = script.prepare_invoke();
        call.key(&self.0.keys.fixed).arg(epoch.0).arg(&self.0.keys.shape_prefix);
        call
    }

    /// A call of a script that only reads.
    pub(super) fn reading<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        self.fenced(script, Epoch(0))
    }

    pub(super) async fn command<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, QueueError> {
        self.send(Request::Command(command), Repeat::Harmless).await
    }

    pub(super) async fn script<T: FromRedisValue>(
        &self,
        call: &ScriptInvocation<'_>,
    ) -> Result<T, QueueError> {
        self.send(Request::Script(call), Repeat::Harmless).await
    }

    pub(super) async fn send<T: FromRedisValue>(
        &self,
        request: Request<'_>,
        repeat: Repeat,
    ) -> Result<T, QueueError> {
        let error = match request.send(self.connection()).await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        if error.kind() == ErrorKind::AuthenticationFailed {
            self.renew_connection()?;
        }
        // An idle connection is found broken only when it is used, and an attempt to connect that
        // failed is remembered until the next request: both deserve a second try.
        let again = match repeat {
            Repeat::Harmless => error.is_connection_dropped(),
            Repeat::Unsent => error.is_connection_refusal(),
        };
        if again { Ok(request.send(self.connection()).await?) } else { Err(error.into()) }
    }

    fn connection(&self) -> ConnectionManager {
        self.0.connection.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The manager tries again by itself only after an I/O error; a refused password would stick.
    fn renew_connection(&self) -> Result<(), QueueError> {
        let fresh = lazy_connection(&self.0.client)?;
        *self.0.connection.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }
}

impl Request<'_> {
    async fn send<T: FromRedisValue>(&self, mut connection: ConnectionManager) -> RedisResult<T> {
        match self {
            Self::Command(command) => command.query_async(&mut connection).await,
            Self::Pipeline(pipeline) => pipeline.query_async(&mut connection).await,
            Self::Script(call) => call.invoke_async(&mut connection).await,
        }
    }
}

fn lazy_connection(client: &Client) -> Result<ConnectionManager, RedisError> {
    let config = ConnectionManagerConfig::new()
        .set_connection_timeout(Some(CONNECTION_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT))
        .set_number_of_retries(CONNECTION_RETRIES)
        .set_min_delay(CONNECTION_RETRY_DELAY)
        .set_max_delay(CONNECTION_RETRY_DELAY);
    ConnectionManager::new_lazy_with_config(client.clone(), config)
}
