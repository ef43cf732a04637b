//! Hosts, links and time of one simulation, and what can be done to them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::context::{Context, Running};
use super::disk::{Disk, End};
use super::guest::Guest;
use super::history::History;
use super::host::{self, Order, Slot, name};
use crate::leadership::Leadership;
use crate::raft::Role;

/// How the seed shapes a simulation.
#[derive(Debug, Clone)]
pub struct Shape {
    pub seed: u64,
    /// First members.
    pub seeds: u64,
    /// Hosts in all; those beyond the first members may be added later.
    pub hosts: u64,
    pub latency: Duration,
    /// How likely a message breaks its link, on lossy links.
    pub loss: f64,
    pub slow_disks: f64,
    /// The longest pause between two actions.
    pub pause: u64,
    /// How long things go wrong.
    pub trouble: Duration,
    /// A defect that must be found: the disks call synced what is not.
    pub lying_disks: bool,
}

impl Shape {
    pub fn of(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed ^ 0x5eed);
        let seeds = if rng.random_bool(0.7) { 3 } else { 5 };
        let one_of = |rng: &mut SmallRng, choices: &[u64]| choices[rng.random_range(0..choices.len())];
        Shape {
            seed,
            seeds,
            hosts: seeds + rng.random_range(0..=2),
            latency: Duration::from_millis(one_of(&mut rng, &[1, 2, 5, 20])),
            loss: [0.0, 0.005, 0.02, 0.1][rng.random_range(0..4)],
            slow_disks: [0.0, 0.02, 0.2][rng.random_range(0..3)],
            pause: one_of(&mut rng, &[60, 200, 500]),
            trouble: Duration::from_millis(one_of(&mut rng, &[3000, 5000, 8000])),
            lying_disks: false,
        }
    }
}

/// How things stand with a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Not started yet.
    Spare,
    Up,
    Down,
}

/// One host, as the driver knows it.
pub(super) struct Host {
    pub slot: Rc<RefCell<Slot>>,
    pub phase: Phase,
    pub disk: Disk,
    /// Its disk was lost once: it may be refused from then on.
    pub wiped: bool,
    /// The disk was made to fail, or the host asked to stop: it may stop without being at fault.
    pub may_stop: bool,
}

/// What is wrong with the way between two hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    Cut,
    /// From the first to the second alone.
    CutThere,
    CutBack,
    /// Everything arrives, but later.
    Held,
}

impl Fault {
    fn is_one_way(self) -> bool {
        matches!(self, Self::CutThere | Self::CutBack)
    }
}

/// One simulation.
pub struct World {
    pub shape: Shape,
    pub(super) rng: SmallRng,
    pub(super) hosts: BTreeMap<u64, Host>,
    pub(super) faults: BTreeMap<(u64, u64), Fault>,
    /// When nothing was wrong with the way between two hosts for the last time.
    sound: BTreeMap<(u64, u64), Duration>,
    pub(super) lease: Duration,
    pub(super) guest: Rc<dyn Guest>,
    sim: turmoil::Sim<'static>,
    context: Rc<Context>,
    _running: Running,
}

impl World {
    pub(super) fn new(shape: Shape, guest: Rc<dyn Guest>) -> Self {
        let context = Context::new(shape.seed, 1..=shape.hosts, shape.slow_disks);
        context.history.borrow_mut().shows_wire = std::env::var_os("CORTEX_SIM_WIRE").is_some();
        let running = context.enter();
        let mut sim = turmoil::Builder::new()
            .rng_seed(shape.seed)
            .simulation_duration(Duration::from_secs(3600))
            .tick_duration(Duration::from_millis(1))
            .min_message_latency(Duration::ZERO)
            .max_message_latency(shape.latency)
            .tcp_capacity(1024)
            .enable_random_order()
            .build();
        let mut hosts = BTreeMap::new();
        for (id, disk) in context.disks.values() {
            let (id, disk, seeds) = (*id, disk.clone(), shape.seeds);
            if shape.lying_disks {
                disk.lie();
            }
            let slot = Rc::<RefCell<Slot>>::default();
            let phase = if id <= seeds { Phase::Up } else { Phase::Spare };
            let above = Rc::clone(&guest);
            let (shared, started) = (Rc::clone(&slot), Rc::new(RefCell::new(phase == Phase::Up)));
            sim.host(name(id), move || {
                let (slot, first) = (Rc::clone(&shared), started.replace(true));
                let guest = Rc::clone(&above);
                async move {
                    if !first {
                        return Ok(());
                    }
                    host::run(id, seeds, slot, guest).await
                }
            });
            hosts.insert(id, Host { slot, phase, disk, wiped: false, may_stop: false });
        }
        let rng = SmallRng::seed_from_u64(shape.seed);
        let lease = host::config(1, shape.seeds).lease();
        let (faults, sound) = (BTreeMap::new(), BTreeMap::new());
        World { shape, rng, hosts, faults, sound, lease, guest, sim, context, _running: running }
    }

    pub fn now(&self) -> Duration {
        self.sim.elapsed()
    }

    pub(super) fn history(&self) -> std::cell::RefMut<'_, History> {
        self.context.history.borrow_mut()
    }

    pub fn note(&self, line: String) {
        self.history().note(line);
    }

    /// Lets a millisecond pass and looks at every member.
    pub(super) fn step(&mut self) {
        let stepped = self.sim.step();
        let now = self.sim.elapsed();
        self.history().now = now;
        if let Err(error) = stepped {
            self.history().violated(format!("a host failed: {error}"));
        }
        let ids: Vec<u64> = self.hosts.keys().copied().collect();
        let ways = ids.iter().flat_map(|a| ids.iter().map(move |b| pair(*a, *b)));
        for way in ways.filter(|way| !self.faults.contains_key(way)) {
            self.sound.insert(way, now);
        }
        for id in ids {
            self.look(id);
        }
        self.history().look_at_all(self.lease);
    }

    fn look(&mut self, id: u64) {
        let host = &self.hosts[&id];
        if host.phase == Phase::Up && host.disk.is_dead() {
            self.note(format!("the power of member {id} went amid a write"));
            return self.end(id, End::PowerCut);
        }
        let (node, may_stop) = (host.slot.borrow().node.clone(), host.may_stop || host.wiped);
        let Some(node) = node else {
            let refused = host.slot.borrow().refused.clone();
            if let Some(why) = refused.filter(|_| !may_stop && !self.is_removed(id)) {
                self.history().violated(format!("member {id} did not start: {why}"));
            }
            return;
        };
        let role: Role = node.raft().server_metrics().borrow_watched().clone();
        let applied = node.raft().data_metrics().borrow_watched().last_applied.map(|applied| applied.index);
        let shown = node.leadership().borrow().clone();
        // One that is empty again and hears that it was removed stops, too.
        let may_stop = may_stop || self.is_removed(id);
        let reached = self.reached_a_quorum(id, &role);
        let mut history = self.history();
        // Never earlier than it was: what was answered before a change of members counts after it, too.
        let last = history.reached.entry(id).or_default();
        *last = reached.max(*last);
        if let Leadership::Stopped { reason, removed } = &shown
            && !(*removed || may_stop)
        {
            history.violated(format!("member {id} stopped for no reason: {reason}"));
        }
        let control = node.control().borrow().clone();
        history.look(id, &role, applied, &control, shown);
    }

    /// When a quorum could answer a member for the last time, not all at once perhaps.
    fn reached_a_quorum(&self, id: u64, role: &Role) -> Duration {
        let membership = role.membership_config.membership();
        let of_each = membership.get_joint_config().iter().filter_map(|voters| {
            let reached = |voter| self.sound.get(&pair(id, voter)).copied().unwrap_or_default();
            let mut times: Vec<Duration> = voters.iter().map(|voter| reached(*voter)).collect();
            times.sort_unstable();
            times.into_iter().rev().nth(voters.len() / 2)
        });
        of_each.min().unwrap_or(self.sim.elapsed())
    }

    /// Whether any member has ever known this one as removed.
    pub(super) fn is_removed(&self, id: u64) -> bool {
        self.history().removed.contains(&id)
    }

    /// All that run.
    pub(super) fn nodes(&self) -> impl Iterator<Item = crate::node::Node> {
        self.hosts.values().filter_map(|host| host.slot.borrow().node.clone())
    }

    /// A member that leads by Raft's word.
    pub fn leader(&self) -> Option<u64> {
        self.nodes()
            .filter(|node| node.raft().server_metrics().borrow_watched().state == ServerState::Leader)
            .map(|node| node.id())
            .last()
    }

    pub(super) fn order(&self, id: u64, order: Order) {
        self.note(format!("member {id} is told: {order:?}"));
        self.hosts[&id].slot.borrow().order(order);
    }

    /// Ends the process of a member at once.
    pub(super) fn end(&mut self, id: u64, end: End) {
        let Some(host) = self.hosts.get_mut(&id) else { return };
        let lost = host.disk.end(end, &mut self.rng);
        *host.slot.borrow_mut() = Slot::default();
        (host.phase, host.may_stop) = (Phase::Down, false);
        self.context.connections.ending(|| self.sim.crash(name(id)));
        self.note(format!("member {id} ends: {end:?}, {lost} writes lost"));
        self.history().ended(id);
        self.guest.ended(id);
    }

    /// Starts a member, for the first time or again.
    pub(super) fn start(&mut self, id: u64) {
        let Some(host) = self.hosts.get_mut(&id) else { return };
        host.phase = Phase::Up;
        self.note(format!("member {id} is started"));
        self.context.connections.ending(|| self.sim.bounce(name(id)));
    }

    /// Destroys what a member that is down has on disk.
    pub(super) fn wipe(&mut self, id: u64) {
        let Some(host) = self.hosts.get_mut(&id) else { return };
        host.disk.wipe();
        host.wiped = true;
        self.note(format!("member {id} loses its disk"));
        self.history().wiped(id);
    }

    /// Does something to the way between two hosts, if nothing is wrong with it yet.
    pub(super) fn cut(&mut self, from: u64, to: u64, fault: Fault) {
        if from == to || self.faults.contains_key(&pair(from, to)) {
            return;
        }
        self.note(format!("between {from} and {to}: {fault:?}"));
        self.faults.insert(pair(from, to), fault);
        let (a, b) = (from, to);
        let (from, to) = (name(from), name(to));
        if fault.is_one_way() {
            // turmoil repairs what was lossy both ways, and with it the cut.
            self.set_loss(a, b, 0.0);
            self.sim.repair(from.clone(), to.clone());
        }
        match fault {
            Fault::Cut => self.sim.partition(from, to),
            Fault::CutThere => self.sim.partition_oneway(from, to),
            Fault::CutBack => self.sim.partition_oneway(to, from),
            Fault::Held => self.sim.hold(from, to),
        }
    }

    /// Mends the way between two hosts.
    pub(super) fn mend(&mut self, a: u64, b: u64) {
        if let Some(fault) = self.faults.remove(&pair(a, b)) {
            self.note(format!("between {a} and {b}: mended"));
            match fault {
                Fault::Held => self.sim.release(name(a), name(b)),
                _ => self.sim.repair(name(a), name(b)),
            }
        }
    }

    /// Makes the way between two hosts lossy, or sound.
    pub(super) fn set_loss(&mut self, a: u64, b: u64, loss: f64) {
        if loss > 0.0 && self.faults.get(&pair(a, b)).is_some_and(|fault| fault.is_one_way()) {
            return;
        }
        self.note(format!("between {a} and {b}: loss {loss}"));
        self.sim.set_link_fail_rate(name(a), name(b), loss);
    }

    /// Makes the way between two hosts slow, or as it was.
    pub(super) fn set_latency(&mut self, a: u64, b: u64, latency: Duration) {
        self.note(format!("between {a} and {b}: latency {latency:?}"));
        self.sim.set_link_max_message_latency(name(a), name(b), latency);
    }

    /// Mends everything and starts everybody.
    pub(super) fn heal(&mut self) {
        self.note("all is mended".to_owned());
        let ids: Vec<u64> = self.hosts.keys().copied().collect();
        for a in &ids {
            for b in ids.iter().filter(|b| a < *b) {
                self.mend(*a, *b);
                self.set_loss(*a, *b, 0.0);
                self.set_latency(*a, *b, self.shape.latency);
            }
        }
        for id in ids {
            let host = &self.hosts[&id];
            host.disk.mend();
            if host.phase == Phase::Up && host.may_stop {
                self.end(id, End::PowerCut);
            }
            if self.hosts[&id].phase == Phase::Down {
                self.start(id);
            }
        }
    }
}

pub(super) fn pair(a: u64, b: u64) -> (u64, u64) {
    (a.min(b), a.max(b))
}
