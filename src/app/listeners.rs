//! The listeners of a replica, and how clients and workers are served on them.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::serve::{Listener, ListenerExt};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, ServerTlsConfig};
use tower_http::add_extension::AddExtension;

use super::AppError;
use crate::api::grpc::ServingStatus;
use crate::api::{self, Api, HANDSHAKE_WITHIN, TlsListener};
use crate::config::Config;
use crate::security::TlsIdentity;

/// Calls that may be open on one connection of gRPC: those of a worker that waits for jobs, say.
const MAX_STREAMS: u32 = 1_024;

/// How long a client may read nothing of what was sent to it, before its connection is closed.
const READ_WITHIN: Duration = Duration::from_secs(30);

/// How long the head of a call to REST may take, or a connection may be kept without one: longer than most clients keep
/// idle connections, so that they close them first.
const HEAD_WITHIN: Duration = Duration::from_secs(120);

/// The three listeners.
pub(super) struct Listeners {
    pub(super) http: TcpListener,
    pub(super) grpc: TcpListener,
    pub(super) peer: TcpListener,
}

/// Opens them all, or none.
pub(super) async fn listen(config: &Config) -> Result<Listeners, AppError> {
    let open = async |address: SocketAddr, purpose: &'static str| {
        let opened = TcpListener::bind(address).await;
        opened.map_err(|source| AppError::Listen { address, purpose, source })
    };
    let to_clients = async |address, purpose| {
        let listener = open(address, purpose).await?;
        closes_unread(&listener).map_err(|source| AppError::Listen { address, purpose, source })?;
        Ok::<_, AppError>(listener)
    };
    Ok(Listeners {
        http: to_clients(config.http_listen(), "HTTP").await?,
        grpc: to_clients(config.grpc_listen(), "gRPC").await?,
        peer: open(config.cluster.peer_listen, "other replicas").await?,
    })
}

/// Has connections closed whose client does not read. They have it from the listener that accepts them.
fn closes_unread(listener: &TcpListener) -> std::io::Result<()> {
    SockRef::from(listener).set_tcp_user_timeout(Some(READ_WITHIN))
}

/// What a listener of gRPC shows.
pub(super) fn grpc_tls(identity: &TlsIdentity) -> ServerTlsConfig {
    ServerTlsConfig::new()
        .identity(Identity::from_pem(&identity.cert, &identity.key))
        .timeout(HANDSHAKE_WITHIN)
}

/// Serves clients and workers until `close`, over TLS if there is an identity.
pub(super) async fn serve(
    api: Api,
    http: TcpListener,
    grpc: TcpListener,
    tls: Option<&TlsIdentity>,
    close: &CancellationToken,
) -> Result<([JoinHandle<()>; 2], ServingStatus), AppError> {
    let (routes, serving) =
        api::grpc::routes(api.clone()).await.map_err(|error| AppError::Grpc(error.to_string()))?;
    let http2_headers = u32::try_from(api.gate.max_header_bytes).ok();
    let router = api::rest::router(api);
    let closed = close.clone();
    let rest = match tls {
        None => {
            let http = http.tap_io(|stream| drop(stream.set_nodelay(true)));
            tokio::spawn(serve_rest(http, router, closed))
        }
        Some(tls) => {
            let config = tls.http().map_err(std::io::Error::other)?;
            tokio::spawn(serve_rest(TlsListener::new(http, config)?, router, closed))
        }
    };
    let mut server = tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(http2_headers)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)));
    if let Some(tls) = tls {
        server = server.tls_config(grpc_tls(tls)).map_err(|error| AppError::Grpc(error.to_string()))?;
    }
    let server = server.add_routes(routes);
    let (incoming, closed) = (TcpIncoming::from(grpc).with_nodelay(Some(true)), close.clone());
    let switch = serving.clone();
    let grpc = tokio::spawn(async move {
        switch.set(true).await;
        if let Err(error) = server.serve_with_incoming_shutdown(incoming, closed.cancelled_owned()).await {
            tracing::error!(%error, "The gRPC listener failed.");
        }
    });
    Ok(([rest, grpc], serving))
}

/// Serves REST until `close`, and then lets calls under way finish.
async fn serve_rest<L>(mut listener: L, router: Router, close: CancellationToken)
where
    L: Listener<Addr = SocketAddr>,
{
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN);
    let connections = GracefulShutdown::new();
    while let Some((io, address)) = close.run_until_cancelled(listener.accept()).await {
        let service = TowerToHyperService::new(AddExtension::new(router.clone(), ConnectInfo(address)));
        let connection = connections.watch(server.serve_connection(TokioIo::new(io), service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::trace!(%address, %error, "A connection broke off.");
            }
        });
    }
    drop(listener);
    connections.shutdown().await;
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::io;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::Instant;

    use super::*;

    const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

    struct Once(Option<DuplexStream>);

    impl Listener for Once {
        type Io = DuplexStream;
        type Addr = SocketAddr;

        async fn accept(&mut self) -> (DuplexStream, SocketAddr) {
            match self.0.take() {
                Some(stream) => (stream, PEER),
                None => pending().await,
            }
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(PEER)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_is_answered_and_half_a_head_is_waited_for_two_minutes() {
        let (mut client, server) = duplex(4096);
        let close = CancellationToken::new();
        let serving = tokio::spawn(serve_rest(Once(Some(server)), Router::new(), close.clone()));
        let head = b"GET / HTTP/1.1\r\nhost: localhost\r\n";
        client.write_all(&[head, &b"\r\n"[..], head].concat()).await.unwrap();
        let began = Instant::now();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
        assert_eq!(began.elapsed().as_secs(), HEAD_WITHIN.as_secs());
        close.cancel();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_is_closed_whose_client_does_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        closes_unread(&listener).unwrap();
        let address = listener.local_addr().unwrap();
        let (accepted, _client) = tokio::join!(listener.accept(), tokio::net::TcpStream::connect(address));
        let (accepted, _) = accepted.unwrap();
        assert_eq!(SockRef::from(&accepted).tcp_user_timeout().unwrap(), Some(READ_WITHIN));
    }
}
