//! The one connection that everything of a worker goes over, and when to leave
//! it for the next replica.
//!
//! Calls take the current connection, and whoever sees it fail leaves it. The
//! first to do so moves everybody on: a failure counts once per connection,
//! however many calls it hits.

use std::{
    error::Error,
    fmt,
    future::Future,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use rand::Rng;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};
use tracing::warn;

use super::WorkerError;
use crate::random;
use crate::{endpoints::InvalidEndpoint, proto::job_service_client::JobServiceClient};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A replica that froze is noticed after the sum of the two at the latest.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(2);
/// Inputs may be larger than tonic's default of 4 MiB.
const MAX_MESSAGE: usize = 64 * 1024 * 1024;

/// The generated client over a plain channel.
pub(super) type Client = JobServiceClient<Channel>;

/// The replicas and the connection to one of them.
pub(super) struct Link {
    endpoints: Vec<Endpoint>,
    authorization: Option<MetadataValue<Ascii>>,
    current: Mutex<Connection>,
}

/// One connection. It is made when the first call goes over it.
#[derive(Clone)]
pub(super) struct Connection {
    generation: u64,
    index: usize,
    client: Client,
    authorization: Option<MetadataValue<Ascii>>,
    /// Fires when the connection was found to be dead, so that no call waits
    /// for its own deadline.
    dead: CancellationToken,
}

/// Why a call brought no answer that can be used.
#[derive(Debug)]
pub(super) enum Failure {
    /// Another call found the connection dead.
    Left,
    /// Nothing came within the deadline.
    Silence,
    /// The connection could not be made, or broke.
    Broken(Status),
    /// The replica answered with an error.
    Answered(Status),
}

/// What to do about a [`Failure`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Try the next replica.
    Elsewhere,
    /// Try this replica again, later.
    Later,
    /// The server does not know an id that was sent.
    Unknown,
    /// The lease is not this worker's any more.
    Stale,
    /// The same request will fail everywhere.
    Never,
}

impl Link {
    /// A link to one of the endpoints, picked at random to spread workers over
    /// the replicas.
    pub(super) fn new(endpoints: &[String], token: Option<&str>) -> Result<Self, WorkerError> {
        let endpoints = endpoints.iter().map(|url| configure(url)).collect::<Result<Vec<_>, _>>()?;
        let authorization = token.map(authorization).transpose()?;
        let index = random::generator().random_range(0..endpoints.len());
        let first = Connection::to(&endpoints[index], index, 0, authorization.clone());
        Ok(Self { endpoints, authorization, current: Mutex::new(first) })
    }

    /// The connection to use now.
    pub(super) fn current(&self) -> Connection {
        self.lock().clone()
    }

    /// Leaves a connection for the next replica if the failure calls for it and
    /// nobody has left it before.
    pub(super) fn leave(&self, connection: &Connection, failure: &Failure) {
        if failure.remedy() != Remedy::Elsewhere {
            return;
        }
        let mut current = self.lock();
        if current.generation == connection.generation {
            let index = (connection.index + 1) % self.endpoints.len();
            warn!(
                from = %self.endpoints[connection.index].uri(),
                to = %self.endpoints[index].uri(),
                %failure,
                "a replica could not be used, moving on to the next one"
            );
            *current = Connection::to(
                &self.endpoints[index],
                index,
                connection.generation + 1,
                self.authorization.clone(),
            );
        }
        if failure.is_of_connection() {
            connection.dead.cancel();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    fn to(
        endpoint: &Endpoint,
        index: usize,
        generation: u64,
        authorization: Option<MetadataValue<Ascii>>,
    ) -> Self {
        Self {
            generation,
            index,
            client: Client::new(endpoint.connect_lazy()).max_decoding_message_size(MAX_MESSAGE),
            authorization,
            dead: CancellationToken::new(),
        }
    }

    /// Makes one call, which ends at the latest after `deadline`. Dropping the
    /// future cancels the call at the server.
    pub(super) async fn call<M, R, F>(
        &self,
        deadline: Duration,
        message: M,
        rpc: impl FnOnce(Client, Request<M>) -> F,
    ) -> Result<R, Failure>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let mut request = Request::new(message);
        if let Some(value) = &self.authorization {
            request.metadata_mut().insert("authorization", value.clone());
        }
        tokio::select! {
            biased;
            outcome = tokio::time::timeout(deadline, rpc(self.client.clone(), request)) => {
                match outcome {
                    Ok(Ok(response)) => Ok(response.into_inner()),
                    // Only an error that was made on this side has a source.
                    Ok(Err(status)) if status.source().is_some() => Err(Failure::Broken(status)),
                    Ok(Err(status)) => Err(Failure::Answered(status)),
                    Err(_elapsed) => Err(Failure::Silence),
                }
            }
            () = self.dead.cancelled() => Err(Failure::Left),
        }
    }
}

impl Failure {
    /// What to do about it.
    pub(super) fn remedy(&self) -> Remedy {
        match self {
            Self::Left | Self::Silence => Remedy::Elsewhere,
            Self::Broken(status) | Self::Answered(status) => remedy_for(status.code()),
        }
    }

    /// Whether it says that nothing will come over this connection any more.
    fn is_of_connection(&self) -> bool {
        matches!(self, Self::Silence | Self::Broken(_))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Left => f.write_str("the connection was left"),
            Self::Silence => f.write_str("no answer in time"),
            Self::Broken(status) => {
                let mut cause: &dyn Error = status;
                while let Some(source) = cause.source() {
                    cause = source;
                }
                write!(f, "connection failed: {cause}")
            }
            Self::Answered(status) => write!(f, "{:?}: {}", status.code(), status.message()),
        }
    }
}

fn remedy_for(code: Code) -> Remedy {
    match code {
        Code::Unavailable
        | Code::DeadlineExceeded
        | Code::Cancelled
        | Code::Aborted
        | Code::Internal
        | Code::Unknown => Remedy::Elsewhere,
        // `Ok` is no failure; it is named to keep the match without a wildcard.
        Code::ResourceExhausted | Code::Ok => Remedy::Later,
        Code::NotFound => Remedy::Unknown,
        Code::FailedPrecondition => Remedy::Stale,
        Code::InvalidArgument
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::DataLoss
        | Code::Unauthenticated => Remedy::Never,
    }
}

fn configure(url: &str) -> Result<Endpoint, InvalidEndpoint> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|e| InvalidEndpoint { endpoint: url.to_owned(), reason: e.to_string() })?;
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true))
}

fn authorization(token: &str) -> Result<MetadataValue<Ascii>, WorkerError> {
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}").parse().map_err(|_| {
        WorkerError::Config { setting: "token", reason: "it cannot be a header value".to_owned() }
    })?;
    value.set_sensitive(true);
    Ok(value)
}
