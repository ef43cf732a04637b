//! Small parts by themselves: `cargo bench --bench micro [-- FILTER]`.
//!
//! Matching, placement and scores are pure; the scripts of the ready queue run in a private Redis, which ends
//! with this process; the batcher commits nothing.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use chrono::{DateTime, TimeDelta, Utc};
use cortex::dev::{Janitor, PortBlock, Redis, RedisOptions};
use cortex::domain::ambient::{Ambient, System};
use cortex::domain::ids::{Epoch, JobId, WorkerId};
use cortex::domain::matching::{Capabilities, Shape};
use cortex::domain::placement::{Candidate, Pool};
use cortex::ready_queue::{Entry, Group, Offer, ReadyQueue, Score};
use cortex::services::batcher::{Batcher, Limits, Stage};
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use prometheus::{Histogram, HistogramOpts};
use tokio::runtime::Runtime;
use uuid::Uuid;

const SHAPES: usize = 500;
const WORKERS: usize = 1_000;
const EPOCH: Epoch = Epoch(1);
/// Jobs of one claim, as in a scheduling round.
const CLAIM: usize = 200;

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().expect("a runtime"));

fn main() {
    divan::main();
}

fn shape(number: usize) -> Shape {
    Shape {
        model_name: format!("model-{number}"),
        requires_gpu: number.is_multiple_of(4),
        required_memory_mib: (number % 8) as u64 * 1_024,
    }
}

fn capabilities(number: usize) -> Capabilities {
    let models: BTreeSet<String> = (0..5).map(|more| format!("model-{}", (number + more) % SHAPES)).collect();
    Capabilities { models: Some(models), gpu: number.is_multiple_of(2), memory_mib: Some(16_384) }
}

fn id(number: usize) -> Uuid {
    Uuid::from_u128(number as u128)
}

/// One worker against all shapes.
#[divan::bench]
fn matching_500_shapes(bencher: Bencher) {
    let (worker, shapes) = (capabilities(7), (0..SHAPES).map(shape).collect::<Vec<_>>());
    bencher
        .counter(ItemsCount::new(SHAPES))
        .bench(|| shapes.iter().filter(|shape| black_box(&worker).check(shape).is_ok()).count());
}

/// A fleet of so many workers; each of every two has a kind of its own.
struct Fleet {
    pool: Pool,
    kinds: Vec<Capabilities>,
    loaded: BTreeSet<String>,
}

impl Fleet {
    fn new() -> Self {
        let kinds: Vec<_> = (0..SHAPES).map(capabilities).collect();
        let mut fleet = Self { pool: Pool::default(), kinds, loaded: BTreeSet::new() };
        (0..WORKERS).for_each(|worker| fleet.put(worker, 10));
        fleet
    }

    fn put(&mut self, worker: usize, free: u32) {
        self.pool.put(&Candidate {
            worker: WorkerId(id(worker)),
            capabilities: &self.kinds[worker % SHAPES],
            free,
            waits: false,
            near: false,
            loaded_models: &self.loaded,
        });
    }
}

/// The best worker for a job of each shape, among a thousand of five hundred kinds.
#[divan::bench]
fn placement_500_shapes_1000_workers(bencher: Bencher) {
    let (mut fleet, shapes) = (Fleet::new(), (0..SHAPES).map(shape).collect::<Vec<_>>());
    bencher.counter(ItemsCount::new(SHAPES)).bench_local(|| {
        let place = |shape: &Shape| {
            let group = *fleet.pool.able(shape).first()?;
            fleet.pool.with_model(group, &shape.model_name).or_else(|| fleet.pool.best(group))
        };
        shapes.iter().filter_map(place).count()
    });
}

/// A slot taken and given back: what each assignment and each completion tells the pool.
#[divan::bench]
fn placement_slot_taken_and_freed(bencher: Bencher) {
    let mut fleet = Fleet::new();
    bencher.bench_local(|| {
        fleet.put(black_box(321), 9);
        fleet.put(black_box(321), 10);
    });
}

#[divan::bench]
fn score_pack_and_unpack(bencher: Bencher) {
    let now = System.now();
    bencher.bench(|| Score::pack(black_box(7), black_box(now)).unpack());
}

/// A private Redis with a queue of so many jobs, spread over all shapes.
struct Scripts {
    queue: ReadyQueue,
    offers: Vec<Offer>,
    groups: Vec<Group>,
    _redis: Redis,
    _ports: PortBlock,
    _janitor: Janitor,
}

impl Scripts {
    fn start(waiting: usize) -> Self {
        RUNTIME.block_on(async {
            let folder = std::env::temp_dir().join(format!("cortex-micro-{}", System.uuid().simple()));
            let ports = PortBlock::reserve(1).expect("a port");
            let options = RedisOptions {
                data_dir: folder.join("redis"),
                log: folder.join("redis.log"),
                port: ports.first(),
            };
            let redis = Redis::start(options).await.expect("Redis");
            let janitor = Janitor::watch(&folder, &[redis.pid()]).expect("a janitor");
            let queue = ReadyQueue::connect(&redis.url(), "micro").expect("a queue");
            queue.enqueue(EPOCH, &entries(0, waiting)).await.expect("jobs are queued");
            let offers = (0..SHAPES).map(|number| Offer { shape: shape(number), groups: vec![0] }).collect();
            let groups = vec![Group { free_slots: 10_000 }];
            Self { queue, offers, groups, _redis: redis, _ports: ports, _janitor: janitor }
        })
    }
}

fn entries(first: usize, jobs: usize) -> Vec<Entry> {
    let origin = DateTime::<Utc>::from_timestamp_millis(1_700_000_000_000).expect("a time");
    (first..first + jobs)
        .map(|number| Entry {
            job_id: JobId(id(number)),
            shape: shape(number % SHAPES),
            priority: 5,
            submitted_at: origin + TimeDelta::milliseconds(i64::try_from(number).expect("a small number")),
        })
        .collect()
}

/// The claim of a scheduling round and its return, with so many jobs waiting in 500 shapes.
#[divan::bench(args = [1_000, 100_000], max_time = 5)]
fn claim_and_put_back_200(bencher: Bencher, waiting: usize) {
    let scripts = Scripts::start(waiting);
    bencher.counter(ItemsCount::new(CLAIM)).bench_local(|| {
        RUNTIME.block_on(async {
            let claims = scripts.queue.claim(EPOCH, CLAIM, &scripts.groups, &scripts.offers).await;
            let jobs: Vec<JobId> = claims.expect("a claim").iter().map(|claim| claim.job_id).collect();
            assert_eq!(scripts.queue.put_back(EPOCH, &jobs).await.expect("a return"), CLAIM);
        });
    });
}

/// A batch of submissions put into the queue and taken out again.
#[divan::bench(max_time = 5)]
fn enqueue_and_remove_500(bencher: Bencher) {
    let scripts = Scripts::start(1_000);
    let entries = entries(1_000_000, 500);
    let named: Vec<(JobId, Shape)> =
        entries.iter().map(|entry| (entry.job_id, entry.shape.clone())).collect();
    bencher.counter(ItemsCount::new(entries.len())).bench_local(|| {
        RUNTIME.block_on(async {
            assert_eq!(scripts.queue.enqueue(EPOCH, &entries).await.expect("jobs are queued"), entries.len());
            assert_eq!(scripts.queue.remove(EPOCH, &named).await.expect("jobs are removed"), entries.len());
        });
    });
}

/// From the first push until the last batch of so many items has been handed over.
#[divan::bench(args = [1, 64, 8_000])]
fn batcher(bencher: Bencher, items: usize) {
    let (stage, done) =
        (Stage::default(), std::sync::Arc::new((AtomicUsize::new(0), tokio::sync::Notify::new())));
    let sizes = Histogram::with_opts(HistogramOpts::new("sizes", "sizes")).expect("a histogram");
    let shared = std::sync::Arc::clone(&done);
    let batcher = RUNTIME.block_on(async {
        Batcher::start(&stage, Limits::default(), &[0, 1], &sizes, move |_, batch: Vec<usize>| {
            let shared = std::sync::Arc::clone(&shared);
            async move {
                shared.0.fetch_add(batch.len(), Ordering::AcqRel);
                shared.1.notify_one();
            }
        })
    });
    bencher.counter(ItemsCount::new(items)).bench_local(|| {
        RUNTIME.block_on(async {
            done.0.store(0, Ordering::Release);
            for item in 0..items {
                batcher.push(item, 200).expect("there is room");
            }
            while done.0.load(Ordering::Acquire) < items {
                done.1.notified().await;
            }
        });
    });
    stage.stop.cancel();
    stage.tasks.close();
    RUNTIME.block_on(stage.tasks.wait());
}
