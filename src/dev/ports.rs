//! Free ports that two processes do not choose at the same time.

use std::fs::{self, File, OpenOptions};
use std::net::{Ipv4Addr, TcpListener};

use nix::unistd::Uid;

use super::error::DevError;
use crate::domain::ambient::{Ambient, System};

/// First port that is handed out. The range lies below the ports that the kernel gives to outgoing connections.
const FIRST: u16 = 20_000;
/// Ports per block.
const BLOCK: u16 = 16;
/// Blocks from [`FIRST`] on, up to port 31999.
const BLOCKS: u16 = 750;

/// Consecutive ports on 127.0.0.1 that were free when they were reserved.
/// While it lives no other reservation of this user, in any process, gets them.
#[derive(Debug)]
pub struct PortBlock {
    first: u16,
    _lock: File,
}

impl PortBlock {
    /// Reserves `count` ports, at most 16.
    ///
    /// # Errors
    /// When no block is free, or when the lock files cannot be written.
    pub fn reserve(count: u16) -> Result<Self, DevError> {
        let folder = std::env::temp_dir().join(format!("cortex-ports-{}", Uid::effective()));
        fs::create_dir_all(&folder).map_err(DevError::io(format!("create {}", folder.display())))?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below BLOCKS")]
        let start = (System.unit() * f64::from(BLOCKS)) as u16;
        for block in (0..BLOCKS).map(|offset| (start + offset) % BLOCKS).filter(|_| count <= BLOCK) {
            let first = FIRST + block * BLOCK;
            let path = folder.join(first.to_string());
            let lock = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
                .map_err(DevError::io(format!("open {}", path.display())))?;
            // Freed by the kernel when the file is closed, at the latest when this process dies.
            if lock.try_lock().is_ok() && (first..first + count).all(is_free) {
                return Ok(Self { first, _lock: lock });
            }
        }
        Err(DevError::NoFreePorts { count })
    }

    /// The first port.
    pub fn first(&self) -> u16 {
        self.first
    }
}

/// Refuses a port that something listens on.
pub(super) fn check_free(port: u16, purpose: &str, option: Option<&str>) -> Result<(), DevError> {
    if is_free(port) {
        return Ok(());
    }
    let option = option.map(|option| format!(" with {option}")).unwrap_or_default();
    Err(DevError::PortTaken { port, purpose: purpose.to_owned(), option })
}

fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_taken_port_is_named_with_its_purpose_and_the_way_out() {
        // Nobody else takes it, once it is free again.
        let block = PortBlock::reserve(1).unwrap();
        let port = block.first();
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).unwrap();
        let error = check_free(port, "HTTP of replica 2", Some("--http-port")).unwrap_err().to_string();
        assert_eq!(
            error,
            format!(
                "port {port} (HTTP of replica 2) is taken: stop what listens there, or choose another port with --http-port"
            )
        );
        drop(taken);
        // A process that another test has forked holds a copy of the listener until it becomes its own program.
        let free = || check_free(port, "HTTP of replica 2", None).is_ok();
        let wait = || std::thread::sleep(Duration::from_millis(1));
        assert!((0..10_000).any(|_| free() || {
            wait();
            false
        }));
    }

    #[test]
    fn reservations_never_overlap_while_they_live() {
        let blocks: Vec<_> = (0..20).map(|_| PortBlock::reserve(3).unwrap()).collect();
        let mut firsts: Vec<_> = blocks.iter().map(PortBlock::first).collect();
        firsts.sort_unstable();
        firsts.dedup();
        assert_eq!(firsts.len(), 20);
        assert!(PortBlock::reserve(BLOCK + 1).is_err());
    }
}
