//! The power of the disks below Raft logs is cut while the group agrees on changes: what was not made durable is gone.
//!
//! The logs lie on file systems of their own meanwhile. What each of them must lose, too, is a block that was written over
//! and not synced: where it is still there, nothing was cut.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::FutureExt;
use futures::future::join_all;
use tokio::time::timeout;

use super::control_changes::Changes;
use super::raft_disks::MovedLog;
use super::raft_files::{Start, started};
use super::{Fault, Miss, Needs, Strike, Struck, Subject};
use crate::cluster::Cluster;
use crate::disk::Disk;

/// Size of the block that is lost, in bytes.
const BLOCK: usize = 4096;
/// What was synced, and what was not.
const SYNCED: u8 = b's';
const UNSYNCED: u8 = b'u';

pub(super) const FAULT: Fault = Fault {
    name: "power-cut",
    about: "the disks of all Raft logs, or of one, lose their power at once, with all that was not synced",
    subject: Subject::Replicas,
    needs: Needs::Root,
    strike: |strike| lose_power(strike).boxed(),
};

async fn lose_power(mut strike: Strike) -> Struck {
    let cluster = Arc::clone(&strike.cluster);
    cluster.leader_other_than(None).await?;
    let all = strike.draw.percent(50);
    let one = strike.draw.index(cluster.size());
    let struck: Vec<usize> = if all { (0..cluster.size()).collect() } else { vec![one] };
    let which = if all { "all replicas".to_owned() } else { format!("replica {}", one + 1) };
    // Their logs are moved first: how long it takes others to go on is not counted from here.
    strike.begins(&struck, false, format!("the power of the disks of {which} is cut"));
    let mut changes = Changes::new(strike.draw.between(0, 1 << 32));
    let mut logs = Vec::new();
    let mut outcome = Ok(());
    for index in struck {
        match onto_disk(&cluster, index).await {
            Ok(log) => logs.push(log),
            Err(miss) => {
                outcome = Err(miss);
                break;
            }
        }
    }
    let outcome = match outcome {
        Ok(()) => cut(&mut strike, &logs, &mut changes).await,
        Err(miss) => Err(miss),
    };
    let mut back = Ok(());
    for log in logs {
        let image = image_of(&cluster, log.index);
        back = log.back(&cluster).await.and(back);
        let _ = std::fs::remove_file(image);
    }
    strike.heals();
    changes.undo(&cluster).await;
    let proof = outcome?;
    back?;
    Ok(format!("{which}: {proof}"))
}

async fn onto_disk(cluster: &Cluster, index: usize) -> Result<MovedLog, Miss> {
    let image = image_of(cluster, index);
    let folder = cluster.raft_dir(index).await;
    let disk = Disk::in_file(&image, &folder).await?;
    let moved = MovedLog::onto(disk, cluster, index).await;
    if moved.is_err() {
        let _ = std::fs::remove_file(image);
    }
    moved
}

fn image_of(cluster: &Cluster, index: usize) -> PathBuf {
    cluster.folder().join(format!("disk-{}.img", index + 1))
}

/// Cuts the power of these logs amid changes, starts their replicas again, and looks for what was acknowledged.
async fn cut(strike: &mut Strike, logs: &[MovedLog], changes: &mut Changes) -> Struck {
    let cluster = Arc::clone(&strike.cluster);
    let blocks: Result<Vec<_>, String> = logs.iter().map(|log| Block::synced(log.disk.at())).collect();
    let blocks = blocks?;
    let within = strike.draw.milliseconds(500, 2500);
    let change = async {
        loop {
            let asked = strike.draw.index(cluster.size());
            changes.make(&cluster, asked).await;
        }
    };
    // It is given up amid a change, which may come to be known or not.
    let _: Result<(), _> = timeout(within, change).await;
    let before = join_all(logs.iter().map(|log| cluster.view(log.index))).await;
    blocks.iter().try_for_each(Block::write_over)?;
    // All at the same moment: what only some have on disk must be enough.
    logs.iter().try_for_each(|log| log.disk.cut())?;
    join_all(logs.iter().map(|log| cluster.kill(log.index))).await;
    for log in logs {
        log.disk.unmount().await?;
        log.disk.mount().await?;
    }
    let kept = blocks.iter().filter(|block| !block.is_lost()).count();
    for log in logs {
        cluster.restart(log.index).await?;
    }
    for (log, before) in logs.iter().zip(before) {
        let name = log.index + 1;
        if started(&cluster, log.index).await? == Start::Refused {
            return Err(Miss::Broke(format!("replica {name} does not start after the cut")));
        }
        let (was, is) = (before.map(|view| view.term), cluster.view(log.index).await.map(|view| view.term));
        if is.is_some() && is < was {
            return Err(Miss::Broke(format!("replica {name} was in term {was:?} and is in {is:?}")));
        }
    }
    for replica in 0..cluster.size() {
        changes.are_known(&cluster, replica).await.map_err(Miss::Broke)?;
    }
    if kept > 0 {
        return Err(format!("{kept} of {} disks kept what was not synced", logs.len()).into());
    }
    Ok(format!(
        "what was not synced is gone, and the {} changes that were acknowledged are known",
        changes.made()
    ))
}

/// A block on a disk, whose newest content was not synced.
struct Block {
    at: PathBuf,
}

impl Block {
    /// Writes one and syncs it.
    fn synced(folder: &Path) -> Result<Self, String> {
        let block = Self { at: folder.join("block") };
        let written =
            std::fs::write(&block.at, [SYNCED; BLOCK]).and_then(|()| File::open(&block.at)?.sync_all());
        written.map_err(|error| error.to_string())?;
        Ok(block)
    }

    /// Writes over it in its place, which no journal knows of, and syncs nothing.
    fn write_over(&self) -> Result<(), String> {
        let file = File::options().write(true).open(&self.at);
        let written = file.and_then(|file| file.write_all_at(&[UNSYNCED; BLOCK], 0));
        written.map_err(|error| error.to_string())
    }

    /// Whether what was written last is gone.
    fn is_lost(&self) -> bool {
        std::fs::read(&self.at).is_ok_and(|content| content.first() == Some(&SYNCED))
    }
}
