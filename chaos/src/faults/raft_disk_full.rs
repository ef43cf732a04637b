//! The disk of a replica's Raft log is full for a while: of the leader's, or of a follower's.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::{Instant, sleep};

use super::control_changes::Changes;
use super::raft_disks::MovedLog;
use super::{Fault, Miss, Needs, Strike, Struck, Subject};
use crate::disk::Disk;

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
    let leader = strike.leader().await?;
    let leads = strike.draw.percent(50);
    let index = if leads { leader } else { (leader + 1 + strike.draw.index(2)) % cluster.size() };
    let folder = cluster.raft_dir(index).await;
    // It serves on until a write finds no room: how long it takes others to go on is not counted from here.
    strike.begins(&[index], false, format!("the disk of replica {} is full; it leads: {leads}", index + 1));
    let moved = MovedLog::onto(Disk::in_memory(&folder), &cluster, index).await?;
    if leads && let Err(why) = cluster.make_leader(index).await {
        // What the product owes counts before what the harness could not do.
        let _ = moved.back(&cluster).await;
        return Err(Miss::Broke(why));
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
    let moved = moved.back(&cluster).await;
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

/// Writes until nothing more fits.
fn fill_up(ballast: &Path) {
    use std::io::Write as _;
    let Ok(mut file) = std::fs::OpenOptions::new().create(true).append(true).open(ballast) else { return };
    for size in [1 << 16, 1 << 12, 1] {
        let block = vec![1; size];
        while file.write_all(&block).is_ok() {}
    }
}
