//! The handle, its connection, and how a request is sent.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::cluster::{ClusterClient, ClusterConfig};
use redis::cluster_async::ClusterConnection;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    Client, ClientTlsConfig, Cmd, ConnectionInfo, ErrorKind, FromRedisValue, IntoConnectionInfo, Pipeline,
    RedisError, RedisFuture, RedisResult, Script, ScriptInvocation, ServerErrorKind, TlsCertificates, Value,
};

use crate::domain::ids::Epoch;
use crate::security::RedisTls;

use super::error::QueueError;
use super::keys::Keys;
use super::{scripts, version};

const CONNECTION_TIMEOUT: Duration = Duration::from_secs(1);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(1);
const CONNECTION_RETRIES: usize = 1;
const CONNECTION_RETRY_DELAY: Duration = Duration::from_millis(50);
/// A cluster sends a request again after a redirection, or when it has lost a node.
const CLUSTER_RETRIES: u32 = 4;
/// All of that together.
const CLUSTER_TIMEOUT: Duration = Duration::from_secs(2);
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
    place: Place,
    connection: RwLock<Connection>,
    /// Redis was found to be new enough.
    known: AtomicBool,
}

/// Where Redis is, and how it knows us.
struct Place {
    /// One server, or some nodes of a cluster.
    nodes: Vec<ConnectionInfo>,
    certificates: Option<TlsCertificates>,
}

/// A connection that is made when it is needed, and again when it is lost.
#[derive(Clone)]
enum Connection {
    Server(ConnectionManager),
    /// Finds out which node has the queue's keys, and follows them when they move.
    Cluster(ClusterConnection),
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
    /// A handle to the queue under `prefix` in the Redis at `url` (`redis://…`, `rediss://…`, `redis+unix://…`). A cluster is
    /// named by any of its nodes, or by several, separated by commas: `redis://a:6379,b:6379`. What the first one
    /// says of scheme and password holds for all that say nothing themselves.
    ///
    /// Connects with the first request, so it succeeds while Redis is down. A connection attempt and an
    /// answer may each take 1 s; a lost connection is made again by the requests that need it. Must be
    /// called inside a Tokio runtime.
    ///
    /// # Errors
    /// [`QueueError::Config`] if the URL cannot be read, or the prefix is empty or has a brace.
    pub fn connect(url: &str, prefix: &str) -> Result<Self, QueueError> {
        Self::connect_with(url, prefix, None)
    }

    /// The same with certificates for `rediss://`.
    ///
    /// # Errors
    /// As [`ReadyQueue::connect`], and if the certificates cannot be used.
    pub fn connect_with(url: &str, prefix: &str, tls: Option<&RedisTls>) -> Result<Self, QueueError> {
        let keys = Keys::new(prefix)?;
        let place = Place { nodes: nodes(url)?, certificates: tls.map(certificates) };
        let connection = if place.nodes.len() == 1 { place.server()? } else { place.cluster()? };
        let (connection, known) = (RwLock::new(connection), AtomicBool::new(false));
        Ok(Self(Arc::new(Inner { keys, place, connection, known })))
    }

    /// Asks Redis for a sign of life, and once for its version.
    ///
    /// # Errors
    /// [`QueueError::Unavailable`] if none comes within the time limits, [`QueueError::TooOld`].
    pub async fn ping(&self) -> Result<(), QueueError> {
        if !self.0.known.load(Ordering::Relaxed) {
            version::check(self).await?;
            self.0.known.store(true, Ordering::Relaxed);
        }
        // Not PING: in a cluster it is the node that has the keys which matters.
        let _: bool = self.command(redis::cmd("EXISTS").arg(&self.0.keys.fixed[0])).await?;
        Ok(())
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
        let mut moved = false;
        match error.kind() {
            // The manager tries again by itself only after an I/O error; a refused password would stick.
            ErrorKind::AuthenticationFailed => self.renew_connection()?,
            // The one server that was named turns out to be a node of a cluster.
            ErrorKind::Server(ServerErrorKind::Moved) => {
                moved = true;
                self.change(self.0.place.cluster()?);
            }
            // Somebody else has written under the queue's names. The caller finds it incomplete next time.
            _ if error.code() == Some("WRONGTYPE") => self.discard_strangers().await,
            _ => {}
        }
        // An idle connection is found broken only when it is used, and an attempt to connect that
        // failed is remembered until the next request: both deserve a second try.
        let again = moved
            || match repeat {
                Repeat::Harmless => error.is_connection_dropped(),
                Repeat::Unsent => error.is_connection_refusal(),
            };
        if again { Ok(request.send(self.connection()).await?) } else { Err(error.into()) }
    }

    async fn discard_strangers(&self) {
        let call = self.reading(&scripts::DISCARD);
        match Request::Script(&call).send::<usize>(self.connection()).await {
            Ok(keys) => {
                tracing::warn!(keys, "Keys of the ready queue were of the wrong kind; they are thrown away.");
            }
            Err(error) => {
                tracing::warn!(%error, "Keys of the ready queue are of the wrong kind; they could not be thrown away.");
            }
        }
    }

    fn connection(&self) -> Connection {
        self.0.connection.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn renew_connection(&self) -> Result<(), QueueError> {
        self.change(match self.connection() {
            Connection::Server(_) => self.0.place.server()?,
            Connection::Cluster(_) => self.0.place.cluster()?,
        });
        Ok(())
    }

    fn change(&self, fresh: Connection) {
        *self.0.connection.write().unwrap_or_else(PoisonError::into_inner) = fresh;
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Server(server) => server.req_packed_command(command),
            Self::Cluster(cluster) => cluster.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Server(server) => server.req_packed_commands(commands, offset, count),
            Self::Cluster(cluster) => cluster.req_packed_commands(commands, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Server(server) => server.get_db(),
            Self::Cluster(cluster) => cluster.get_db(),
        }
    }
}

impl Request<'_> {
    async fn send<T: FromRedisValue>(&self, mut connection: Connection) -> RedisResult<T> {
        match self {
            Self::Command(command) => command.query_async(&mut connection).await,
            Self::Pipeline(pipeline) => pipeline.query_async(&mut connection).await,
            Self::Script(call) => call.invoke_async(&mut connection).await,
        }
    }
}

/// The servers that a URL names.
fn nodes(url: &str) -> Result<Vec<ConnectionInfo>, QueueError> {
    let (first, others) = url.split_once(',').unwrap_or((url, ""));
    let host = first.find('@').map(|at| at + 1).or_else(|| Some(first.find("://")? + 3));
    let common = &first[..host.unwrap_or(0)];
    let others = others
        .split(',')
        .filter(|node| !node.is_empty())
        .map(|node| if node.contains("://") { node.to_owned() } else { format!("{common}{node}") });
    let info = |node: String| {
        let info = node.as_str().into_connection_info().map_err(|error| {
            // The error's text is not passed on: a URL may hold a password.
            QueueError::Config(format!("the Redis URL cannot be read ({:?})", error.kind()))
        })?;
        Ok(info.set_tcp_settings(tcp()))
    };
    std::iter::once(first.to_owned()).chain(others).map(info).collect()
}

fn tcp() -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(DEAD_PATH_TIMEOUT).with_interval(CONNECTION_TIMEOUT);
    let tcp = TcpSettings::default().set_nodelay(true).set_keepalive(keepalive);
    #[cfg(target_os = "linux")]
    let tcp = tcp.set_user_timeout(DEAD_PATH_TIMEOUT);
    tcp
}

fn certificates(tls: &RedisTls) -> TlsCertificates {
    let client_tls = tls.identity.as_ref().map(|identity| ClientTlsConfig {
        client_cert: identity.cert.clone(),
        client_key: identity.key.clone(),
    });
    TlsCertificates { client_tls, root_cert: tls.ca.clone() }
}

impl Place {
    fn server(&self) -> Result<Connection, QueueError> {
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECTION_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            .set_number_of_retries(CONNECTION_RETRIES)
            .set_min_delay(CONNECTION_RETRY_DELAY)
            .set_max_delay(CONNECTION_RETRY_DELAY);
        let node = self.nodes[0].clone();
        let client = match &self.certificates {
            Some(certificates) => Client::build_with_tls(node, certificates.clone()),
            None => Client::open(node),
        };
        let manager = client
            .and_then(|client| ConnectionManager::new_lazy_with_config(client, config))
            .map_err(unusable)?;
        Ok(Connection::Server(manager))
    }

    fn cluster(&self) -> Result<Connection, QueueError> {
        let mut client = ClusterClient::builder(self.nodes.clone())
            .connection_timeout(CONNECTION_TIMEOUT)
            .response_timeout(RESPONSE_TIMEOUT)
            .overall_response_timeout(Some(CLUSTER_TIMEOUT))
            .retries(CLUSTER_RETRIES)
            .tcp_settings(tcp());
        if let Some(certificates) = &self.certificates {
            client = client.certs(certificates.clone());
        }
        let client = client.build().map_err(unusable)?;
        Ok(Connection::Cluster(client.get_pending_async_connection_with_config(ClusterConfig::new())))
    }
}

/// Nothing was sent yet: it is what was configured.
fn unusable(error: RedisError) -> QueueError {
    QueueError::Config(error.to_string())
}
