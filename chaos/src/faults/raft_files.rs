//! The file of a replica's Raft log, and what is done when it is lost.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Miss;
use crate::cluster::{Cluster, PATIENCE};

/// What the product says of a log that it cannot trust.
pub(super) const DAMAGED: &str = "is damaged and can't be trusted";
/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Opens a log to be damaged.
pub(super) fn open(path: &Path) -> Result<File, String> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    opened.map_err(|error| format!("{} cannot be opened: {error}", path.display()))
}

/// Flips one bit.
pub(super) fn flip(file: &File, offset: u64, bit: u64) -> io::Result<()> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset)?;
    file.write_all_at(&[byte[0] ^ (1 << (bit % 8))], offset)?;
    file.sync_all()
}

/// How a replica that was started takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// It serves.
    Ready,
    /// It has ended, with an error.
    Refused,
}

/// Starts a replica whose log was tampered with, and waits until it serves or has ended.
///
/// # Errors
/// When it does neither, or ended without an error: it owes one of the two.
pub(super) async fn try_start(cluster: &Cluster, index: usize) -> Result<Start, Miss> {
    cluster.restart(index).await?;
    started(cluster, index).await
}

/// Waits until a replica that was started serves or has ended.
///
/// # Errors
/// As for [`try_start`].
pub(super) async fn started(cluster: &Cluster, index: usize) -> Result<Start, Miss> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let replicas = cluster.replicas.read().await;
        if replicas.pid(index).is_none() {
            let status = replicas.wait_for_exit(index).await;
            return match status {
                Some(status) if status.code().is_some_and(|code| code != 0) => Ok(Start::Refused),
                other => Err(Miss::Broke(format!("it ended as {other:?}"))),
            };
        }
        if replicas.is_ready(index).await {
            return Ok(Start::Ready);
        }
        drop(replicas);
        if Instant::now() > deadline {
            return Err(Miss::broke("it neither serves nor ends"));
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Removes a replica that has lost its log from the group, and has it join empty under a new id; answers the new id.
///
/// # Errors
/// When it is not removed or does not join, both of which the product owes, or its folder cannot be emptied.
pub(super) async fn replace(cluster: &Cluster, index: usize) -> Result<u64, Miss> {
    cluster.remove(index).await.map_err(Miss::Broke)?;
    let id = cluster.renew(index).await?;
    cluster.restart(index).await?;
    cluster.join(index).await.map_err(Miss::Broke)?;
    Ok(id)
}
