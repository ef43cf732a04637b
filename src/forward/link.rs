//! One connection to one leader, with one stream that carries all commands of this replica.
//!
//! A link is made when it is first needed and lives until its stream ends or the route names somebody
//! else. It is never mended: its calls are settled, and the next call makes a new one.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::AbortOnDropHandle;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};

use super::codec;
use super::config::ForwardConfig;
use super::outbox::{Outbox, Outgoing, Refused, Reply};
use super::route::Route;
use super::watch;
use super::wire::forward_client::ForwardClient;
use super::wire::{Answers, Lane, MAX_MESSAGE, SECRET_HEADER};
use crate::services::command::Deliver;

/// Receive window of the stream, in bytes.
const STREAM_WINDOW: u32 = 2 << 20;
/// Receive window of the connection, in bytes.
const CONNECTION_WINDOW: u32 = 4 << 20;

/// The way to one leader.
pub(super) struct Link {
    peer: String,
    outbox: Arc<Outbox>,
    _driver: AbortOnDropHandle<()>,
}

impl Link {
    /// Begins to connect; calls queue up meanwhile. Must run inside a runtime.
    pub(super) fn open(
        peer: String,
        route: watch::Receiver<Route>,
        config: &Arc<ForwardConfig>,
        deliveries: Arc<dyn Deliver>,
        ended: watch::Sender<u64>,
    ) -> Self {
        let outbox = Outbox::new(config.limits.clone());
        let closing = Closing { outbox: Arc::clone(&outbox), ended };
        let driver = drive(peer.clone(), route, Arc::clone(config), deliveries, closing);
        Self { peer, outbox, _driver: AbortOnDropHandle::new(tokio::spawn(driver)) }
    }

    /// Whether calls to the leader at `peer` may use this link.
    pub(super) fn serves(&self, peer: &str) -> bool {
        self.peer == peer && self.outbox.is_usable()
    }

    /// Calls that are queued or written.
    pub(super) fn calls(&self) -> usize {
        self.outbox.len()
    }

    /// Sends a command. At `give_up` it is taken back if it was not sent; at `answer_by` the answer is
    /// waited for no longer. Dropping the future frees the call's place.
    pub(super) async fn call(
        &self,
        lane: Lane,
        command: Bytes,
        give_up: Instant,
        answer_by: Instant,
    ) -> Result<Reply, Refused> {
        let mut ticket = self.outbox.enqueue(lane, command)?;
        if let Ok(reply) = timeout_at(give_up, &mut ticket.reply).await {
            return Ok(reply.unwrap_or(Reply::Unknown));
        }
        if ticket.withdraw() {
            return Ok(Reply::NotSent);
        }
        let reply = timeout_at(answer_by, &mut ticket.reply).await;
        Ok(reply.ok().and_then(Result::ok).unwrap_or(Reply::Unknown))
    }
}

/// Settles all calls when the driver ends, however it ends, and says so.
struct Closing {
    outbox: Arc<Outbox>,
    /// Counts the links that have ended.
    ended: watch::Sender<u64>,
}

impl Drop for Closing {
    fn drop(&mut self) {
        self.outbox.close();
        self.ended.send_modify(|ended| *ended += 1);
    }
}

/// Keeps the stream until it ends or the route leads elsewhere.
async fn drive(
    peer: String,
    mut route: watch::Receiver<Route>,
    config: Arc<ForwardConfig>,
    deliveries: Arc<dyn Deliver>,
    closing: Closing,
) {
    let outbox = &closing.outbox;
    tokio::select! {
        biased;
        () = left(&peer, &mut route) => tracing::debug!(%peer, "Commands go elsewhere now."),
        () = carry(&peer, &config, outbox, &*deliveries) => {}
    }
}

/// Resolves when commands go elsewhere. While no leader is known the old one may still answer, so the
/// stream stays: its callers have nowhere else to go.
async fn left(peer: &str, route: &mut watch::Receiver<Route>) {
    // An error says that the process is ending.
    let _ = route.wait_for(|route| route.is_known() && !route.leads_to(peer)).await;
}

/// Opens the stream and keeps it until it ends. That a leader is gone was said by the stream that broke before;
/// until there is another one, every call tries again.
async fn carry(peer: &str, config: &ForwardConfig, outbox: &Arc<Outbox>, deliveries: &dyn Deliver) {
    let answers = match connect(peer, config, outbox).await {
        Ok(answers) => answers,
        Err(status) if nobody_listens(&status) => {
            tracing::debug!(%peer, "Nobody listens where the leader was.");
            return;
        }
        Err(status) => {
            tracing::warn!(%peer, error = %describe(&status), "The leader could not be reached.");
            return;
        }
    };
    outbox.open();
    match settle(answers, outbox, deliveries).await {
        Ok(()) => tracing::debug!(%peer, "The leader has concluded the stream."),
        Err(status) => {
            tracing::warn!(%peer, error = %describe(&status), "The stream to the leader broke.");
        }
    }
}

/// Takes in what the leader says until it has said all.
async fn settle(
    mut answers: Streaming<Answers>,
    outbox: &Outbox,
    deliveries: &dyn Deliver,
) -> Result<(), Status> {
    while let Some(message) = answers.message().await? {
        for delivery in message.deliveries.iter().filter_map(|bytes| codec::decode_delivery(bytes)) {
            // A session that has gone meanwhile says so to the leader by itself.
            deliveries.deliver(delivery);
        }
        outbox.settle(message.answers);
        if message.concluding {
            outbox.conclude();
        }
    }
    Ok(())
}

async fn connect(
    peer: &str,
    config: &ForwardConfig,
    outbox: &Arc<Outbox>,
) -> Result<Streaming<Answers>, Status> {
    let unavailable = |error: tonic::transport::Error| Status::from_error(error.into());
    let channel = endpoint(peer, config).map_err(unavailable)?;
    let channel = within(config.connect_timeout, dial(&channel)).await?.map_err(unavailable)?;
    let mut client = ForwardClient::<Channel>::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let mut request = Request::new(Outgoing(Arc::clone(outbox)));
    if let Some(secret) = &config.secret {
        let value = AsciiMetadataValue::try_from(secret.as_str())
            .map_err(|_| Status::invalid_argument("cluster.secret holds what a header cannot carry"))?;
        request.metadata_mut().insert(SECRET_HEADER, value);
    }
    Ok(within(config.connect_timeout, client.exchange(request)).await??.into_inner())
}

fn endpoint(peer: &str, config: &ForwardConfig) -> Result<Endpoint, tonic::transport::Error> {
    let endpoint = match &config.tls {
        None => Endpoint::from_shared(format!("http://{peer}"))?,
        Some(tls) => Endpoint::from_shared(format!("https://{peer}"))?.tls_config(tls.clone())?,
    };
    Ok(endpoint
        .connect_timeout(config.connect_timeout)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(config.keep_alive_interval)
        .keep_alive_timeout(config.keep_alive_timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW))
}

/// Makes the connection; the simulation has its own network.
async fn dial(endpoint: &Endpoint) -> Result<Channel, tonic::transport::Error> {
    #[cfg(test)]
    if cortex_cluster::simulation::is_running() {
        return cortex_cluster::simulation::connect(endpoint).await;
    }
    endpoint.connect().await
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, Status> {
    let late = || Status::deadline_exceeded(format!("no answer within {limit:?}"));
    timeout(limit, work).await.map_err(|_| late())
}

fn nobody_listens(status: &Status) -> bool {
    let refused = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
    causes(status).filter_map(|error| error.downcast_ref()).any(refused)
}

/// The innermost cause says most.
fn describe(status: &Status) -> String {
    let text = causes(status).last().map_or_else(|| status.message().to_owned(), ToString::to_string);
    format!("{:?}: {text}", status.code())
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |error| (*error).source())
}
