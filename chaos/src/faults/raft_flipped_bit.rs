//! A bit in the middle of a replica's log is flipped, or its end is gone: it must not start, and say why. It is then
//! replaced by an empty one under a new id. A bit by pure chance may be one that nothing depends on: then it may also come
//! back as it was.

use std::path::Path;
use std::sync::Arc;

use futures::FutureExt;

use super::raft_files::{DAMAGED, Start, flip, open, replace, try_start};
use super::{Fault, Miss, Needs, Strike, Struck, Subject};
use crate::cluster::log_in;

/// Where the pages begin: before them is the head of the file, which the next start rewrites.
const FIRST_PAGE: u64 = 4096;
/// So many bits are tried until one is found that counts.
const TRIES: usize = 300;

pub(super) const FAULT: Fault = Fault {
    name: "raft-flipped-bit",
    about: "a follower is killed and its log damaged by one bit, or cut short; it is replaced under a new id",
    subject: Subject::Replicas,
    needs: Needs::Nothing,
    strike: |strike| damage(strike).boxed(),
};

async fn damage(mut strike: Strike) -> Struck {
    let cluster = Arc::clone(&strike.cluster);
    let (_, follower) = strike.leader_and_follower().await?;
    let former = cluster.id(follower).await;
    let before = cluster.view(follower).await.ok_or("the follower does not answer")?;
    let path = log_in(&cluster.raft_dir(follower).await);
    strike.begins(&[follower], false, format!("the log of replica {} is damaged", follower + 1));
    cluster.kill(follower).await;
    let done = damage_file(&path, &mut strike);
    if done.is_err() {
        cluster.revive(follower).await.map_err(Miss::Broke)?;
        strike.heals();
    }
    let Damage { what, must_refuse } = done?;
    if try_start(&cluster, follower).await? == Start::Ready {
        strike.heals();
        let after = cluster.view(follower).await.ok_or("it does not say in which term it is")?;
        let (was, is) = (before.term, after.term);
        if must_refuse || is < was {
            return Err(Miss::Broke(format!("{what}: it started all the same, in term {is} after {was}")));
        }
        return Ok(format!("{what}, where nothing in use is: it is back in term {is} after {was}"));
    }
    let said =
        cluster.log(follower).await.lines().rev().find(|line| line.contains(DAMAGED)).map(str::to_owned);
    let id = replace(&cluster, follower).await;
    strike.heals();
    let said = said.ok_or_else(|| Miss::broke(format!("it did not start, and did not say why: {what}")))?;
    let told = said.split(DAMAGED).nth(1).unwrap_or_default().trim().to_owned();
    Ok(format!("{what}, member {former} did not start: {told}; member {} is in its place", id?))
}

/// What was done to a log.
struct Damage {
    what: String,
    /// Whether it is known to have struck what is in use.
    must_refuse: bool,
}

/// Does one damage.
fn damage_file(path: &Path, strike: &mut Strike) -> Result<Damage, String> {
    let file = open(path)?;
    let length = file.metadata().map_err(|error| error.to_string())?.len();
    if length <= FIRST_PAGE {
        return Err("the log has no pages".to_owned());
    }
    if strike.draw.percent(20) {
        let cut = strike.draw.between(1, FIRST_PAGE);
        file.set_len(length - cut).and_then(|()| file.sync_all()).map_err(|error| error.to_string())?;
        return Ok(Damage { what: format!("the last {cut} of {length} bytes cut off"), must_refuse: true });
    }
    let (offset, bit, must_refuse) = a_bit(path, strike)?;
    flip(&file, offset, bit).map_err(|error| error.to_string())?;
    Ok(Damage { what: format!("bit {bit} of byte {offset} of {length} flipped"), must_refuse })
}

/// A bit, and whether it counts. A page is never written over while it is in use, so most of the file is what once was in
/// use; which bits still are is tried on copies. Mostly they are tried until one counts; now and then any will do.
fn a_bit(path: &Path, strike: &mut Strike) -> Result<(u64, u64, bool), String> {
    let bytes = std::fs::read(path).map_err(|error| error.to_string())?;
    let first = usize::try_from(FIRST_PAGE).unwrap_or(0);
    let used: Vec<usize> = (first..bytes.len()).filter(|offset| bytes[*offset] != 0).collect();
    if used.is_empty() {
        return Err("the log is empty".to_owned());
    }
    let any = strike.draw.percent(30);
    let copy = path.with_extension("copy");
    for _ in 0..TRIES {
        let offset = if any {
            strike.draw.between(FIRST_PAGE, bytes.len() as u64)
        } else {
            *strike.draw.choose(&used) as u64
        };
        let bit = strike.draw.between(0, 8);
        std::fs::write(&copy, &bytes).map_err(|error| error.to_string())?;
        open(&copy).and_then(|file| flip(&file, offset, bit).map_err(|error| error.to_string()))?;
        let sound = std::panic::catch_unwind(|| is_sound(&copy)).unwrap_or(false);
        std::fs::remove_file(&copy).map_err(|error| error.to_string())?;
        if any || !sound {
            return Ok((offset, bit, !sound));
        }
    }
    Err(format!("{TRIES} bits were tried and none counts"))
}

/// Whether the database finds all that is in use in order.
fn is_sound(path: &Path) -> bool {
    redb::Database::builder().set_check_integrity_on_open(true).open(path).is_ok()
}
