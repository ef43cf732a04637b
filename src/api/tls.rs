//! REST over TLS: a listener whose connections have shaken hands.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::serve::Listener;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use tokio_util::task::AbortOnDropHandle;

/// How long a handshake may take.
pub const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Handshakes under way; beyond that connections wait to be accepted.
const HANDSHAKES: usize = 1_024;
/// Pause after a connection could not be accepted: too many files are open, say.
const PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections and has them shake hands side by side, so that a slow one holds up nobody.
pub struct TlsListener {
    address: SocketAddr,
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    _accepting: AbortOnDropHandle<()>,
}

impl TlsListener {
    /// Serves what `listener` accepts. Must run inside a runtime.
    ///
    /// # Errors
    /// If the listener has no address.
    pub fn new(listener: TcpListener, config: Arc<ServerConfig>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (sender, ready) = mpsc::channel(1);
        let accepting = tokio::spawn(accept(listener, TlsAcceptor::from(config), sender));
        Ok(Self { address, ready, _accepting: AbortOnDropHandle::new(accepting) })
    }
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    ready: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let places = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "A connection could not be accepted.");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        drop(stream.set_nodelay(true));
        let (handshake, ready) = (acceptor.accept(stream), ready.clone());
        tokio::spawn(async move {
            let outcome = tokio::time::timeout(HANDSHAKE_WITHIN, handshake).await;
            drop(place);
            match outcome {
                Ok(Ok(stream)) => drop(ready.send((stream, peer)).await),
                Ok(Err(error)) => tracing::debug!(%peer, %error, "A TLS handshake failed."),
                Err(_) => tracing::debug!(%peer, "A TLS handshake took too long."),
            }
        });
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(accepted) => accepted,
            // The accepting task never ends before this listener does.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}
