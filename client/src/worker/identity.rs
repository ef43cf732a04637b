//! Who a worker is.
//!
//! The server knows a worker by its hostname and port: the same pair registers
//! as the same worker, and takes the leases of whoever used it before. So two
//! processes must never use one pair at once, and a restarted process should use
//! the pair that it had.

use std::{
    io,
    net::{Ipv4Addr, TcpListener},
};

/// The ports of identities. They lie below those that Linux gives to outgoing connections, any of which would
/// take a worker's port from it while the worker is restarted.
const FIRST_PORT: u16 = 10_000;
const LAST_PORT: u16 = 32_767;

/// A hostname and a port that belong to this process as long as it holds them.
///
/// Nothing is served on the port. It is bound on the loopback address, because
/// the operating system is then the judge between two processes on one host.
#[derive(Debug)]
pub struct Identity {
    pub(crate) name: String,
    pub(crate) hostname: String,
    pub(crate) port: u16,
    /// Holds the port until the worker ends.
    _listener: TcpListener,
}

impl Identity {
    /// Reserves the identity of a name on this host.
    ///
    /// The port follows from a stable hash of the name, so a worker that is
    /// restarted under its name is the same worker to the server and needs not
    /// wait for its old leases to run out. If that port is taken, by a second
    /// worker of the same name or by anything else, the system picks another
    /// one: a new worker to the server.
    ///
    /// # Errors
    /// If the hostname cannot be read or no port can be bound.
    pub fn reserve(name: &str) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port_of(name)))
            .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        Ok(Self {
            name: name.to_owned(),
            hostname: hostname()?,
            port: listener.local_addr()?.port(),
            _listener: listener,
        })
    }

    /// The name that it was reserved for.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// This host's name.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// The reserved port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

fn hostname() -> io::Result<String> {
    let name = nix::unistd::gethostname()?;
    Ok(name.to_string_lossy().into_owned())
}

fn port_of(name: &str) -> u16 {
    let width = u64::from(LAST_PORT - FIRST_PORT);
    let offset = stable_hash(name.as_bytes()) % width;
    // Cannot fail: the offset is smaller than the width of the port range.
    FIRST_PORT + u16::try_from(offset).unwrap_or(0)
}

/// FNV-1a: unlike the standard library's hashers it is the same in every build.
fn stable_hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_published_fnv_1a() {
        assert_eq!(stable_hash(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(stable_hash(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(stable_hash(b"foobar"), 0x8594_4171_f739_67e8);
    }

    #[test]
    fn a_name_gets_its_port_back_and_two_of_one_name_never_share_it() {
        // Anything on this host may hold the port of one name or another.
        let reserved = |n| Identity::reserve(&format!("identity-test-{}-{n}", std::process::id())).unwrap();
        let first = (0..).map(reserved).find(|own| own.port() == port_of(own.name())).unwrap();
        let name = first.name().to_owned();
        let second = Identity::reserve(&name).unwrap();
        assert_ne!(first.port(), second.port());
        let port = first.port();
        drop(first);
        assert_eq!(Identity::reserve(&name).unwrap().port(), port);
    }
}
