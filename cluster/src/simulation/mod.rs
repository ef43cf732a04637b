//! The whole crate on a simulated network, clock and disk: what a seed does once it does every time.
//!
//! Each host runs the real replica (Raft, its log in redb, the peer protocol over HTTP/2, who leads, membership).
//! `turmoil` stands in for the network and the clock, [`disk`] for the disk, and all randomness comes from the
//! seed. [`trouble`] draws from it what goes wrong; [`history`] holds what may never be; after all is mended
//! the members must agree within [`CALM`]. `docs/SIMULATION.md` tells how to run it.

mod context;
mod disk;
mod guest;
mod history;
mod host;
mod network;
mod runtime;
mod trouble;
pub mod watch;
mod world;

use std::rc::Rc;
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;

pub(crate) use context::{blocking, disk, new_cluster_id, observe, within};
pub use context::{is_running, note, random, violated};
pub use guest::{Guest, Life};
pub use network::connect;
pub(crate) use network::connect_lazily;
pub(crate) use runtime::SeededRuntime;
pub use world::{Shape, World};

use trouble::Trouble;

use crate::leadership::Leadership;

/// How long the members may take to agree once all is mended.
const CALM: Duration = Duration::from_secs(10);
/// What came of a seed.
pub struct Outcome {
    pub shape: Shape,
    /// All that happened.
    pub lines: Vec<String>,
    /// One number for that, to the last message.
    pub digest: u64,
    pub violation: Option<String>,
    /// How long it took until all worked as it should, once all was mended.
    pub calm_after: Duration,
    /// How many epochs, entries and answers to changes there were.
    pub extent: (usize, usize, usize),
}

/// Runs a group, and what is above it, through the trouble that the shape draws.
pub fn simulate(shape: Shape, guest: Rc<dyn Guest>) -> Outcome {
    let mut world = World::new(shape.clone(), Rc::clone(&guest));
    let mut trouble = Trouble::new();
    while world.now() < shape.trouble && world.history().violation.is_none() {
        trouble.act(&mut world);
        guest.act(&world, false);
        world.step();
    }
    world.heal();
    let healed = world.now();
    let mut agreement = None;
    while world.history().violation.is_none() && agreement.is_none() {
        guest.act(&world, true);
        world.step();
        agreement = agreed(&world).filter(|agreement| guest.is_calm(&agreement.members));
        if agreement.is_none() && world.now() > healed + CALM {
            let state = describe(&world);
            world
                .history()
                .violated(format!("the members do not agree {CALM:?} after all was mended:{state}"));
        }
    }
    if let Some(agreement) = agreement {
        world.history().settle(agreement.applied);
        guest.settle();
    }
    let calm_after = world.now() - healed;
    let history = world.history();
    Outcome {
        shape,
        lines: history.lines.clone(),
        digest: history.digest(),
        violation: history.violation.clone(),
        calm_after,
        extent: history.extent(),
    }
}

/// One member leads, all others follow it, and all have the same.
struct Agreement {
    /// The index that all have applied.
    applied: u64,
    members: Vec<u64>,
}

fn agreed(world: &World) -> Option<Agreement> {
    let nodes: Vec<_> = world.nodes().collect();
    let mut leading = nodes.iter().filter(|node| node.leadership().borrow().is_leading());
    let leader = leading.next().filter(|_| leading.next().is_none())?;
    let role = leader.raft().server_metrics().borrow_watched().clone();
    let membership = role.membership_config.membership();
    let control = leader.control().borrow().clone();
    let index = |node: &crate::node::Node| {
        let data = node.raft().data_metrics().borrow_watched().clone();
        (data.last_log.map(|last| last.index), data.last_applied.map(|applied| applied.index))
    };
    let (last, applied) = index(leader);
    let mut members = vec![leader.id()];
    for id in membership.nodes().map(|(id, _)| *id).filter(|id| *id != leader.id()) {
        if world.hosts[&id].wiped || control.removed.contains(&id) {
            continue;
        }
        let node = nodes.iter().find(|node| node.id() == id)?;
        let follows = matches!(&*node.leadership().borrow(), Leadership::Following { leader: Some(found) } if found.id == leader.id());
        if !follows || *node.control().borrow() != control || index(node) != (last, applied) {
            return None;
        }
        members.push(id);
    }
    applied.filter(|_| last == applied).map(|applied| Agreement { applied, members })
}

fn describe(world: &World) -> String {
    let mut text = String::new();
    for (id, host) in &world.hosts {
        let slot = host.slot.borrow();
        let node = slot.node.as_ref().map(crate::node::Node::status);
        text += &format!("\n  member {id} {:?} wiped {} {:?} {node:?}", host.phase, host.wiped, slot.refused);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::guest::Nobody;
    use super::*;

    /// Seeds of a run that names no number.
    const FEW: u64 = 8;

    fn run(shape: Shape) -> Outcome {
        simulate(shape, Rc::new(Nobody))
    }

    /// A number from the environment.
    fn number(name: &str) -> Option<u64> {
        let text = std::env::var(name).ok()?;
        Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, got \"{text}\"")))
    }

    /// How to see one seed again, with all that happened.
    fn again(seed: u64) -> String {
        format!("CORTEX_SIM_SEED={seed} cargo test -p cortex-cluster --lib simulation -- --nocapture")
    }

    /// `CORTEX_SIM_SEED` is one seed to be shown; `CORTEX_SIM_FIRST` and `CORTEX_SIM_SEEDS` are a range.
    #[test]
    fn nothing_that_may_not_be_happens_in_any_seed() {
        let one = number("CORTEX_SIM_SEED");
        let first = one.or_else(|| number("CORTEX_SIM_FIRST")).unwrap_or(0);
        let count = one.map_or_else(|| number("CORTEX_SIM_SEEDS").unwrap_or(FEW), |_| 1);
        let (mut failed, mut extent, mut slowest) = (Vec::new(), (0, 0, 0), Duration::ZERO);
        for seed in first..first + count {
            let outcome = run(Shape::of(seed));
            if one.is_some() {
                println!("{:?}\n{}", outcome.shape, outcome.lines.join("\n"));
            }
            if let Some(violation) = outcome.violation {
                println!("seed {seed}: {violation}\n  {}", again(seed));
                failed.push(seed);
            }
            extent = (extent.0 + outcome.extent.0, extent.1 + outcome.extent.1, extent.2 + outcome.extent.2);
            slowest = slowest.max(outcome.calm_after);
            if (seed - first + 1).is_multiple_of(100) {
                println!("{} seeds, {} failed", seed - first + 1, failed.len());
            }
        }
        let (epochs, entries, acknowledged) = extent;
        println!(
            "{count} seeds from {first}: {} failed; {epochs} epochs, {entries} entries, {acknowledged} acknowledged \
             changes; the slowest to agree took {slowest:?}",
            failed.len()
        );
        assert!(failed.is_empty(), "seeds failed: {failed:?}; see one: {}", again(failed[0]));
    }

    #[test]
    fn the_same_seed_does_the_same() {
        let mut digests = BTreeSet::new();
        for seed in 0..2 {
            let first = run(Shape::of(seed));
            count_a_task();
            let second = run(Shape::of(seed));
            let differs = first.lines.iter().zip(&second.lines).position(|(a, b)| a != b);
            if let Some(at) = differs {
                let before = first.lines[at.saturating_sub(10)..at].join("\n");
                panic!("seed {seed} differs after\n{before}\nin\n{}\n{}", first.lines[at], second.lines[at]);
            }
            assert_eq!((first.digest, first.lines.len()), (second.digest, second.lines.len()), "seed {seed}");
            digests.insert(first.digest);
            assert!(first.extent.0 > 1, "seed {seed} saw no change of leaders");
        }
        assert_eq!(digests.len(), 2, "another seed does the same");
    }

    /// Moves on what tokio counts over the whole process, as other tests do now and then.
    fn count_a_task() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async { tokio::spawn(async {}).await.unwrap() });
    }

    /// The simulation itself is of no use if it lets a defect pass.
    #[test]
    fn disks_that_lie_are_found_out() {
        let lying = |seed| Shape { lying_disks: true, ..Shape::of(seed) };
        let found = (0..FEW).find_map(|seed| run(lying(seed)).violation);
        println!("{found:?}");
        assert!(found.is_some(), "{FEW} seeds did not notice that nothing was synced");
    }
}
