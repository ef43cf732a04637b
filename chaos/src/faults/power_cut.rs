//! The power of the disks below Raft logs is cut while the group agrees on changes: what was not made durable is gone.
//!
//! The logs lie on file systems of their own meanwhile. What each of them must lose, too, is a block that was written over
//! and not synced: where it is still there, nothing was cut. What none may lose is the vote for somebody who led.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::join_all;
use tokio::time::sleep;

use super::control_changes::Changes;
use super::raft_disks::MovedLog;
use super::raft_files::{Start, started};
use super::{Fault, Miss, Needs, Strike, Struck, Subject};
use crate::cluster::Cluster;
use crate::disk::{Block, Disk};
use crate::votes::{self, Led};

/// Time between the two looks at who leads.
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(super) const FAULT: Fault = Fault {
    name: "power-cut",
    about: "the disks of all Raft logs, or of one, lose their power at once, with all that was not synced",
    subject: Subject::Replicas,
    needs: Needs::RootAndProgram("mkfs.ext4"),
    strike: |strike| lose_power(strike).boxed(),
};

async fn lose_power(mut strike: Strike) -> Struck {
    let cluster = Arc::clone(&strike.cluster);
    strike.leader().await?;
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
        let now = log.back(&cluster).await;
        if !matches!(back, Err(Miss::Broke(_))) {
            back = now.and(back);
        }
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
        let led = join_all((0..cluster.size()).map(|index| term_led(&cluster, index))).await;
        blocks.iter().try_for_each(Block::write_over)?;
        // All at the same moment: what only some have on disk must be enough.
        logs.iter().try_for_each(|log| log.disk.cut())?;
        Ok::<_, String>(led)
    };
    // The change under way at the cut may come to be known or not.
    let led: Result<Vec<u64>, String> = tokio::select! {
        led = cut => led,
        never = change => never,
    };
    let led = led?;
    join_all(logs.iter().map(|log| cluster.kill(log.index))).await;
    for log in logs {
        log.disk.unmount().await?;
        log.disk.mount().await?;
    }
    let kept = blocks.iter().filter(|block| !block.is_lost()).count();
    for block in blocks {
        block.remove()?;
    }
    let on_disk = |log: &MovedLog| votes::on_disk(log.disk.at()).map(|term| (log.index, term));
    let on_disks: Result<Vec<_>, String> = logs.iter().map(on_disk).collect();
    for log in logs {
        cluster.restart(log.index).await?;
    }
    for log in logs {
        if started(&cluster, log.index).await? == Start::Refused {
            return Err(Miss::Broke(format!("replica {} does not start after the cut", log.index + 1)));
        }
    }
    // What cannot be read at all would have kept its replica from starting.
    are_kept(&cluster, &led, &on_disks?).await?;
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

/// In which term a replica leads just now; 0 if it does not.
async fn term_led(cluster: &Cluster, index: usize) -> u64 {
    let mut led = Led::default();
    for _ in 0..2 {
        if let Some(view) = cluster.view(index).await {
            led.look(&view);
        }
        sleep(LOOK_EVERY).await;
    }
    led.highest()
}

/// Looks whether the votes are there by which somebody led before the cut.
///
/// # Errors
/// When one is not, or, after a cut of all, when nobody comes to lead in a later term.
async fn are_kept(cluster: &Cluster, led: &[u64], on_disks: &[(usize, u64)]) -> Result<(), Miss> {
    if let Some(gone) = votes::gone(led, on_disks).into_iter().next() {
        return Err(Miss::Broke(gone));
    }
    if on_disks.len() < cluster.size() {
        return Ok(());
    }
    let leader = cluster.leader_other_than(None).await.map_err(Miss::Broke)?;
    let view = cluster.view(leader).await.ok_or("the new leader does not say in which term it leads")?;
    votes::repeated(led, view.term).map_or(Ok(()), |repeated| Err(Miss::Broke(repeated)))
}
