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
use tokio::time::sleep;

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
    needs: Needs::RootAndProgram("mkfs.ext4"),
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
    let outcome = match onto_disks(&cluster, &struck, &mut logs).await {
        Ok(()) => cut(&mut strike, &logs, &mut changes).await,
        Err(miss) => Err(miss),
    };
    let mut back = Ok(());
    for log in logs {
        back = log.back(&cluster).await.and(back);
    }
    strike.heals();
    changes.undo(&cluster).await;
    match (outcome, back) {
        // What the product owes counts before what the harness could not do.
        (Err(Miss::Idle(_)), Err(Miss::Broke(why))) => Err(Miss::Broke(why)),
        (outcome, back) => {
            let proof = outcome?;
            back?;
            Ok(format!("{which}: {proof}"))
        }
    }
}

/// Moves logs onto disks whose power can be cut, one after the other; those that have been moved are in `logs`.
async fn onto_disks(cluster: &Cluster, replicas: &[usize], logs: &mut Vec<MovedLog>) -> Result<(), Miss> {
    for index in replicas {
        let image = cluster.folder().join(format!("disk-{}.img", index + 1));
        let disk = Disk::in_file(&image, &cluster.raft_dir(*index).await).await?;
        logs.push(MovedLog::onto(disk, cluster, *index).await?);
    }
    Ok(())
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
    let cut = async {
        sleep(within).await;
        blocks.iter().try_for_each(Block::write_over)?;
        // All at the same moment: what only some have on disk must be enough.
        logs.iter().try_for_each(|log| log.disk.cut())
    };
    // The change under way at the cut may come to be known or not.
    let cut: Result<(), String> = tokio::select! {
        cut = cut => cut,
        never = change => never,
    };
    cut?;
    join_all(logs.iter().map(|log| cluster.kill(log.index))).await;
    for log in logs {
        log.disk.unmount().await?;
        log.disk.mount().await?;
    }
    let kept = blocks.iter().filter(|block| !block.is_lost()).count();
    for block in blocks {
        block.remove()?;
    }
    for log in logs {
        cluster.restart(log.index).await?;
    }
    for log in logs {
        if started(&cluster, log.index).await? == Start::Refused {
            return Err(Miss::Broke(format!("replica {} does not start after the cut", log.index + 1)));
        }
    }
    for log in logs {
        changes.are_known(&cluster, log.index).await.map_err(Miss::Broke)?;
    }
    match (kept, changes.paused()) {
        (0, 0) => Err("no change was acknowledged".into()),
        (0, paused) => {
            Ok(format!("what was not synced is gone, and {paused} acknowledged changes are known"))
        }
        _ => Err(format!("{kept} of {} disks kept what was not synced", logs.len()).into()),
    }
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

    /// Takes it away again.
    fn remove(self) -> Result<(), String> {
        std::fs::remove_file(self.at).map_err(|error| error.to_string())
    }

    /// Whether what was written last is gone.
    fn is_lost(&self) -> bool {
        std::fs::read(&self.at).is_ok_and(|content| content.first() == Some(&SYNCED))
    }
}
