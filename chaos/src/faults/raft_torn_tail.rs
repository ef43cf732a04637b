//! A replica dies in the middle of a write to its log, which is left half done: it must come back as it was.
//!
//! The file has two slots for the record of a commit. Commits take turns, and a single bit says which one counts; so what
//! a crash tears is the slot that does not count. What was cut off at the end is damage: see [`super::raft_flipped_bit`].

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use futures::FutureExt;

use super::raft_files::{Start, open, replace, try_start};
use super::{Fault, Miss, Needs, Strike, Struck, Subject};
use crate::cluster::log_in;

/// Where the byte is whose lowest bit names the slot that counts.
const FLAGS: u64 = 9;
/// Where the slots are.
const SLOTS: [u64; 2] = [64, 192];
/// Bytes of a slot.
const SLOT: usize = 128;
/// The first one names the version of the format, which is the same before and after: no write tears it.
const UNTORN: usize = 1;

pub(super) const FAULT: Fault = Fault {
    name: "raft-torn-tail",
    about: "a follower is killed, and the last write to its log is left half done",
    subject: Subject::Replicas,
    needs: Needs::Nothing,
    strike: |strike| tear(strike).boxed(),
};

async fn tear(mut strike: Strike) -> Struck {
    let cluster = Arc::clone(&strike.cluster);
    let (_, follower) = strike.leader_and_follower().await?;
    let before = cluster.view(follower).await.ok_or("the follower does not answer")?;
    let path = log_in(&cluster.raft_dir(follower).await);
    strike.begins(&[follower], false, format!("the end of the log of replica {} is torn", follower + 1));
    cluster.kill(follower).await;
    let torn = tear_file(&path, &mut strike);
    let started = try_start(&cluster, follower).await;
    if started == Ok(Start::Refused) {
        // What counts is that it refused, whatever comes of this.
        let _ = replace(&cluster, follower).await;
    }
    strike.heals();
    let torn = torn?;
    if started? == Start::Refused {
        return Err(Miss::Broke(format!("{torn}: it refused to start")));
    }
    let after = cluster.view(follower).await.ok_or("it does not say in which term it is")?;
    if after.term < before.term {
        return Err(Miss::Broke(format!("{torn}: its term was {} and is {}", before.term, after.term)));
    }
    Ok(format!("{torn}: it is back in term {} after {}", after.term, before.term))
}

/// Tears what a write under way would have left torn; says what that was.
fn tear_file(path: &std::path::Path, strike: &mut Strike) -> Result<String, String> {
    let file = open(path)?;
    let failed = |error: std::io::Error| error.to_string();
    let mut noise = || u8::try_from(strike.draw.between(0, 256)).unwrap_or(0);
    let tail: Vec<u8> = (0..SLOT).map(|_| noise()).collect();
    let mut flags = [0];
    file.read_exact_at(&mut flags, FLAGS).map_err(failed)?;
    let spare = SLOTS[1 - usize::from(flags[0] & 1)];
    let begin = UNTORN + strike.draw.index(SLOT - UNTORN);
    file.write_all_at(&tail[begin..], spare + begin as u64).map_err(failed)?;
    file.sync_all().map_err(failed)?;
    Ok(format!("the record of a commit torn from byte {begin} on"))
}
