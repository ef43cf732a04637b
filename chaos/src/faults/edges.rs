//! What all faults of the network have in common.

use std::time::Duration;

use futures::future::join_all;
use tokio::time::timeout;

use super::{Miss, Strike, Struck};
use crate::cluster::{Cluster, Condition, End, Link};
use crate::history::View;

/// Longest wait for a new leader while the network is broken: other faults may keep it from coming about.
const NEW_LEADER_WITHIN: Duration = Duration::from_secs(5);

/// Puts edges into their conditions, lets something happen, and makes them whole again, whatever came of it. Notes the
/// moment of healing. Answers what came of it, and how often the conditions have done anything.
///
/// # Errors
/// When an edge could not be broken or healed.
pub(super) async fn broken<T>(
    strike: &Strike,
    edges: &[(Link, Condition)],
    meanwhile: impl Future<Output = T>,
) -> Result<(T, u64), String> {
    let cluster = &strike.cluster;
    let links: Vec<_> = edges.iter().map(|(link, _)| *link).collect();
    let before = cluster.affected(&links).await?;
    let set = set_all(cluster, edges.iter().copied()).await;
    let result = if set.is_ok() { Some(meanwhile.await) } else { None };
    heal(cluster, &links).await?;
    strike.heals();
    set?;
    let affected = cluster.affected(&links).await?.saturating_sub(before);
    Ok((result.ok_or("nothing was done")?, affected))
}

/// Makes edges whole again. One that fails does not keep the others from it.
pub(super) async fn heal(cluster: &Cluster, links: &[Link]) -> Result<(), String> {
    set_all(cluster, links.iter().map(|link| (*link, Condition::Open))).await
}

pub(super) async fn set_all(
    cluster: &Cluster,
    edges: impl Iterator<Item = (Link, Condition)>,
) -> Result<(), String> {
    let set = edges.map(|(link, condition)| cluster.set(link, condition));
    join_all(set).await.into_iter().collect()
}

/// Waits for a leader other than this one, for as long as that can be expected.
pub(super) async fn successor(cluster: &Cluster, leader: usize) -> Option<usize> {
    timeout(NEW_LEADER_WITHIN, cluster.leader_other_than(Some(leader))).await.ok()?.ok()
}

/// Waits until all replicas that answer see the same leader, and one of them is it.
///
/// # Errors
/// When that does not come about, which the product owes once the network is whole again.
pub(super) async fn united(cluster: &Cluster) -> Result<usize, Miss> {
    let leader = || async {
        let views = join_all((0..cluster.size()).map(|index| cluster.view(index))).await;
        let leader = views.iter().flatten().next()?.leader?;
        let agreed = views.iter().flatten().all(|view| view.leader == Some(leader));
        // A replica whose log was damaged is a member under a new id.
        let leads = |view: &Option<View>| {
            view.as_ref().is_some_and(|view| view.id == leader && view.role == "leader")
        };
        views.iter().position(leads).filter(|_| agreed)
    };
    let agreed = std::sync::Mutex::new(None);
    let united = || async {
        let leader = leader().await;
        if let Ok(mut agreed) = agreed.lock() {
            *agreed = leader;
        }
        leader.is_some()
    };
    cluster.until("all replicas see one leader", united).await.map_err(Miss::Broke)?;
    agreed.into_inner().ok().flatten().ok_or_else(|| "nobody leads".into())
}

/// All edges between replicas.
pub(super) fn between_replicas(cluster: &Cluster) -> Vec<Link> {
    let size = cluster.size();
    let pairs = (0..size).flat_map(|one| (0..size).map(move |other| (one, other)));
    pairs.filter(|(one, other)| one != other).map(|(from, to)| Link { from, to: End::Replica(to) }).collect()
}

/// All replicas but this one.
pub(super) fn others(cluster: &Cluster, replica: usize) -> impl Iterator<Item = usize> + use<> {
    (0..cluster.size()).filter(move |other| *other != replica)
}

/// A follower by draw.
///
/// # Errors
/// When nobody leads, which the product owes.
pub(super) async fn follower(strike: &mut Strike) -> Result<usize, Miss> {
    let leader = strike.leader().await?;
    let followers: Vec<_> = others(&strike.cluster, leader).collect();
    if followers.is_empty() {
        return Err("there is no follower".into());
    }
    Ok(*strike.draw.choose(&followers))
}

/// What shows that it bit, if anything does.
pub(super) fn proof(affected: u64, then: impl std::fmt::Display) -> Struck {
    match affected {
        0 => Err("nothing was said on these edges meanwhile".into()),
        _ => Ok(format!("held back, dropped or delayed {affected} times; {then}")),
    }
}
