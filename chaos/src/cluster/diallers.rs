//! Who has dialled a relay.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

/// Tells which replica has dialled, by the address that it dialled from and the relay's own; `None` if it was none.
/// May block.
pub type Dialler = Arc<dyn Fn(SocketAddr, SocketAddr) -> Option<usize> + Send + Sync>;

/// Where all replicas share one address: the socket at the other end belongs to a process, and `replica` tells which
/// replica that is.
pub fn by_process(replica: impl Fn(u32) -> Option<usize> + Send + Sync + 'static) -> Dialler {
    Arc::new(move |from, relay| {
        let inode = inode_of(&fs::read_to_string("/proc/net/tcp").ok()?, from.port(), relay.port())?;
        let socket = format!("socket:[{inode}]");
        let is_it = |path| fs::read_link(path).is_ok_and(|target| target.as_os_str() == socket.as_str());
        let owns = |pid: u32| {
            let open = fs::read_dir(format!("/proc/{pid}/fd"));
            open.is_ok_and(|open| open.flatten().any(|entry| is_it(entry.path())))
        };
        let pids = fs::read_dir("/proc").ok()?.flatten();
        let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        pids.find_map(|pid| replica(pid).filter(|_| owns(pid)))
    })
}

/// The replica that a process is, by the peer port in the configuration that its command line names: one that was
/// replaced keeps its place under another id. Known from its first moment, unlike a process id, which is told only when
/// the process has dialled already. The first replica listens on `first`.
pub fn replica_of_process(pid: u32, first: u16, replicas: u16) -> Option<usize> {
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let config = fs::read_to_string(config_of(&String::from_utf8_lossy(&line))?).ok()?;
    place_of(&config, first).filter(|place| *place < usize::from(replicas))
}

/// What a command line `… serve --config FILE` names.
fn config_of(line: &str) -> Option<&str> {
    line.split('\0').skip_while(|argument| *argument != "serve").nth(2)
}

fn place_of(config: &str, first: u16) -> Option<usize> {
    let listens = config.lines().find_map(|line| line.trim().strip_prefix("peer_listen:"))?;
    let port: u16 = listens.trim().trim_matches('"').rsplit_once(':')?.1.parse().ok()?;
    port.checked_sub(first).map(usize::from)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inode_is_read_from_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1F90 0100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 77 1 0 20 4\n\
            1: 0100007F:D431 0100007F:1F90 01 00000000:00000000 00:00000000 00000000     0        0 78 1 0 20 4\n";
        assert_eq!(inode_of(table, 0xD431, 0x1F90), Some(78));
        assert_eq!(inode_of(table, 0xD431, 0x1F91), None);
    }

    #[test]
    fn a_replica_is_known_by_its_command_line_and_its_port_and_nothing_else_is() {
        let serve = "/x/cortex-chaos\0serve\0--config\0/d/replica-3.yaml\0";
        assert_eq!(config_of(serve), Some("/d/replica-3.yaml"));
        assert_eq!(config_of("/x/cortex-chaos\0verify\0--config\0/d/replica-3.yaml\0"), None);
        assert_eq!(config_of("/x/postgres\0-D\0/d/postgres\0"), None);
        // The fourth member, in the place of the second.
        let config = "cluster:\n  node_id: 4\n  peer_listen: \"127.0.0.1:7071\"\n";
        assert_eq!((place_of(config, 7070), place_of(config, 7072)), (Some(1), None));
        assert_eq!(place_of("", 7070), None);
    }
}
