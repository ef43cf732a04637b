//! Network faults without privileges: everything that replicas say to each other and to the stores passes through a
//! relay on loopback.
//!
//! There is one relay in front of each destination. Who has dialled it is looked up in `/proc`: the socket at the other
//! end belongs to one of the replicas' processes. So each edge can be cut alone, though all replicas share one address.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::network::{Condition, End, Link};

/// Bytes that are passed on at a time.
const CHUNK: usize = 16 * 1024;
/// Longest wait for a destination that should be there.
const DIAL_WITHIN: Duration = Duration::from_secs(5);

/// One edge: its condition, and what came of that.
struct Edge {
    condition: watch::Sender<Condition>,
    /// Replaced whenever its connections are cut.
    connections: Mutex<CancellationToken>,
    affected: AtomicU64,
}

/// All relays of a run.
pub struct Relays {
    shared: Arc<Shared>,
    addresses: BTreeMap<End, SocketAddr>,
    stop: CancellationToken,
}

struct Shared {
    edges: Mutex<HashMap<Link, Arc<Edge>>>,
    /// Process ids by index of the replica.
    pids: Mutex<Vec<Option<u32>>>,
}

impl Relays {
    /// Starts a relay in front of each destination.
    ///
    /// # Errors
    /// When no port can be listened on.
    pub async fn start(destinations: &[(End, SocketAddr)]) -> io::Result<Self> {
        let shared = Arc::new(Shared { edges: Mutex::default(), pids: Mutex::default() });
        let (mut addresses, stop) = (BTreeMap::new(), CancellationToken::new());
        for (end, destination) in destinations.iter().copied() {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
            addresses.insert(end, listener.local_addr()?);
            tokio::spawn(listen(listener, end, destination, Arc::clone(&shared), stop.clone()));
        }
        Ok(Self { shared, addresses, stop })
    }

    /// Where a destination is reached through its relay.
    pub fn address(&self, end: End) -> Option<SocketAddr> {
        self.addresses.get(&end).copied()
    }

    /// Says which process a replica is, whenever one has started.
    pub fn is_process(&self, replica: usize, pid: Option<u32>) {
        let mut pids = lock(&self.shared.pids);
        if pids.len() <= replica {
            pids.resize(replica + 1, None);
        }
        pids[replica] = pid;
    }

    /// Puts an edge into a condition. Connections stay, as they do when a cable is pulled.
    pub fn set(&self, link: Link, condition: Condition) {
        self.shared.edge(link).condition.send_replace(condition);
    }

    /// Breaks all connections of an edge.
    pub fn reset(&self, link: Link) {
        let edge = self.shared.edge(link);
        edge.affected.fetch_add(1, Ordering::Relaxed);
        std::mem::take(&mut *lock(&edge.connections)).cancel();
    }

    /// How often the edge's condition has held something back, thrown it away or broken it.
    pub fn affected(&self, link: Link) -> u64 {
        self.shared.edge(link).affected.load(Ordering::Relaxed)
    }
}

impl Drop for Relays {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl Shared {
    fn edge(&self, link: Link) -> Arc<Edge> {
        let new = || {
            let connections = Mutex::new(CancellationToken::new());
            Arc::new(Edge {
                condition: watch::Sender::new(Condition::Open),
                connections,
                affected: AtomicU64::new(0),
            })
        };
        Arc::clone(lock(&self.edges).entry(link).or_insert_with(new))
    }

    /// The replica whose process owns the socket with this local port.
    fn owner(&self, port: u16, relay: u16) -> Option<usize> {
        let pids = lock(&self.pids).clone();
        let inode = inode_of(&fs::read_to_string("/proc/net/tcp").ok()?, port, relay)?;
        let socket = format!("socket:[{inode}]");
        let owns = |pid: u32| {
            let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
            let is_it = |path| fs::read_link(path).is_ok_and(|target| target.as_os_str() == socket.as_str());
            open.flatten().any(|entry| is_it(entry.path())).then_some(())
        };
        pids.iter().position(|pid| pid.is_some_and(|pid| owns(pid).is_some()))
    }
}

/// The inode of the socket from `port` to `relay`, in the text of `/proc/net/tcp`.
fn inode_of(table: &str, port: u16, relay: u16) -> Option<u64> {
    let (local, remote) = (format!(":{port:04X}"), format!(":{relay:04X}"));
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let (from, to) = (fields.next()?, fields.next()?);
        (from.ends_with(&local) && to.ends_with(&remote)).then(|| fields.nth(6)?.parse().ok())?
    })
}

async fn listen(
    listener: TcpListener,
    end: End,
    destination: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((client, from)) = accepted else { continue };
        let relay = listener.local_addr().map_or(0, |address| address.port());
        let (shared, stop) = (Arc::clone(&shared), stop.clone());
        tokio::spawn(async move {
            let owner = {
                let shared = Arc::clone(&shared);
                tokio::task::spawn_blocking(move || shared.owner(from.port(), relay)).await.ok().flatten()
            };
            // Whoever is no replica has an edge of its own, on which nothing is ever set.
            let edge = shared.edge(Link { from: owner.unwrap_or(usize::MAX), to: end });
            let cut = lock(&edge.connections).clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = cut.cancelled() => {}
                () = carry(client, destination, &edge) => {}
            }
        });
    }
}

/// Carries one connection until either side is at its end.
async fn carry(client: TcpStream, destination: SocketAddr, edge: &Edge) {
    // A new connection does not come through either where nothing does.
    pass(edge, Way::Out).await;
    let Ok(Ok(server)) = tokio::time::timeout(DIAL_WITHIN, TcpStream::connect(destination)).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((client_in, client_out), (server_in, server_out)) = (client.into_split(), server.into_split());
    tokio::select! {
        () = pump(client_in, server_out, edge, Way::Out) => {}
        () = pump(server_in, client_out, edge, Way::Back) => {}
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Out,
    Back,
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, edge: &Edge, way: Way) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let Ok(length @ 1..) = from.read(&mut chunk).await else { return };
        if !pass(edge, way).await || to.write_all(&chunk[..length]).await.is_err() {
            return;
        }
    }
}

/// Waits until something may pass in this direction; answers `false` if it must be lost and the connection broken.
async fn pass(edge: &Edge, way: Way) -> bool {
    let mut condition = edge.condition.subscribe();
    let mut counted = false;
    loop {
        let now = *condition.borrow_and_update();
        let held = match (now, way) {
            (Condition::Open, _)
            | (Condition::Deaf, Way::Back)
            | (Condition::Mute | Condition::LoseReplies, Way::Out) => {
                return true;
            }
            (Condition::Slow(delay), _) => {
                edge.affected.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(delay).await;
                return true;
            }
            (Condition::LoseReplies, Way::Back) => {
                edge.affected.fetch_add(1, Ordering::Relaxed);
                return false;
            }
            (Condition::Cut, _) | (Condition::Deaf, Way::Out) | (Condition::Mute, Way::Back) => true,
        };
        if held && !counted {
            counted = true;
            edge.affected.fetch_add(1, Ordering::Relaxed);
        }
        if condition.changed().await.is_err() {
            return false;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn echo() -> SocketAddr {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        address
    }

    async fn says(stream: &mut TcpStream, text: &[u8; 4]) -> bool {
        let mut answer = [0; 4];
        let talk = async {
            stream.write_all(text).await?;
            stream.read_exact(&mut answer).await
        };
        matches!(tokio::time::timeout(Duration::from_millis(300), talk).await, Ok(Ok(_))) && answer == *text
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_edge_is_cut_healed_broken_and_loses_replies_and_its_dialler_is_known() {
        let relays = Relays::start(&[(End::Postgres, echo().await)]).await.unwrap();
        relays.is_process(1, Some(std::process::id()));
        let address = relays.address(End::Postgres).unwrap();
        let (ours, others) = (Link { from: 1, to: End::Postgres }, Link { from: 0, to: End::Postgres });
        let mut stream = TcpStream::connect(address).await.unwrap();
        assert!(says(&mut stream, b"open").await);

        relays.set(others, Condition::Cut);
        assert!(says(&mut stream, b"mine").await, "another replica's edge is none of ours");
        assert_eq!(relays.affected(ours), 0);

        relays.set(ours, Condition::Cut);
        assert!(!says(&mut stream, b"lost").await);
        assert!(relays.affected(ours) > 0);
        relays.set(ours, Condition::Open);
        let mut late = [0; 4];
        stream.read_exact(&mut late).await.unwrap();
        assert_eq!(&late, b"lost", "what was held back arrives when the edge is whole again");

        relays.set(ours, Condition::LoseReplies);
        assert!(!says(&mut stream, b"gone").await);
        relays.set(ours, Condition::Open);
        assert!(!says(&mut stream, b"dead").await, "the connection is broken");

        let mut stream = TcpStream::connect(address).await.unwrap();
        assert!(says(&mut stream, b"anew").await);
        relays.reset(ours);
        assert!(!says(&mut stream, b"dead").await);
    }

    #[test]
    fn the_inode_is_read_from_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 77 1 0 20 4\n\
            1: 0100007F:D431 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 78 1 0 20 4\n";
        assert_eq!(inode_of(table, 0xD431, 0x1F90), Some(78));
        assert_eq!(inode_of(table, 0xD431, 0x1F91), None);
    }
}
