//! A network of the kernel's own: each replica in a network namespace, all on one bridge, packets dropped by nftables.
//!
//! The harness itself moves into a namespace of its own first ([`enter`]), together with a mount namespace that hides
//! the names of its network namespaces from everybody else. So nothing that is made here touches the machine's network,
//! and when the last process of a run has ended, however it ended, the kernel takes everything away.
//!
//! Replicas dial each other directly. Stores listen on loopback alone and are reached through relays on the bridge.
//! Delay and lost answers, which packet filters cannot do, are the relays' work: a replica that dials a peer is led
//! round by DNAT.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Stdio;
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::Mutex;

use super::diallers::Dialler;
use super::network::{Condition, End, Link, Places};
use super::options::Error;
use super::relays::Relays;

/// Where `ip netns` keeps the names.
const NAMES: &str = "/run/netns";
/// The bridge, and the harness' own address on it.
const BRIDGE: &str = "hub";

/// Namespaces of replicas, with the bridge between them.
pub struct Namespaces {
    relays: Relays,
    /// Where replicas dial each end.
    places: Places,
    conditions: Mutex<BTreeMap<Link, Condition>>,
}

/// Keeps what this process will mount to itself and its children, so that nothing of it outlives them. Must be called
/// while it has one thread only.
///
/// # Errors
/// When the kernel refuses, mostly for lack of root.
pub fn keep_mounts() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    // Among the children, a file system that is taken away is gone for all of them.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SHARED, none)
}

/// Moves this process into a network of its own, and keeps its mounts to itself as [`keep_mounts`] does. Must be called
/// while it has one thread only.
///
/// # Errors
/// When the kernel refuses, mostly for lack of root.
pub fn enter() -> Result<(), Error> {
    let refused = |what: &str, error: nix::Error| format!("--network netns: cannot {what}: {error}");
    keep_mounts().map_err(|error| refused("keep its mounts to itself (it needs root)", error))?;
    unshare(CloneFlags::CLONE_NEWNET).map_err(|error| refused("enter a network namespace", error))?;
    let none = None::<&str>;
    std::fs::create_dir_all(NAMES)?;
    mount(Some("tmpfs"), NAMES, Some("tmpfs"), MsFlags::empty(), none)
        .map_err(|error| refused("hide its namespaces", error))?;
    Ok(())
}

/// The address of the bridge.
pub(super) fn hub() -> IpAddr {
    Ipv4Addr::new(10, 117, 0, 1).into()
}

/// The address of a replica.
pub(super) fn address(replica: u16) -> IpAddr {
    let [high, low] = replica.saturating_add(1).to_be_bytes();
    Ipv4Addr::new(10, 117, 1 + high, low).into()
}

/// What a replica's command line begins with.
pub(super) fn wrapper(replica: u16) -> Vec<String> {
    ["ip", "netns", "exec", &name(replica.into())].map(ToOwned::to_owned).to_vec()
}

/// Makes the bridge, and a namespace for each replica.
pub(super) async fn create(replicas: u16) -> Result<(), Error> {
    let mut script = format!(
        "link set lo up\n\
         link add name {BRIDGE} type bridge\n\
         addr add {}/16 dev {BRIDGE}\n\
         link set {BRIDGE} up\n",
        hub()
    );
    for replica in 0..replicas {
        let name = name(replica.into());
        let _ = write!(
            script,
            "netns add {name}\n\
             link add port-{replica} type veth peer name eth0 netns {name}\n\
             link set port-{replica} master {BRIDGE} up\n"
        );
    }
    feed(Command::new("ip").args(["-batch", "-"]), &script).await?;
    for replica in 0..replicas {
        let own = format!("link set lo up\naddr add {}/16 dev eth0\nlink set eth0 up\n", address(replica));
        feed(Command::new("ip").args(["-netns", &name(replica.into()), "-batch", "-"]), &own).await?;
    }
    Ok(())
}

/// Tells by the address which replica has dialled.
pub(super) fn by_address(replicas: u16) -> Dialler {
    Arc::new(move |from, _| (0..replicas).find(|replica| address(*replica) == from.ip()).map(Into::into))
}

impl Namespaces {
    /// Puts the packet filters in place. `places` says where replicas dial each end, `relays` what can be led round.
    pub(super) async fn start(replicas: u16, places: Places, relays: Relays) -> Result<Self, Error> {
        let namespaces = Self { relays, places, conditions: Mutex::default() };
        for replica in 0..replicas {
            let mut script = "table inet chaos {\n".to_owned();
            for end in namespaces.places.keys() {
                let _ = writeln!(script, "counter {} {{}}", counter(*end));
            }
            script.push_str(
                "chain said { type filter hook output priority 0; }\n\
                 chain heard { type filter hook input priority 0; }\n\
                 chain led { type nat hook output priority -100; }\n\
                 }\n",
            );
            filter(replica.into(), &script).await?;
        }
        Ok(namespaces)
    }

    pub(super) async fn set(&self, link: Link, condition: Condition) -> Result<(), String> {
        let mut conditions = self.conditions.lock().await;
        let before = conditions.insert(link, condition).unwrap_or(Condition::Open);
        let relayed = |condition| matches!(condition, Condition::Slow { .. } | Condition::LoseReplies);
        let by_relay = if relayed(condition) { condition } else { Condition::Open };
        self.relays.set(link, by_relay);
        let mut script =
            "flush chain inet chaos said\nflush chain inet chaos heard\nflush chain inet chaos led\n"
                .to_owned();
        for (link, condition) in conditions.iter().filter(|(other, _)| other.from == link.from) {
            script.push_str(&self.rules(link.to, *condition)?);
        }
        filter(link.from, &script).await?;
        // Only new connections are led round.
        if relayed(condition) && !relayed(before) && matches!(link.to, End::Replica(_)) {
            self.reset(link).await?;
        }
        Ok(())
    }

    /// Breaks the connections of an edge at the dialler's end, which tells the other one.
    pub(super) async fn reset(&self, link: Link) -> Result<(), String> {
        let place = self.place(link.to)?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &name(link.from), "ss", "-K", "-H", "-t", "dst"]);
        command.arg(format!("{}:{}", place.ip(), place.port()));
        let output = command.output().await.map_err(|error| error.to_string())?;
        if output.status.success() { Ok(()) } else { Err("ss cannot break connections".to_owned()) }
    }

    /// How many packets were dropped, and how often a relay has done something.
    pub(super) async fn affected(&self, link: Link) -> Result<u64, String> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &name(link.from), "nft", "-j", "list", "counter", "inet", "chaos"]);
        let output = command.arg(counter(link.to)).output().await.map_err(|error| error.to_string())?;
        let said: serde_json::Value = serde_json::from_slice(&output.stdout)
            .map_err(|_| String::from_utf8_lossy(&output.stderr).into_owned())?;
        let packets = |item: &serde_json::Value| item["counter"]["packets"].as_u64();
        let dropped = said["nftables"].as_array().and_then(|items| items.iter().find_map(packets));
        Ok(dropped.ok_or("nft does not tell what it has counted")? + self.relays.affected(link))
    }

    /// What the dialler's packet filter does about an edge.
    fn rules(&self, to: End, condition: Condition) -> Result<String, String> {
        let place = self.place(to)?;
        let (said, heard) = (place_is("daddr", "dport", place), place_is("saddr", "sport", place));
        let drop = format!("counter name {} drop", counter(to));
        let said = |when: &str| format!("add rule inet chaos said {said} {when}{drop}\n");
        let heard = |when: &str| format!("add rule inet chaos heard {heard} {when}{drop}\n");
        Ok(match condition {
            Condition::Open => String::new(),
            Condition::Cut | Condition::Lossy(100..) => said("") + &heard(""),
            Condition::Deaf => said(""),
            Condition::Mute => heard(""),
            Condition::Lossy(percent) => {
                let chance = format!("numgen random mod 100 < {percent} ");
                said(&chance) + &heard(&chance)
            }
            Condition::Slow { .. } | Condition::LoseReplies => match (to, self.relays.address(to)) {
                (End::Replica(_), Some(relay)) => {
                    let from = place_is("daddr", "dport", place);
                    format!("add rule inet chaos led {from} dnat ip to {relay}\n")
                }
                // Stores are behind a relay anyway.
                _ => String::new(),
            },
        })
    }

    fn place(&self, end: End) -> Result<SocketAddr, String> {
        self.places.get(&end).copied().ok_or_else(|| format!("nobody knows where {end:?} is"))
    }
}

fn name(replica: usize) -> String {
    format!("replica-{}", replica + 1)
}

fn counter(end: End) -> String {
    match end {
        End::Replica(replica) => format!("replica_{}", replica + 1),
        End::Postgres => "postgres".to_owned(),
        End::Redis => "redis".to_owned(),
    }
}

fn place_is(address: &str, port: &str, place: SocketAddr) -> String {
    format!("ip {address} {} tcp {port} {}", place.ip(), place.port())
}

async fn filter(replica: usize, script: &str) -> Result<(), String> {
    feed(Command::new("ip").args(["netns", "exec", &name(replica), "nft", "-f", "-"]), script).await
}

/// Runs a program with something to read, and quotes it when it fails.
async fn feed(command: &mut Command, script: &str) -> Result<(), String> {
    let what = format!("{:?}", command.as_std());
    let failed = |error: std::io::Error| format!("{what}: {error}");
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = piped.spawn().map_err(failed)?;
    if let Some(mut input) = child.stdin.take() {
        input.write_all(script.as_bytes()).await.map_err(failed)?;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{what}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::time::Duration;

    use nix::sched::setns;

    use super::*;

    const PORT: u16 = 7000;

    /// Runs something in a replica's namespace. A namespace is a thread's own.
    async fn inside<T: Send + 'static>(replica: usize, run: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = move || {
            let namespace = File::open(format!("{NAMES}/{}", name(replica))).unwrap();
            setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
            run()
        };
        tokio::task::spawn_blocking(move || std::thread::spawn(thread).join().unwrap()).await.unwrap()
    }

    async fn dial() -> TcpStream {
        inside(0, || {
            let stream = TcpStream::connect((address(1), PORT)).unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            stream
        })
        .await
    }

    async fn says(stream: &TcpStream, text: &[u8; 4]) -> bool {
        let (mut stream, text) = (stream.try_clone().unwrap(), *text);
        let talk = move || {
            let mut answer = [0; 4];
            stream.write_all(&text).is_ok() && stream.read_exact(&mut answer).is_ok() && answer == text
        };
        tokio::task::spawn_blocking(talk).await.unwrap()
    }

    async fn drops_and_detours() {
        create(2).await.unwrap();
        let listener = inside(1, || TcpListener::bind((address(1), PORT)).unwrap()).await;
        std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
            }
        });
        let to = End::Replica(1);
        let places = Places::from([(to, SocketAddr::from((address(1), PORT)))]);
        let relays = Relays::start(hub(), &places, by_address(2), 1).await.unwrap();
        let network = Namespaces::start(2, places, relays).await.unwrap();
        let link = Link { from: 0, to };

        let stream = dial().await;
        assert!(says(&stream, b"open").await);
        assert_eq!(network.affected(link).await.unwrap(), 0);
        for condition in [Condition::Cut, Condition::Deaf, Condition::Mute, Condition::Lossy(100)] {
            let before = network.affected(link).await.unwrap();
            network.set(link, condition).await.unwrap();
            stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let stream = stream.try_clone().unwrap();
            assert!(!says(&stream, b"lost").await, "{condition:?}");
            assert!(network.affected(link).await.unwrap() > before, "{condition:?}");
            network.set(link, Condition::Open).await.unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let mut late = [0; 4];
            let read = move || (&stream).read_exact(&mut late).map(|()| late);
            let late = tokio::task::spawn_blocking(read).await.unwrap().unwrap();
            assert_eq!(&late, b"lost", "TCP sends it again: {condition:?}");
        }

        let (delay, jitter) = (Duration::from_millis(40), Duration::ZERO);
        network.set(link, Condition::Slow { delay, jitter }).await.unwrap();
        assert!(!says(&stream, b"dead").await, "what is not led round yet is broken");
        let stream = dial().await;
        let begun = tokio::time::Instant::now();
        assert!(says(&stream, b"slow").await);
        assert!(begun.elapsed() >= 2 * delay);

        let before = network.affected(link).await.unwrap();
        network.set(link, Condition::LoseReplies).await.unwrap();
        assert!(!says(&stream, b"gone").await);
        assert!(network.affected(link).await.unwrap() > before);
        network.set(link, Condition::Open).await.unwrap();
        assert!(says(&dial().await, b"anew").await);
    }

    #[test]
    fn the_kernel_drops_what_it_should_and_counts_it_and_peers_are_led_round() {
        if !nix::unistd::Uid::effective().is_root() || !std::path::Path::new("/usr/sbin/nft").exists() {
            eprintln!("not tried: it needs root and nftables");
            return;
        }
        // Only this thread moves, and those that it starts.
        let moved = std::thread::spawn(|| {
            enter().unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(drops_and_detours());
        });
        moved.join().unwrap();
    }
}
