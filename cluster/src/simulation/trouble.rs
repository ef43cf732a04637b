//! What goes wrong, and what is asked of the replicas meanwhile: drawn from the seed.

use std::time::Duration;

use rand::RngExt;
use rand::seq::IteratorRandom;

use super::disk::End;
use super::host::Order;
use super::world::{Fault, Phase, World};
use crate::control::ControlCommand;

/// What ends some trouble, in its time.
#[derive(Debug, Clone, Copy)]
enum Relief {
    Start(u64),
    Mend(u64, u64),
    Sound(u64, u64),
    Swift(u64, u64),
}

/// The trouble of one simulation.
pub(super) struct Trouble {
    reliefs: Vec<(Duration, Relief)>,
    next: Duration,
    /// Numbers the settings, so that each is unlike any other.
    settings: u64,
    removals: u64,
}

impl Trouble {
    pub fn new() -> Self {
        Trouble { reliefs: Vec::new(), next: Duration::from_millis(400), settings: 0, removals: 0 }
    }

    /// Does what is due.
    pub fn act(&mut self, world: &mut World) {
        let now = world.now();
        let due: Vec<Relief> =
            self.reliefs.extract_if(.., |(at, _)| *at <= now).map(|(_, relief)| relief).collect();
        for relief in due {
            relieve(world, relief);
        }
        if self.next <= now {
            self.cause(world);
            self.next = now + Duration::from_millis(world.rng.random_range(1..world.shape.pause));
        }
        self.restart_the_stopped(world);
    }

    fn later(&mut self, world: &mut World, longest: u64, relief: Relief) {
        let after = Duration::from_millis(world.rng.random_range(1..longest));
        self.reliefs.push((world.now() + after, relief));
    }

    fn cause(&mut self, world: &mut World) {
        let anybody = 1..=world.shape.hosts;
        let some = anybody.clone().choose(&mut world.rng).unwrap_or(1);
        let other = anybody.filter(|id| *id != some).choose(&mut world.rng).unwrap_or(2);
        let leader = world.leader().unwrap_or(some);
        // The leader is the one to hit.
        let victim = if world.rng.random_bool(0.5) { leader } else { some };
        let asked = if world.rng.random_bool(0.8) { leader } else { some };
        match world.rng.random_range(0..100) {
            0..30 => self.propose(world, asked),
            30..36 => self.hand_over(world, leader),
            36..44 => self.end(world, victim, End::Killed),
            44..50 => self.end(world, victim, End::PowerCut),
            50..57 => self.cut_power_amid_a_write(world, victim),
            57..60 => self.fail_disk(world, victim),
            60..66 => self.cut(world, victim, other),
            66..75 => {
                let fault = fault(world);
                self.isolate(world, victim, fault);
            }
            75..79 => self.split(world),
            79..84 => {
                world.set_loss(some, other, world.shape.loss);
                self.later(world, 2000, Relief::Sound(some, other));
            }
            84..89 => {
                let latency = Duration::from_millis(world.rng.random_range(10..250));
                world.set_latency(some, other, latency);
                self.later(world, 2000, Relief::Swift(some, other));
            }
            89..93 => self.add(world, leader),
            93..95 => self.remove(world, leader),
            95..97 => self.stop(world, victim),
            97 => self.end_all(world),
            _ => self.wipe(world, some),
        }
    }

    fn propose(&mut self, world: &mut World, to: u64) {
        self.settings += 1;
        let key = format!("key-{}", world.rng.random_range(0..8));
        world.order(to, Order::Propose(ControlCommand::Set { key, value: self.settings.to_string() }));
    }

    fn hand_over(&mut self, world: &mut World, leader: u64) {
        world.order(leader, Order::Transfer);
        // At times it does not hear what comes of that, and goes on leading for a lease beside the next leader.
        if world.rng.random_bool(0.5) {
            self.isolate(world, leader, Fault::CutBack);
        }
    }

    fn end(&mut self, world: &mut World, id: u64, end: End) {
        if world.hosts[&id].phase == Phase::Up {
            world.end(id, end);
            self.later(world, 1500, Relief::Start(id));
        }
    }

    fn end_all(&mut self, world: &mut World) {
        let end = if world.rng.random_bool(0.5) { End::Killed } else { End::PowerCut };
        for id in 1..=world.shape.hosts {
            self.end(world, id, end);
        }
    }

    fn cut_power_amid_a_write(&mut self, world: &mut World, id: u64) {
        let operations = world.rng.random_range(0..40);
        world.note(format!("the power of member {id} will go after {operations} operations"));
        world.hosts[&id].disk.cut_power_after(operations);
    }

    fn fail_disk(&mut self, world: &mut World, id: u64) {
        if let Some(host) = world.hosts.get_mut(&id).filter(|host| host.phase == Phase::Up) {
            host.may_stop = true;
            host.disk.fail_syncs();
            world.note(format!("the disk of member {id} fails"));
            self.later(world, 1500, Relief::Start(id));
        }
    }

    fn stop(&mut self, world: &mut World, id: u64) {
        if let Some(host) = world.hosts.get_mut(&id).filter(|host| host.phase == Phase::Up) {
            host.may_stop = true;
            world.order(id, Order::Transfer);
            world.order(id, Order::Stop);
            self.later(world, 1500, Relief::Start(id));
        }
    }

    fn cut(&mut self, world: &mut World, a: u64, b: u64) {
        let fault = fault(world);
        world.cut(a, b, fault);
        self.later(world, 1500, Relief::Mend(a, b));
    }

    fn isolate(&mut self, world: &mut World, id: u64, fault: Fault) {
        let lasts = Duration::from_millis(world.rng.random_range(50..1500));
        for other in (1..=world.shape.hosts).filter(|other| *other != id) {
            world.cut(id, other, fault);
            self.reliefs.push((world.now() + lasts, Relief::Mend(id, other)));
        }
    }

    fn split(&mut self, world: &mut World) {
        let fault = fault(world);
        let lasts = Duration::from_millis(world.rng.random_range(50..1500));
        let sides: Vec<bool> = (0..=world.shape.hosts).map(|_| world.rng.random_bool(0.5)).collect();
        let on = |side: bool| {
            (1..=world.shape.hosts).zip(&sides).filter(move |(_, of)| **of == side).map(|(id, _)| id)
        };
        let pairs: Vec<(u64, u64)> = on(true).flat_map(|a| on(false).map(move |b| (a, b))).collect();
        for (a, b) in pairs {
            world.cut(a, b, fault);
            self.reliefs.push((world.now() + lasts, Relief::Mend(a, b)));
        }
    }

    fn add(&mut self, world: &mut World, leader: u64) {
        let spare = world.hosts.iter().find(|(_, host)| host.phase == Phase::Spare).map(|(id, _)| *id);
        // One that was added in vain is added again.
        let added = (world.shape.seeds + 1..=world.shape.hosts).choose(&mut world.rng);
        if let Some(id) = spare {
            world.start(id);
        }
        if let Some(id) = spare.or(added) {
            world.order(leader, Order::Add(id));
        }
    }

    fn remove(&mut self, world: &mut World, leader: u64) {
        // As many stay as there were at first, less one at most.
        if self.removals <= world.shape.hosts - world.shape.seeds {
            let ids = (1..=world.shape.hosts).filter(|id| *id != leader);
            if let Some(id) = ids.choose(&mut world.rng) {
                self.removals += 1;
                world.order(leader, Order::Remove(id));
            }
        }
    }

    /// At most one member loses its disk, and only once the others know of the cluster, so that a majority of those who
    /// know remains.
    fn wipe(&mut self, world: &mut World, id: u64) {
        let others_know =
            (1..=world.shape.seeds).all(|other| other == id || world.history().has_applied(other));
        let enough = others_know && !world.hosts.values().any(|host| host.wiped) && self.removals == 0;
        if enough && world.hosts[&id].phase == Phase::Down {
            self.removals = u64::MAX;
            world.wipe(id);
        }
    }

    /// A supervisor starts what has ended.
    fn restart_the_stopped(&mut self, world: &mut World) {
        let ended: Vec<u64> = world
            .hosts
            .iter()
            .filter(|(id, host)| host.phase == Phase::Down && !self.will_start(**id))
            .map(|(id, _)| *id)
            .collect();
        for id in ended {
            self.later(world, 1500, Relief::Start(id));
        }
    }

    fn will_start(&self, id: u64) -> bool {
        self.reliefs.iter().any(|(_, relief)| matches!(relief, Relief::Start(known) if *known == id))
    }
}

fn relieve(world: &mut World, relief: Relief) {
    match relief {
        Relief::Start(id) => {
            if world.hosts[&id].phase == Phase::Up && world.hosts[&id].may_stop {
                world.end(id, End::PowerCut);
            }
            if world.hosts[&id].phase == Phase::Down {
                world.start(id);
            }
        }
        Relief::Mend(a, b) => world.mend(a, b),
        Relief::Sound(a, b) => world.set_loss(a, b, 0.0),
        Relief::Swift(a, b) => world.set_latency(a, b, world.shape.latency),
    }
}

fn fault(world: &mut World) -> Fault {
    [Fault::Cut, Fault::Cut, Fault::CutThere, Fault::CutBack, Fault::Held][world.rng.random_range(0..5)]
}
