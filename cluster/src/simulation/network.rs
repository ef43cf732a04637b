//! turmoil's network under tonic's client and server.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Uri};
use turmoil::net::TcpStream;

use super::context::context;

/// The port that all hosts serve.
pub(super) const PORT: u16 = 7100;

/// As [`Endpoint::connect_lazy`], to a simulated host.
pub(crate) fn connect_lazily(endpoint: &Endpoint) -> Channel {
    endpoint.connect_with_connector_lazy(tower::service_fn(dial))
}

/// As [`Endpoint::connect`], to a simulated host.
pub async fn connect(endpoint: &Endpoint) -> Result<Channel, tonic::transport::Error> {
    endpoint.connect_with_connector(tower::service_fn(dial)).await
}

async fn dial(uri: Uri) -> io::Result<TokioIo<Connection>> {
    let host = uri.host().unwrap_or_default().to_owned();
    Connection::over(TcpStream::connect((host, PORT)).await?).map(TokioIo::new)
}

/// Connections to this host.
pub(super) async fn listen() -> io::Result<impl futures::Stream<Item = io::Result<Connection>>> {
    let listener = turmoil::net::TcpListener::bind(("0.0.0.0", PORT)).await?;
    Ok(futures::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.and_then(|(stream, _)| Connection::over(stream));
        Some((accepted, listener))
    }))
}

/// The connections of all hosts.
///
/// A process that ends closes its connections, each with a message of its own, whose way the network draws from the
/// seed: so the order counts. tokio drops the tasks of a runtime by their ids, which it counts over all runtimes
/// of the process, those of other tests, too. Therefore the first connection that goes with its process takes the
/// others of its host along, in the order in which they were made.
#[derive(Default)]
pub(super) struct Connections {
    open: RefCell<BTreeMap<(IpAddr, u64), Stream>>,
    made: Cell<u64>,
    /// A process is ending.
    ending: Cell<bool>,
}

type Stream = Arc<Mutex<Option<TcpStream>>>;

impl Connections {
    /// Does what ends a process.
    pub fn ending<T>(&self, end: impl FnOnce() -> T) -> T {
        self.ending.set(true);
        let ended = end();
        self.ending.set(false);
        ended
    }

    fn close(&self, (host, number): (IpAddr, u64)) {
        let (first, last) = if self.ending.get() { (0, u64::MAX) } else { (number, number) };
        let mut open = self.open.borrow_mut();
        let closed: Vec<_> = open.extract_if((host, first)..=(host, last), |_, _| true).collect();
        drop(open);
        for (_, stream) in closed {
            drop(lock(&stream).take());
        }
    }
}

fn lock(stream: &Stream) -> MutexGuard<'_, Option<TcpStream>> {
    stream.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One connection, whose writes are taken down.
pub(super) struct Connection {
    id: (IpAddr, u64),
    stream: Stream,
}

impl Connection {
    fn over(stream: TcpStream) -> io::Result<Self> {
        let context = context().ok_or(io::ErrorKind::NotConnected)?;
        let connections = &context.connections;
        let id = (stream.local_addr()?.ip(), connections.made.replace(connections.made.get() + 1));
        let stream = Arc::new(Mutex::new(Some(stream)));
        connections.open.borrow_mut().insert(id, Arc::clone(&stream));
        Ok(Connection { id, stream })
    }

    fn with<T>(&self, act: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match lock(&self.stream).as_mut() {
            Some(stream) => act(Pin::new(stream)),
            None => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(context) = context() {
            context.connections.close(self.id);
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_read(context, buffer))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|stream| {
            super::context::wrote(stream.local_addr(), stream.peer_addr());
            stream.poll_write(context, bytes)
        })
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(context))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(context))
    }
}
