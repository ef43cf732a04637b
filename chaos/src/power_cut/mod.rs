//! Cuts the power of the replicas' disks: what was not made durable is gone, as if the machines had lost their current.
//!
//! The Raft log of each replica lies on a file system of its own, in a file. A cut shuts the file system down without
//! flushing its journal, so whatever has not been synced never reaches the file. Then the replica is killed, the file
//! system mounted anew, and the replica started again: whatever the group has acknowledged must be there, on every
//! replica, and no replica may have gone back behind a term that it was seen in. Nor may a vote be gone by which somebody
//! led: it is looked for on the disk before the replica is started, and after a cut of all whoever leads must do so in a
//! later term than anybody before. A block that was written over and not synced proves of each disk that it has lost such things.

mod load;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::join_all;
use serde::Serialize;
use tokio::time::sleep;

use crate::cluster::{Cluster, ClusterOptions, Error};
use crate::disk::{Block, Disk};
use crate::draw::Draw;
use crate::history::View;
use crate::votes;
use load::{Acknowledged, Load, Shown};

/// What to do.
#[derive(Debug, Clone)]
pub struct PowerCutOptions {
    /// Where all randomness comes from.
    pub seed: u64,
    /// How often.
    pub cuts: u32,
    /// Where everything is written; must not exist.
    pub folder: PathBuf,
}

/// One cut and what came of it.
#[derive(Debug, Clone, Serialize)]
pub struct Cut {
    /// Which one it is, from 1.
    pub number: u32,
    /// Indices of the replicas that it struck.
    replicas: Vec<usize>,
    /// Changes that were acknowledged up to now.
    acknowledged: u64,
    /// Changes of the leader up to now.
    transfers: u64,
    /// Per replica, the highest term and applied index before, and those afterwards.
    before: Vec<(u64, u64)>,
    after: Vec<(u64, u64)>,
    /// What was acknowledged and is gone.
    pub lost: Vec<String>,
    /// What did not come back in time.
    pub late: Vec<String>,
}

impl Cut {
    /// Whether it did no harm.
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.late.is_empty()
    }
}

/// Cuts so often, or until something is lost or late; answers all cuts. Prints a table and writes `power-cut.json`.
///
/// # Errors
/// When this is not root, or the cluster does not come up.
pub async fn run(options: &PowerCutOptions) -> Result<Vec<Cut>, Error> {
    if !nix::unistd::Uid::effective().is_root() {
        return Err("a power cut needs root, to mount file systems".into());
    }
    let cluster_options = ClusterOptions::default();
    let folder = options.folder.join("cluster");
    let disks = disks(&folder, usize::from(cluster_options.replicas)).await?;
    let outcome = start_and_cut(options, &folder, cluster_options, &disks).await;
    for disk in &disks {
        disk.unmount().await?;
    }
    let cuts = outcome?;
    std::fs::write(options.folder.join("power-cut.json"), serde_json::to_vec_pretty(&cuts)?)?;
    let broken: usize = cuts.iter().map(|cut| cut.lost.len() + cut.late.len()).sum();
    println!("{} cuts, {broken} violations", cuts.len());
    Ok(cuts)
}

/// A file system for each replica, mounted where its Raft log will be.
async fn disks(folder: &Path, replicas: usize) -> Result<Vec<Disk>, Error> {
    let mut disks = Vec::new();
    for id in 1..=replicas {
        let mount = folder.join("cluster").join(format!("raft-{id}"));
        std::fs::create_dir_all(&mount)?;
        let disk = Disk::in_file(&folder.join(format!("disk-{id}.img")), &mount).await?;
        disk.mount().await?;
        disks.push(disk);
    }
    Ok(disks)
}

async fn start_and_cut(
    options: &PowerCutOptions,
    folder: &Path,
    cluster_options: ClusterOptions,
    disks: &[Disk],
) -> Result<Vec<Cut>, Error> {
    let cluster = Arc::new(Cluster::start(folder, cluster_options).await?);
    let outcome = cut_again_and_again(options, &cluster, disks).await;
    if let Some(cluster) = Arc::into_inner(cluster) {
        cluster.stop().await;
    }
    outcome
}

async fn cut_again_and_again(
    options: &PowerCutOptions,
    cluster: &Arc<Cluster>,
    disks: &[Disk],
) -> Result<Vec<Cut>, Error> {
    let (mut draw, mut acknowledged, mut cuts) =
        (Draw::new(options.seed, "power-cut"), Acknowledged::default(), Vec::new());
    println!("cut  replicas  acknowledged  transfers  terms before > after            violations");
    for number in 1..=options.cuts {
        let within = draw.milliseconds(500, 2500);
        let struck: Vec<usize> =
            if draw.percent(75) { (0..disks.len()).collect() } else { vec![draw.index(disks.len())] };
        let struck: Vec<(usize, &Disk)> = struck.into_iter().map(|index| (index, &disks[index])).collect();
        // Before the load: to sync a block may sync what else was written to its disk.
        let blocks: Result<_, String> = struck.iter().map(|(_, disk)| Block::synced(disk.at())).collect();
        let blocks = blocks?;
        let load = Load::start(cluster, options.seed + u64::from(number), acknowledged);
        sleep(within).await;
        let (seen, shown) = lose_power(cluster, &struck, blocks, load).await?;
        acknowledged = seen;
        let cut = come_back(cluster, number, &struck, &acknowledged, &shown).await?;
        print(&cut);
        let clean = cut.is_clean();
        cuts.push(cut);
        if !clean {
            // Whatever is found after this would be of the same making.
            break;
        }
    }
    Ok(cuts)
}

/// Cuts the power of disks under load, kills their replicas and mounts the disks anew; answers what was acknowledged, and what
/// each replica has shown until then.
///
/// # Errors
/// When a disk keeps its power, or what was not synced: then nothing was cut.
async fn lose_power(
    cluster: &Cluster,
    struck: &[(usize, &Disk)],
    blocks: Vec<Block>,
    load: Load,
) -> Result<(Acknowledged, Vec<Shown>), Error> {
    blocks.iter().try_for_each(Block::write_over)?;
    // All at the same moment: what only some have on disk must be enough.
    struck.iter().try_for_each(|(_, disk)| disk.cut())?;
    join_all(struck.iter().map(|(index, _)| cluster.kill(*index))).await;
    let seen = load.end().await;
    for (_, disk) in struck {
        disk.unmount().await?;
        disk.mount().await?;
    }
    let kept = blocks.iter().filter(|block| !block.is_lost()).count();
    if kept > 0 {
        return Err(format!("{kept} of {} disks kept what was not synced", blocks.len()).into());
    }
    blocks.into_iter().try_for_each(Block::remove)?;
    Ok(seen)
}

/// Starts the replicas again whose power was cut, and looks for what was acknowledged, and for the votes of those that led.
///
/// # Errors
/// When a replica cannot be started, or its vote not be read though it comes back.
async fn come_back(
    cluster: &Cluster,
    number: u32,
    struck: &[(usize, &Disk)],
    acknowledged: &Acknowledged,
    shown: &[Shown],
) -> Result<Cut, Error> {
    let led: Vec<u64> = shown.iter().map(|shown| shown.led.highest()).collect();
    let before: Vec<View> = shown.iter().map(|shown| shown.highest.clone()).collect();
    let on_disk = |(index, disk): &(usize, &Disk)| votes::on_disk(disk.at()).map(|term| (*index, term));
    let on_disks: Result<Vec<_>, String> = struck.iter().map(on_disk).collect();
    for (index, _) in struck {
        cluster.restart(*index).await?;
    }
    let (after, mut lost, late) = settle(cluster, &before).await;
    match on_disks {
        Ok(on_disks) => lost.extend(votes::gone(&led, &on_disks)),
        Err(error) if late.is_empty() => return Err(error.into()),
        // It cannot be read by its replica either, which is late.
        Err(_) => {}
    }
    if struck.len() == shown.len() && late.is_empty() {
        let now = after.iter().map(|view| view.term).max().unwrap_or(0);
        lost.extend(votes::repeated(&led, now));
    }
    for index in 0..shown.len() {
        // A follower may have it and learn only from the next leader that it counts.
        let known = || async { acknowledged.missing(cluster, index).await.is_empty() };
        if cluster.until("all that was acknowledged is known", known).await.is_err() {
            lost.extend(acknowledged.missing(cluster, index).await);
        }
    }
    Ok(Cut {
        number,
        replicas: struck.iter().map(|(index, _)| *index).collect(),
        acknowledged: acknowledged.changes,
        transfers: acknowledged.transfers,
        before: before.iter().map(of).collect(),
        after: after.iter().map(of).collect(),
        lost,
        late,
    })
}

/// Waits until all replicas serve and know as much as before; says what is lost, and what does not come in time.
async fn settle(cluster: &Cluster, before: &[View]) -> (Vec<View>, Vec<String>, Vec<String>) {
    let settled = before.iter().enumerate().map(|(index, before)| settle_one(cluster, index, before));
    let (mut after, mut lost, mut late) = (Vec::new(), Vec::new(), Vec::new());
    for (view, gone, missed) in join_all(settled).await {
        after.push(view);
        lost.extend(gone);
        late.extend(missed);
    }
    (after, lost, late)
}

async fn settle_one(
    cluster: &Cluster,
    index: usize,
    before: &View,
) -> (View, Option<String>, Option<String>) {
    let ready = || async { cluster.replicas.read().await.is_ready(index).await };
    if let Err(error) = cluster.until("the replica is ready", ready).await {
        return (View::default(), None, Some(format!("replica {} is not back: {error}", index + 1)));
    }
    let knows = || async { cluster.view(index).await.is_some_and(|view| view.applied >= before.applied) };
    let knows = cluster.until("the replica has applied as much as before", knows).await;
    let view = cluster.view(index).await.unwrap_or_default();
    let (had, has) = (before.applied, view.applied);
    let late = knows.is_err().then(|| format!("replica {} had applied {had:?} and has {has:?}", index + 1));
    let (was, is) = (before.term, view.term);
    let lost = (is < was).then(|| format!("replica {} was in term {was} and is in {is}", index + 1));
    (view, lost, late)
}

fn of(view: &View) -> (u64, u64) {
    (view.term, view.applied.unwrap_or(0))
}

fn print(cut: &Cut) {
    let terms =
        |views: &[(u64, u64)]| views.iter().map(|(term, _)| term.to_string()).collect::<Vec<_>>().join(" ");
    let replicas = cut.replicas.iter().map(|index| (index + 1).to_string()).collect::<Vec<_>>().join(" ");
    let moved = format!("{} > {}", terms(&cut.before), terms(&cut.after));
    println!(
        "{:3}  {replicas:8}  {:12}  {:9}  {moved:30}  {}",
        cut.number,
        cut.acknowledged,
        cut.transfers,
        cut.lost.len() + cut.late.len()
    );
    cut.lost.iter().chain(&cut.late).for_each(|violation| println!("     {violation}"));
}
