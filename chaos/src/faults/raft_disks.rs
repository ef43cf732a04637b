//! A replica's Raft log on a disk of its own, for a while.

use std::path::Path;

use super::Miss;
use crate::cluster::Cluster;
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
        cluster.end(index).await.map_err(Miss::Broke)?;
        let (folder, aside) = (disk.at().to_owned(), disk.at().with_extension("aside"));
        std::fs::rename(&folder, &aside).map_err(|error| error.to_string())?;
        std::fs::create_dir(&folder).map_err(|error| error.to_string())?;
        if let Err(error) = filled(&disk, &aside).await {
            // It may not even be mounted.
            let _ = disk.unmount().await;
            std::fs::remove_dir(&folder).map_err(|error| error.to_string())?;
            std::fs::rename(&aside, &folder).map_err(|error| error.to_string())?;
            cluster.revive(index).await.map_err(Miss::Broke)?;
            return Err(error.into());
        }
        let moved = Self { index, disk };
        std::fs::remove_dir_all(&aside).map_err(|error| error.to_string())?;
        match cluster.revive(index).await {
            Ok(()) => Ok(moved),
            Err(error) => {
                moved.back(cluster).await?;
                Err(Miss::Broke(error))
            }
        }
    }

    /// Puts it back to where it was; the replica is killed for that and started again.
    ///
    /// # Errors
    /// When it cannot be moved, or the replica does not come back.
    pub(super) async fn back(self, cluster: &Cluster) -> Result<(), Miss> {
        cluster.kill(self.index).await;
        let (folder, aside) = (self.disk.at(), self.disk.at().with_extension("aside"));
        run("cp", &["-a", &path(folder), &path(&aside)]).await?;
        self.disk.unmount().await?;
        std::fs::remove_dir(folder).map_err(|error| error.to_string())?;
        std::fs::rename(&aside, folder).map_err(|error| error.to_string())?;
        cluster.revive(self.index).await.map_err(Miss::Broke)
    }
}

/// Mounts a disk and copies a folder to it for good, with holes, so that pages that were never written take no room yet.
async fn filled(disk: &Disk, from: &Path) -> Result<(), String> {
    disk.mount().await?;
    run("cp", &["-a", "--sparse=always", &format!("{}/.", path(from)), &path(disk.at())]).await?;
    run("sync", &["-f", &path(disk.at())]).await
}
