//! The disk of a replica's Raft log is full for a while: of the leader's, or of a follower's.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::control_changes::Changes;
use super::{Fault, Miss, Needs, Strike, Struck, Subject};
use crate::cluster::Cluster;

/// Size of the disk.
const DISK: &str = "32m";
/// Longest wait for the lack of room to be felt.
const FELT_WITHIN: Duration = Duration::from_secs(15);
/// What the system says of a full disk.
const FULL: &str = "No space left";

pub(super) const FAULT: Fault = Fault {
    name: "raft-disk-full",
    about: "the disk of the leader's or a follower's Raft log is full for 2 to 6 s beyond the first refused write",
    subject: Subject::Replicas,
    needs: Needs::Root,
    strike: |strike| fill(strike).boxed(),
};

async fn fill(mut strike: Strike) -> Struck {
    let cluster = Arc::clone(&strike.cluster);
    let leader = cluster.leader_other_than(None).await?;
    let leads = strike.draw.percent(50);
    let index = if leads { leader } else { (leader + 1 + strike.draw.index(2)) % cluster.size() };
    let folder = cluster.raft_dir(index).await;
    // It serves on until a write finds no room: how long it takes others to go on is not counted from here.
    strike.begins(&[index], false, format!("the disk of replica {} is full; it leads: {leads}", index + 1));
    move_to_disk(&cluster, index, &folder).await?;
    if leads {
        cluster.make_leader(index).await.map_err(Miss::Broke)?;
    }
    let before = cluster.log(index).await.matches(FULL).count();
    let ballast = folder.join("ballast");
    fill_up(&ballast);
    // Entries are written until one does not fit.
    let mut changes = Changes::new(strike.draw.between(0, 1 << 32));
    let deadline = Instant::now() + FELT_WITHIN;
    let felt = async || cluster.log(index).await.matches(FULL).count() > before;
    while Instant::now() < deadline && !felt().await {
        let asked = strike.draw.index(cluster.size());
        changes.make(&cluster, asked).await;
        fill_up(&ballast);
    }
    let felt = felt().await;
    sleep(strike.draw.milliseconds(2000, 6000)).await;
    let others = !felt || changes.make_without(&cluster, index).await;
    let ended = cluster.pid(index).await.is_none();
    let _ = std::fs::remove_file(&ballast);
    let moved = move_back(&cluster, index, &folder).await;
    strike.heals();
    changes.undo(&cluster).await;
    moved?;
    if !felt {
        return Err(format!("{} entries found room", changes.made()).into());
    }
    if !others {
        return Err(Miss::broke("the others took no change meanwhile"));
    }
    let ended = if ended { "ended" } else { "went on" };
    Ok(format!("its log found no room, it {ended}; the others took a change meanwhile"))
}

/// Puts the folder of a replica's log on a small disk of its own.
async fn move_to_disk(cluster: &Cluster, index: usize, folder: &Path) -> Result<(), Miss> {
    cluster.end(index).await.map_err(Miss::Broke)?;
    let aside = folder.with_extension("aside");
    std::fs::rename(folder, &aside).map_err(|error| error.to_string())?;
    std::fs::create_dir(folder).map_err(|error| error.to_string())?;
    let disk = ["-t", "tmpfs", "-o", &format!("size={DISK}"), "cortex-chaos", &path(folder)];
    if let Err(error) = run("mount", &disk).await {
        std::fs::remove_dir(folder).map_err(|error| error.to_string())?;
        std::fs::rename(&aside, folder).map_err(|error| error.to_string())?;
        cluster.revive(index).await.map_err(Miss::Broke)?;
        return Err(error.into());
    }
    // With holes, so that pages that were never written take no room yet.
    run("cp", &["-a", "--sparse=always", &format!("{}/.", path(&aside)), &path(folder)]).await?;
    std::fs::remove_dir_all(&aside).map_err(|error| error.to_string())?;
    cluster.revive(index).await.map_err(Miss::Broke)
}

/// Puts it back to where it was.
async fn move_back(cluster: &Cluster, index: usize, folder: &Path) -> Result<(), Miss> {
    cluster.kill(index).await;
    let aside = folder.with_extension("aside");
    run("cp", &["-a", &path(folder), &path(&aside)]).await?;
    run("umount", &[&path(folder)]).await?;
    std::fs::remove_dir(folder).map_err(|error| error.to_string())?;
    std::fs::rename(&aside, folder).map_err(|error| error.to_string())?;
    cluster.revive(index).await.map_err(Miss::Broke)
}

/// Writes until nothing more fits.
fn fill_up(ballast: &Path) {
    use std::io::Write as _;
    let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(ballast) else { return };
    for size in [1 << 16, 1 << 12, 1] {
        let block = vec![1; size];
        while file.write_all(&block).is_ok() {}
    }
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

async fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().await.map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}
