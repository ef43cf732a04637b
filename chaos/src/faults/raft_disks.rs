//! A replica's Raft log on a disk of its own, for a while.

use std::path::Path;

use super::Miss;
use super::raft_files::replace;
use crate::cluster::{Cluster, log_in};
use crate::disk::{Disk, path, run};

/// A log that has been moved.
pub(super) struct MovedLog {
    /// Whose log it is.
    pub(super) index: usize,
    /// Where it is now.
    pub(super) disk: Disk,
}

impl MovedLog {
    /// Ends a replica in order, moves its log onto a disk that is mounted over the log's folder, and starts it again.
    ///
    /// # Errors
    /// When the disk cannot be mounted or filled, or the replica does not end or come back. The log is then where it was.
    pub(super) async fn onto(disk: Disk, cluster: &Cluster, index: usize) -> Result<Self, Miss> {
        let ended = cluster.end(index).await.map_err(Miss::Broke);
        let moved = match ended {
            Ok(_) => move_to(&disk).await.map_err(Miss::from),
            Err(miss) => Err(miss),
        };
        if let Err(miss) = moved {
            disk.discard();
            cluster.revive(index).await.map_err(Miss::Broke)?;
            return Err(miss);
        }
        let moved = Self { index, disk };
        match cluster.revive(index).await {
            Ok(()) => Ok(moved),
            Err(error) => {
                // What the product owes counts before what the harness could not do.
                let _ = moved.back(cluster).await;
                Err(Miss::Broke(error))
            }
        }
    }

    /// Puts it back to where it was; the replica is killed for that and started again. One whose log cannot be had back is
    /// replaced, for it must not come back under its id.
    ///
    /// # Errors
    /// When the log cannot be moved, or the replica does not come back.
    pub(super) async fn back(self, cluster: &Cluster) -> Result<(), Miss> {
        cluster.kill(self.index).await;
        let moved = move_from(&self.disk).await;
        if moved.is_err() {
            // The folder below cannot be removed while anything is mounted there.
            self.disk.detach().await;
        }
        self.disk.discard();
        if let Err(error) = moved {
            replace(cluster, self.index).await?;
            return Err(error.into());
        }
        cluster.revive(self.index).await.map_err(Miss::Broke)
    }
}

/// Mounts a disk over a folder and copies to it what was there; where that fails, all is as it was.
async fn move_to(disk: &Disk) -> Result<(), String> {
    let (folder, aside) = (disk.at(), disk.at().with_extension("aside"));
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    std::fs::rename(folder, &aside).map_err(failed)?;
    let filled = match std::fs::create_dir(folder) {
        Ok(()) => fill(disk, &aside).await,
        Err(error) => Err(failed(error)),
    };
    if filled.is_err() {
        // Whatever of it has been done.
        disk.detach().await;
        let _ = std::fs::remove_dir(folder);
        std::fs::rename(&aside, folder).map_err(failed)?;
    }
    filled?;
    // The log has been moved whatever comes of this; what is left in the way makes the next move fail, and say so.
    let _ = std::fs::remove_dir_all(&aside);
    Ok(())
}

/// Mounts a disk and copies a folder to it for good, with holes, so that pages that were never written take no room yet.
async fn fill(disk: &Disk, from: &Path) -> Result<(), String> {
    disk.mount().await?;
    run("cp", &["-a", "--sparse=always", &format!("{}/.", path(from)), &path(disk.at())]).await?;
    run("sync", &["-f", &path(disk.at())]).await
}

/// Puts a disk's files where it was mounted.
async fn move_from(disk: &Disk) -> Result<(), String> {
    let (folder, copy) = (disk.at(), disk.at().with_extension("back"));
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    disk.remount().await?;
    if !log_in(folder).exists() {
        return Err("the disk has lost the log".to_owned());
    }
    // Nothing that was left by another time may be mixed in.
    std::fs::create_dir(&copy).map_err(|error| format!("{}: {error}", copy.display()))?;
    run("cp", &["-a", &format!("{}/.", path(folder)), &path(&copy)]).await?;
    disk.unmount().await?;
    std::fs::remove_dir(folder).map_err(failed)?;
    std::fs::rename(&copy, folder).map_err(failed)
}
