//! The listeners of a replica, and how clients and workers are served on them.

use std::future::IntoFuture;
use std::net::SocketAddr;
use std::time::Duration;

use axum::serve::ListenerExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, ServerTlsConfig};

use super::AppError;
use crate::api::grpc::ServingStatus;
use crate::api::{self, Api, HANDSHAKE_WITHIN, TlsListener, TlsPeer};
use crate::config::Config;
use crate::security::TlsIdentity;

/// Calls that may be open on one connection of gRPC: those of a worker that waits for jobs, say.
const MAX_STREAMS: u32 = 1_024;

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
    Ok(Listeners {
        http: open(config.http_listen(), "HTTP").await?,
        grpc: open(config.grpc_listen(), "gRPC").await?,
        peer: open(config.cluster.peer_listen, "other replicas").await?,
    })
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
    let closed = close.clone().cancelled_owned();
    let rest = match tls {
        None => {
            let http = http.tap_io(|stream| drop(stream.set_nodelay(true)));
            let service = router.into_make_service_with_connect_info::<SocketAddr>();
            axum::serve(http, service).with_graceful_shutdown(closed).into_future()
        }
        Some(tls) => {
            let config = tls.http().map_err(std::io::Error::other)?;
            let http = TlsListener::new(http, config)?;
            let service = router.into_make_service_with_connect_info::<TlsPeer>();
            axum::serve(http, service).with_graceful_shutdown(closed).into_future()
        }
    };
    let rest = tokio::spawn(async move {
        if let Err(error) = rest.await {
            tracing::error!(%error, "The HTTP listener failed.");
        }
    });
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
