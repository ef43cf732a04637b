//! Replicas from the Raft group up to commands, on the simulated network, clock and disk of `cortex-cluster`.
//!
//! Real: the node, [`leadership`](crate::leadership), [`forward`](crate::forward). In place of PostgreSQL is a fence
//! in memory ([`store`]), in place of the leader one that carries commands out by a row each ([`leader`]). Clients at
//! every replica keep what they are answered ([`ledger`]). The faults are those of the group's own simulation, and a
//! store that is silent to some replicas; its checks hold, too. `docs/SIMULATION.md` tells how to run it.

mod client;
mod leader;
mod ledger;
mod replica;
mod store;

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use cortex_cluster::simulation::{Guest, Outcome, Shape, simulate};
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};

use replica::Replicas;

/// A defect that must be found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    /// Commands are accepted before the store has accepted the epoch.
    HereBeforeTheFence,
    /// The store does not look at epochs.
    FenceOff,
    /// A commit of which nobody knows is answered as not done, so that it is sent again.
    UnknownCountsAsNotDone,
    /// A leader that was fenced off says that it is unsure.
    FencedOffCountsAsUnsure,
}

thread_local! {
    /// The randomness of what is above Raft. Not that of the group: which of two tasks of a host wakes first must not
    /// decide who draws what.
    static RANDOMNESS: RefCell<StdRng> = RefCell::new(StdRng::seed_from_u64(0));
}

/// A number from the simulation's seed.
fn random() -> u64 {
    RANDOMNESS.with_borrow_mut(RngCore::next_u64)
}

/// The same, smaller than `bound`.
fn below(bound: u64) -> u64 {
    random() % bound
}

fn run(seed: u64, defect: Option<Defect>) -> (Outcome, (usize, usize)) {
    RANDOMNESS.set(StdRng::seed_from_u64(seed));
    let replicas = Rc::new(Replicas::new(defect));
    let outcome = simulate(Shape::of(seed), Rc::clone(&replicas) as Rc<dyn Guest>);
    (outcome, replicas.extent())
}

/// A number from the environment.
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, got \"{text}\"")))
}

/// How to see one seed again, with all that happened.
fn again(seed: u64) -> String {
    format!("CORTEX_SIM_SEED={seed} cargo test -p cortex --lib simulation -- --nocapture")
}

/// `CORTEX_SIM_SEED` is one seed to be shown; `CORTEX_SIM_FIRST` and `CORTEX_SIM_SEEDS` are a range.
fn seeds(few: u64) -> Range<u64> {
    match number("CORTEX_SIM_SEED") {
        Some(one) => one..one + 1,
        None => {
            let first = number("CORTEX_SIM_FIRST").unwrap_or(0);
            first..first + number("CORTEX_SIM_SEEDS").unwrap_or(few)
        }
    }
}

#[test]
fn commands_are_carried_out_as_answered_in_any_seed() {
    let shown = number("CORTEX_SIM_SEED").is_some();
    let seeds = seeds(2);
    let (mut failed, mut epochs, mut asked, mut written) = (Vec::new(), 0, 0, 0);
    let mut slowest = std::time::Duration::ZERO;
    for (run_before, seed) in seeds.clone().enumerate() {
        if run_before > 0 && run_before.is_multiple_of(100) {
            println!("{run_before} seeds, {} failed", failed.len());
        }
        let (outcome, extent) = run(seed, None);
        if shown {
            println!("{:?}\n{}", outcome.shape, outcome.lines.join("\n"));
        }
        if let Some(violation) = outcome.violation {
            println!("seed {seed}: {violation}\n  {}", again(seed));
            failed.push(seed);
        }
        (epochs, asked, written) = (epochs + outcome.extent.0, asked + extent.0, written + extent.1);
        slowest = slowest.max(outcome.calm_after);
    }
    println!(
        "seeds {seeds:?}: {} failed; {epochs} epochs, {asked} commands, {written} carried out; the slowest \
         to answer everywhere took {slowest:?}",
        failed.len()
    );
    assert!(failed.is_empty(), "seeds failed: {failed:?}; see one: {}", again(failed[0]));
}

#[test]
fn the_same_seed_does_the_same() {
    for seed in seeds(1) {
        let first = run(seed, None).0;
        count_a_task();
        let second = run(seed, None).0;
        if let Some(at) = first.lines.iter().zip(&second.lines).position(|(a, b)| a != b) {
            let before = first.lines[at.saturating_sub(10)..at].join("\n");
            panic!("seed {seed} differs after\n{before}\nin\n{}\n{}", first.lines[at], second.lines[at]);
        }
        assert_eq!((first.digest, first.lines.len()), (second.digest, second.lines.len()), "seed {seed}");
    }
}

/// Moves on what tokio counts over the whole process, as other tests do now and then.
fn count_a_task() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async { tokio::spawn(async {}).await.unwrap() });
}

/// The simulation itself is of no use if it lets a defect pass.
#[test]
fn defects_are_found_out() {
    // With a seed that is known to show it, so that few are run.
    let defects = [
        (Defect::HereBeforeTheFence, 0),
        (Defect::FenceOff, 1),
        (Defect::UnknownCountsAsNotDone, 0),
        (Defect::FencedOffCountsAsUnsure, 3),
    ];
    for (defect, first) in defects {
        let found = (first..first + 12).find_map(|seed| Some((seed, run(seed, Some(defect)).0.violation?)));
        println!("{defect:?}: {found:?}");
        assert!(found.is_some(), "twelve seeds did not notice {defect:?}");
    }
}
