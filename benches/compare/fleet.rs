//! A simulated fleet whose workers load models: arrivals, workers and time are made up, the placement is the
//! product's.
//!
//! A leader gives jobs to workers as `src/services/leader` does, by the same [`Pool`]: at the submission, if a
//! slot is free that no waiting job needs (`submit.rs`), else in the order of priority and time once a slot
//! comes free (`dispatch.rs` and `claim.lua`). Its transactions take no time. Events are in simulated time, so
//! the same seed gives the same run.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use cortex::domain::ids::WorkerId;
use cortex::domain::matching::{Capabilities, Shape};
use cortex::domain::placement::{Candidate, GroupId, Pool};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use uuid::Uuid;

const WORKERS: u32 = 32;
/// One of so many workers has a GPU, and one of so many models needs one.
const GPU_EVERY: u32 = 4;
/// No more than there is room for models: a load always finds one that is not in use.
const SLOTS: u32 = 4;
/// Models that a worker can have loaded. It drops the one whose last use is longest ago.
const ROOM: usize = 4;
const LOAD: Duration = Duration::from_secs(20);
const MEAN_RUN_S: f64 = 2.0;
/// Of the logarithm of a run's time.
const SPREAD: f64 = 1.0;
/// What the worker runtime does by default.
const HEARTBEAT: Duration = Duration::from_secs(1);
const PRIORITY: u8 = 5;
/// Of one job of ten.
const URGENT: u8 = 9;

/// How the leader comes to know which models are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reports {
    Never,
    /// Each worker says every second what it has loaded by then.
    Heartbeats,
    /// It always knows, and counts a model as loaded from the moment at which it is begun to be loaded.
    AtOnce,
}

/// How fast jobs come.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    PerSecond(f64),
    /// All at the beginning.
    AllAtOnce,
}

/// Jobs in the order of their arrival, and what the workers add to chance.
pub struct Work {
    models: u32,
    jobs: Vec<Job>,
    /// When each worker sends its first heartbeat, as a part of the period.
    phases: Vec<f64>,
}

#[derive(Debug)]
struct Job {
    /// Arrives at this time at one job a second.
    at: f64,
    model: usize,
    priority: u8,
    run: Duration,
}

/// What came of all jobs but the first sixth that got slots, which warms the fleet up.
pub struct Outcome {
    /// From the submissions to the starts of the runs, sorted.
    pub starts: Vec<Duration>,
    loads: u32,
    /// From the first of them that got a slot to the last.
    span: Duration,
}

impl Work {
    pub fn new(models: u32, jobs: u32, seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        // Zipf: the nth model is asked for n times less often than the first.
        let weights = (1..=models).map(|rank| 1.0 / f64::from(rank));
        let bounds: Vec<f64> = weights.scan(0.0, |sum, weight| Some(add(sum, weight))).collect();
        let most = bounds.last().copied().unwrap_or_default();
        let mut at = 0.0;
        let mut job = |_| {
            let model = random.random_range(0.0..most);
            let urgent = random.random_bool(0.1);
            Job {
                at: add(&mut at, exponential(&mut random)),
                model: bounds.partition_point(|bound| *bound <= model),
                priority: if urgent { URGENT } else { PRIORITY },
                run: Duration::from_secs_f64(lognormal(&mut random)),
            }
        };
        let jobs = (0..jobs).map(&mut job).collect();
        Self { models, jobs, phases: (0..WORKERS).map(|_| random.random()).collect() }
    }
}

impl Outcome {
    pub fn per_s(&self) -> f64 {
        count(self.starts.len()) / self.span.as_secs_f64()
    }

    pub fn loads_per_1000(&self) -> f64 {
        1000.0 * f64::from(self.loads) / count(self.starts.len())
    }

    /// In seconds.
    pub fn percentile(&self, percent: usize) -> f64 {
        let place = self.starts.len().saturating_sub(1) * percent / 100;
        self.starts.get(place).map_or(0.0, Duration::as_secs_f64)
    }
}

/// Runs all jobs.
pub fn simulate(work: &Work, pace: Pace, reports: Reports) -> Outcome {
    let arrival = |job: &Job| match pace {
        Pace::PerSecond(rate) => Duration::from_secs_f64(job.at / rate),
        Pace::AllAtOnce => Duration::ZERO,
    };
    let mut leader = Leader::new(work, reports);
    let mut events: BinaryHeap<Reverse<(Duration, Event)>> = BinaryHeap::new();
    for (number, job) in work.jobs.iter().enumerate() {
        events.push(Reverse((arrival(job), Event::Submission(number))));
    }
    for (worker, phase) in leader.machines.keys().zip(&work.phases) {
        events.push(Reverse((HEARTBEAT.mul_f64(*phase), Event::Heartbeat(*worker))));
    }
    let (mut cold, mut left) = (work.jobs.len() / 6, work.jobs.len());
    let mut outcome = Outcome { starts: Vec::new(), loads: 0, span: Duration::ZERO };
    let mut first = None;
    while let Some(Reverse((now, event))) = events.pop().filter(|_| left > 0) {
        match event {
            Event::Submission(job) => leader.submit(job),
            Event::Heartbeat(worker) => {
                leader.hear(worker, now);
                events.push(Reverse((now + HEARTBEAT, event)));
            }
            Event::End(worker, job) => {
                left -= 1;
                leader.release(worker, job);
                leader.dispatch();
            }
        }
        for (worker, number) in std::mem::take(&mut leader.placed) {
            let job = &work.jobs[number];
            let (start, loads) = leader.begin(worker, job.model, now);
            events.push(Reverse((start + job.run, Event::End(worker, number))));
            // Counted in the order in which they get slots, so that the rate is of counted jobs alone.
            if cold > 0 {
                cold -= 1;
            } else {
                outcome.starts.push(start - arrival(job));
                outcome.loads += u32::from(loads);
                outcome.span = now - *first.get_or_insert(now);
            }
        }
    }
    outcome.starts.sort_unstable();
    outcome
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Submission(usize),
    Heartbeat(WorkerId),
    /// A worker has run a job.
    End(WorkerId, usize),
}

struct Leader<'a> {
    work: &'a Work,
    reports: Reports,
    shapes: Vec<Shape>,
    machines: BTreeMap<WorkerId, Machine>,
    pool: Pool,
    /// Jobs that wait, by model.
    waiting: Vec<BTreeSet<(Reverse<u8>, usize)>>,
    /// Jobs that have just got a slot.
    placed: Vec<(WorkerId, usize)>,
}

/// A worker.
struct Machine {
    capabilities: Capabilities,
    free: u32,
    /// By the last use, the latest at the end.
    models: Vec<Held>,
    reported: BTreeSet<String>,
}

/// A model that a worker has loaded, or loads.
struct Held {
    model: usize,
    ready: Duration,
    users: u32,
}

impl<'a> Leader<'a> {
    fn new(work: &'a Work, reports: Reports) -> Self {
        let shape = |model: u32| Shape {
            model_name: format!("model-{model}"),
            requires_gpu: model % GPU_EVERY == GPU_EVERY - 1,
            required_memory_mib: 0,
        };
        let machine = |number: u32| Machine {
            capabilities: Capabilities {
                models: None,
                gpu: number.is_multiple_of(GPU_EVERY),
                memory_mib: None,
            },
            free: SLOTS,
            models: Vec::new(),
            reported: BTreeSet::new(),
        };
        let id = |number: u32| WorkerId(Uuid::from_u128(number.into()));
        let shapes: Vec<Shape> = (0..work.models).map(shape).collect();
        let mut leader = Self {
            work,
            reports,
            waiting: vec![BTreeSet::new(); shapes.len()],
            shapes,
            machines: (0..WORKERS).map(|number| (id(number), machine(number))).collect(),
            pool: Pool::default(),
            placed: Vec::new(),
        };
        let workers: Vec<WorkerId> = leader.machines.keys().copied().collect();
        workers.into_iter().for_each(|worker| leader.refresh(worker));
        leader
    }

    /// As `place_directly` does.
    fn submit(&mut self, job: usize) {
        let Job { model, priority, .. } = self.work.jobs[job];
        let Self { pool, shapes, waiting, .. } = self;
        let able = pool.able(&shapes[model]);
        let to_spare = |group: &GroupId| {
            let rivals = shapes.iter().zip(&*waiting).filter(|(shape, _)| pool.runs(*group, shape));
            pool.free_in(*group) as usize > rivals.map(|(_, waiting)| waiting.len()).sum()
        };
        match able.into_iter().find(to_spare).and_then(|group| self.choose(group, model)) {
            Some(worker) => self.take(worker, job),
            None => {
                self.waiting[model].insert((Reverse(priority), job));
            }
        }
    }

    /// As a round of the scheduler does: the claim, then those with the model loaded, then the others.
    fn dispatch(&mut self) {
        let mut plain = Vec::new();
        for (job, group) in self.claim() {
            let model = &self.shapes[self.work.jobs[job].model].model_name;
            match self.pool.with_model(group, model) {
                Some(worker) => self.take(worker, job),
                None => plain.push((job, group)),
            }
        }
        for (job, group) in plain {
            let best = self.pool.best(group).expect("a claim takes no more than there are free slots");
            self.take(best, job);
        }
    }

    /// The next jobs that the free slots can take, and in which groups.
    fn claim(&mut self) -> Vec<(usize, GroupId)> {
        let mut free: BTreeMap<GroupId, u32> = self.pool.groups().collect();
        let mut offers: Vec<(usize, Vec<GroupId>)> = Vec::new();
        for (model, waiting) in self.waiting.iter().enumerate() {
            if !waiting.is_empty() {
                offers.push((model, self.pool.able(&self.shapes[model])));
            }
        }
        let mut claims = Vec::new();
        loop {
            let next = offers.iter().filter_map(|(model, able)| {
                let group = able.iter().find(|group| free.get(group).is_some_and(|free| *free > 0))?;
                Some((*self.waiting[*model].first()?, *model, *group))
            });
            let Some((job, model, group)) = next.min() else { return claims };
            self.waiting[model].remove(&job);
            free.entry(group).and_modify(|free| *free -= 1);
            claims.push((job.1, group));
        }
    }

    fn choose(&self, group: GroupId, model: usize) -> Option<WorkerId> {
        let loaded = self.pool.with_model(group, &self.shapes[model].model_name);
        loaded.or_else(|| self.pool.best(group))
    }

    fn take(&mut self, worker: WorkerId, job: usize) {
        self.machine(worker).free -= 1;
        self.refresh(worker);
        self.placed.push((worker, job));
    }

    fn release(&mut self, worker: WorkerId, job: usize) {
        let model = self.work.jobs[job].model;
        let machine = self.machine(worker);
        machine.free += 1;
        machine.used(model).users -= 1;
        self.learn(worker);
    }

    /// When the run can start, and whether a model is loaded for it.
    fn begin(&mut self, worker: WorkerId, model: usize, now: Duration) -> (Duration, bool) {
        let machine = self.machine(worker);
        let loads = !machine.models.iter().any(|held| held.model == model);
        if loads {
            if machine.models.len() == ROOM {
                let unused = machine.models.iter().position(|held| held.users == 0);
                machine.models.remove(unused.expect("there are no more slots than room for models"));
            }
            machine.models.push(Held { model, ready: now + LOAD, users: 0 });
        }
        let held = machine.used(model);
        held.users += 1;
        let start = held.ready.max(now);
        self.learn(worker);
        (start, loads)
    }

    /// A heartbeat.
    fn hear(&mut self, worker: WorkerId, now: Duration) {
        if self.reports == Reports::Heartbeats {
            self.report(worker, |held| held.ready <= now);
        }
    }

    /// What the leader knows without one.
    fn learn(&mut self, worker: WorkerId) {
        if self.reports == Reports::AtOnce {
            self.report(worker, |_| true);
        } else {
            self.refresh(worker);
        }
    }

    fn report(&mut self, worker: WorkerId, which: impl Fn(&Held) -> bool) {
        let Self { machines, shapes, .. } = self;
        let machine = machines.get_mut(&worker).expect("every worker is known");
        let models = machine.models.iter().filter(|held| which(held));
        machine.reported = models.map(|held| shapes[held.model].model_name.clone()).collect();
        self.refresh(worker);
    }

    fn refresh(&mut self, worker: WorkerId) {
        let machine = &self.machines[&worker];
        self.pool.put(&Candidate {
            worker,
            capabilities: &machine.capabilities,
            free: machine.free,
            waits: false,
            near: false,
            loaded_models: &machine.reported,
        });
    }

    fn machine(&mut self, worker: WorkerId) -> &mut Machine {
        self.machines.get_mut(&worker).expect("every worker is known")
    }
}

impl Machine {
    /// A model that is loaded, which is used now.
    fn used(&mut self, model: usize) -> &mut Held {
        let place = self.models.iter().position(|held| held.model == model).expect("it is loaded");
        let held = self.models.remove(place);
        self.models.push(held);
        self.models.last_mut().expect("it was just put there")
    }
}

fn add(sum: &mut f64, more: f64) -> f64 {
    *sum += more;
    *sum
}

/// With mean 1.
fn exponential(random: &mut StdRng) -> f64 {
    -(1.0 - random.random::<f64>()).ln()
}

/// The time of a run in seconds, by the method of Box and Muller.
fn lognormal(random: &mut StdRng) -> f64 {
    let radius = (2.0 * exponential(random)).sqrt();
    let normal = radius * (std::f64::consts::TAU * random.random::<f64>()).cos();
    MEAN_RUN_S * (SPREAD * normal - SPREAD * SPREAD / 2.0).exp()
}

#[expect(clippy::cast_precision_loss, reason = "far fewer jobs")]
fn count(jobs: usize) -> f64 {
    jobs as f64
}
