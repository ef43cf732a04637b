//! Network faults without privileges: everything that replicas say to each other and to the stores passes through a
//! relay.
//!
//! There is one relay in front of each destination. A [`Dialler`] tells which replica has dialled it, so each edge can
//! be cut alone, also where all replicas share one address.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::diallers::Dialler;
use super::network::{Condition, End, Link, Places};
use crate::draw::Draw;

/// Bytes that are passed on at a time.
const CHUNK: usize = 16 * 1024;
/// Longest wait for a destination that should be there.
const DIAL_WITHIN: Duration = Duration::from_secs(5);
/// Chunks that are on their way in one direction at the most.
const ON_THE_WAY: usize = 256;
/// What a lost packet costs: TCP's shortest time before it sends again.
const SENT_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// One edge: its condition, and what came of that.
struct Edge {
    condition: watch::Sender<Condition>,
    /// Replaced whenever its connections are cut.
    connections: Mutex<CancellationToken>,
    affected: AtomicU64,
    draw: Mutex<Draw>,
}

/// All relays of a run.
pub struct Relays {
    shared: Arc<Shared>,
    addresses: Places,
    stop: CancellationToken,
}

struct Shared {
    edges: Mutex<HashMap<Link, Arc<Edge>>>,
    dialler: Dialler,
    seed: u64,
}

impl Relays {
    /// Starts a relay in front of each destination, all on one address. What gets lost and how late it comes is drawn by
    /// the seed.
    ///
    /// # Errors
    /// When no port can be listened on.
    pub async fn start(on: IpAddr, destinations: &Places, dialler: Dialler, seed: u64) -> io::Result<Self> {
        let shared = Arc::new(Shared { edges: Mutex::default(), dialler, seed });
        let (mut addresses, stop) = (Places::new(), CancellationToken::new());
        for (end, destination) in destinations.iter().map(|(end, place)| (*end, *place)) {
            let listener = TcpListener::bind((on, 0)).await?;
            addresses.insert(end, listener.local_addr()?);
            tokio::spawn(listen(listener, end, destination, Arc::clone(&shared), stop.clone()));
        }
        Ok(Self { shared, addresses, stop })
    }

    /// Where a destination is reached through its relay.
    pub fn address(&self, end: End) -> Option<SocketAddr> {
        self.addresses.get(&end).copied()
    }

    /// Where each destination is reached.
    pub fn places(&self) -> Places {
        self.addresses.clone()
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
                draw: Mutex::new(Draw::new(self.seed, &format!("{link:?}"))),
            })
        };
        Arc::clone(lock(&self.edges).entry(link).or_insert_with(new))
    }
}

impl Edge {
    /// How much longer what is said now is on its way than usual.
    fn delay(&self) -> Duration {
        let delay = match *self.condition.borrow() {
            Condition::Slow { delay, jitter } => {
                let jitter = u64::try_from(jitter.as_micros()).unwrap_or(u64::MAX);
                delay + Duration::from_micros(lock(&self.draw).between(0, jitter.saturating_add(1)))
            }
            Condition::Lossy(percent) if lock(&self.draw).percent(percent) => SENT_AGAIN_AFTER,
            _ => return Duration::ZERO,
        };
        if !delay.is_zero() {
            self.affected.fetch_add(1, Ordering::Relaxed);
        }
        delay
    }
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
        let Ok(relay) = listener.local_addr() else { continue };
        let (shared, stop) = (Arc::clone(&shared), stop.clone());
        tokio::spawn(async move {
            let owner = {
                let shared = Arc::clone(&shared);
                tokio::task::spawn_blocking(move || (shared.dialler)(from, relay)).await.ok().flatten()
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

/// Carries one connection until both sides are at their end, or it is broken.
async fn carry(client: TcpStream, destination: SocketAddr, edge: &Edge) {
    // A new connection does not come through either where nothing does.
    sleep(edge.delay()).await;
    pass(edge, Way::Out).await;
    let Ok(Ok(server)) = tokio::time::timeout(DIAL_WITHIN, TcpStream::connect(destination)).await else {
        return;
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ((client_in, client_out), (server_in, server_out)) = (client.into_split(), server.into_split());
    let _ = tokio::try_join!(
        pump(client_in, server_out, edge, Way::Out),
        pump(server_in, client_out, edge, Way::Back)
    );
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Out,
    Back,
}

/// Says that a connection is broken, and must be in both directions at once.
struct Broken;

/// Carries one direction to its end. What is read waits for its time and for the edge; so does the end.
async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, edge: &Edge, way: Way) -> Result<(), Broken> {
    let (chunks, mut arriving) = mpsc::channel(ON_THE_WAY);
    let read = async move {
        let (mut chunk, mut last) = (vec![0; CHUNK], Instant::now());
        loop {
            let read = from.read(&mut chunk).await;
            // Nothing overtakes what was said before.
            last = last.max(Instant::now() + edge.delay());
            match read {
                Ok(0) => break,
                Ok(length) if chunks.send((last, Ok(chunk[..length].to_vec()))).await.is_ok() => {}
                _ => {
                    let _ = chunks.send((last, Err(Broken))).await;
                    break;
                }
            }
        }
        drop(chunks);
        // The other half ends this one, when all that was read has arrived.
        std::future::pending().await
    };
    let write = async {
        while let Some((due, chunk)) = arriving.recv().await {
            sleep_until(due).await;
            if !pass(edge, way).await {
                return Err(Broken);
            }
            to.write_all(&chunk?).await.map_err(|_| Broken)?;
        }
        if !pass(edge, way).await {
            return Err(Broken);
        }
        to.shutdown().await.map_err(|_| Broken)
    };
    tokio::select! {
        end = read => end,
        end = write => end,
    }
}

/// Waits until something may pass in this direction; answers `false` if it must be lost and the connection broken.
async fn pass(edge: &Edge, way: Way) -> bool {
    let mut condition = edge.condition.subscribe();
    let mut counted = false;
    loop {
        let now = *condition.borrow_and_update();
        let held = match (now, way) {
            (Condition::Open | Condition::Slow { .. } | Condition::Lossy(_), _)
            | (Condition::Deaf, Way::Back)
            | (Condition::Mute | Condition::LoseReplies, Way::Out) => {
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
    use std::net::Ipv4Addr;

    use super::super::diallers::by_process;
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

    async fn relay(dialler: Dialler) -> Relays {
        let on = Ipv4Addr::LOCALHOST.into();
        Relays::start(on, &Places::from([(End::Postgres, echo().await)]), dialler, 1).await.unwrap()
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
        let relays = relay(by_process(|pid| (pid == std::process::id()).then_some(1))).await;
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

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_slow_edge_takes_its_time_both_ways_and_keeps_the_order() {
        let relays = relay(Arc::new(|_, _| Some(2))).await;
        let edge = Link { from: 2, to: End::Postgres };
        let mut stream = TcpStream::connect(relays.address(End::Postgres).unwrap()).await.unwrap();
        assert!(says(&mut stream, b"open").await);
        relays.set(
            edge,
            Condition::Slow { delay: Duration::from_millis(30), jitter: Duration::from_millis(50) },
        );
        let begun = Instant::now();
        let said: Vec<u8> = (0..200).collect();
        for byte in &said {
            stream.write_all(&[*byte]).await.unwrap();
        }
        let mut heard = vec![0; said.len()];
        stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(heard, said);
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(60), "{took:?}");
        assert!(took < Duration::from_secs(3), "one after the other: {took:?}");
        assert!(relays.affected(edge) >= 2);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_end_of_a_connection_does_not_pass_where_nothing_does() {
        let relays = relay(Arc::new(|_, _| Some(2))).await;
        let edge = Link { from: 2, to: End::Postgres };
        let mut stream = TcpStream::connect(relays.address(End::Postgres).unwrap()).await.unwrap();
        assert!(says(&mut stream, b"open").await);
        relays.set(edge, Condition::Mute);
        // The other side answers this end with its own.
        stream.shutdown().await.unwrap();
        let end = stream.read_u8();
        assert!(tokio::time::timeout(Duration::from_millis(300), end).await.is_err(), "the end came through");
        relays.set(edge, Condition::Open);
        let end = tokio::time::timeout(Duration::from_secs(5), stream.read_u8()).await.unwrap();
        assert!(end.is_err());
    }
}
