use uuid::Uuid;

use super::*;

fn id(n: u128) -> WorkerId {
    WorkerId(Uuid::from_u128(n))
}

fn capabilities(gpu: bool, models: Option<&[&str]>) -> Capabilities {
    let models = models.map(|models| models.iter().map(|&model| model.to_owned()).collect());
    Capabilities { models, gpu, memory_mib: None }
}

fn shape(model: &str, gpu: bool) -> Shape {
    Shape { model_name: model.into(), requires_gpu: gpu, required_memory_mib: 0 }
}

/// Puts workers in one by one and takes slots as the leader does.
#[derive(Default)]
struct Bench {
    pool: Pool,
    workers: BTreeMap<WorkerId, Worker>,
}

struct Worker {
    capabilities: Capabilities,
    free: u32,
    waits: bool,
    near: bool,
    loaded_models: BTreeSet<String>,
}

impl Bench {
    fn put(&mut self, worker: WorkerId, capabilities: &Capabilities, free: u32, loaded: &[&str]) {
        let capabilities = capabilities.clone();
        let loaded_models = loaded.iter().map(|&model| model.to_owned()).collect();
        self.workers.insert(worker, Worker { capabilities, free, waits: false, near: false, loaded_models });
        self.change(worker, |_| {});
    }

    fn change(&mut self, worker: WorkerId, change: impl FnOnce(&mut Worker)) {
        let known = self.workers.get_mut(&worker).unwrap();
        change(known);
        let Worker { capabilities, free, waits, near, loaded_models } = &*known;
        let (free, waits, near) = (*free, *waits, *near);
        self.pool.put(&Candidate { worker, capabilities, free, waits, near, loaded_models });
    }

    fn take(&mut self, shape: &Shape) -> Option<WorkerId> {
        let group = *self.pool.able(shape).first()?;
        let worker = self.pool.best_but(group, &shape.model_name, &[])?;
        self.change(worker, |worker| worker.free -= 1);
        Some(worker)
    }

    fn take_all(&mut self, shape: &Shape) -> Vec<u128> {
        std::iter::from_fn(|| self.take(shape)).map(|worker| worker.0.as_u128()).collect()
    }
}

#[test]
fn who_waits_for_a_job_comes_before_who_has_more_free_slots() {
    let plain = capabilities(false, None);
    let mut bench = Bench::default();
    bench.put(id(2), &plain, 2, &[]);
    bench.put(id(1), &plain, 1, &[]);
    bench.change(id(1), |worker| worker.waits = true);
    assert_eq!(bench.take_all(&shape("a", false)), [1, 2, 2]);
}

#[test]
fn prefers_the_worker_that_can_do_least() {
    let (plain, gpu, particular) =
        (capabilities(false, None), capabilities(true, None), capabilities(false, Some(&["a"])));
    let mut bench = Bench::default();
    for (n, capabilities) in [(1, &gpu), (2, &plain), (3, &particular)] {
        bench.put(id(n), capabilities, 1, &[]);
    }
    assert_eq!(bench.pool.able(&shape("a", true)).len(), 1);
    assert_eq!(bench.take_all(&shape("a", false)), [3, 2, 1]);
    assert_eq!(bench.take(&shape("a", true)), None, "no slot is left");
}

#[test]
fn spreads_jobs_by_free_slots_and_never_beyond_them() {
    let plain = capabilities(false, None);
    let mut bench = Bench::default();
    for (n, free) in [(1, 1), (2, 3), (3, 0)] {
        bench.put(id(n), &plain, free, &[]);
    }
    assert_eq!(bench.pool.free_slots(), 4);
    assert_eq!(bench.take_all(&shape("a", false)), [2, 2, 1, 2]);
    assert_eq!((bench.pool.free_slots(), bench.pool.groups().count()), (0, 0));
}

#[test]
fn a_worker_with_many_free_slots_takes_several_jobs_in_a_row() {
    let plain = capabilities(false, None);
    let mut bench = Bench::default();
    for n in [1, 2] {
        bench.put(id(n), &plain, 18, &[]);
    }
    let taken = bench.take_all(&shape("a", false));
    let mut runs: Vec<(u128, usize)> = Vec::new();
    for worker in taken {
        match runs.last_mut() {
            Some((last, times)) if *last == worker => *times += 1,
            _ => runs.push((worker, 1)),
        }
    }
    // From 18 down to 15, to 13, 11, 9, 7, and from there one by one.
    assert_eq!(runs[..10], [(1, 3), (2, 3), (1, 2), (2, 2), (1, 2), (2, 2), (1, 2), (2, 2), (1, 2), (2, 2)]);
    assert_eq!(runs[10..], [1, 2].map(|n| (n, 1)).repeat(7));
    assert_eq!(bench.pool.free_slots(), 0);
}

#[test]
fn of_equals_the_one_that_is_connected_to_this_replica_comes_first() {
    let plain = capabilities(false, None);
    let mut bench = Bench::default();
    for n in [1, 2] {
        bench.put(id(n), &plain, 2, &[]);
    }
    bench.change(id(2), |worker| worker.near = true);
    assert_eq!(bench.take_all(&shape("a", false)), [2, 1, 2, 1], "but not before one with more free slots");
}

#[test]
fn numbers_are_compared_by_their_leading_digits() {
    for (number, expected) in
        [(0, 0), (1, 1), (7, 7), (8, 8), (9, 8), (10, 10), (79, 64), (80, 80), (100, 96)]
    {
        assert_eq!(coarse(number), expected, "{number}");
    }
    assert_eq!(coarse(u32::MAX), 7 << 29);
}

#[test]
fn prefers_the_worker_that_has_the_model_loaded_even_in_a_broader_group() {
    let (plain, particular) = (capabilities(false, None), capabilities(false, Some(&["a", "b"])));
    let mut bench = Bench::default();
    bench.put(id(1), &particular, 9, &["b"]);
    bench.put(id(2), &plain, 1, &["a"]);
    bench.put(id(3), &plain, 9, &[]);
    assert_eq!(bench.take(&shape("a", false)), Some(id(2)));
    assert_eq!(bench.take(&shape("a", false)), Some(id(1)), "then the most particular group");
    assert_eq!(bench.take(&shape("b", false)), Some(id(1)));
}

#[test]
fn a_worker_that_is_not_wanted_is_passed_over_even_if_it_has_the_model() {
    let plain = capabilities(false, None);
    let mut bench = Bench::default();
    bench.put(id(1), &plain, 5, &["a"]);
    bench.put(id(2), &plain, 1, &[]);
    let group = bench.pool.able(&shape("a", false))[0];
    let best_but = |but: &[WorkerId]| bench.pool.best_but(group, "a", but);
    assert_eq!(
        (best_but(&[]), best_but(&[id(1)]), best_but(&[id(1), id(2)])),
        (Some(id(1)), Some(id(2)), None)
    );
}

#[test]
fn what_changes_of_a_worker_counts_at_once() {
    let (plain, gpu) = (capabilities(false, None), capabilities(true, None));
    let mut bench = Bench::default();
    bench.put(id(1), &plain, 1, &["a"]);
    assert!(bench.pool.able(&shape("a", true)).is_empty());
    bench.put(id(1), &gpu, 2, &["b"]);
    let group = bench.pool.able(&shape("a", true))[0];
    assert_eq!((bench.pool.with_model(group, "a"), bench.pool.with_model(group, "b")), (None, Some(id(1))));
    assert!(bench.pool.runs(group, &shape("a", true)));
    bench.pool.remove(id(1));
    assert!(bench.pool.able(&shape("a", false)).is_empty());
    assert_eq!(bench.pool.free_slots(), 0);
    assert!(bench.pool.by_capabilities.is_empty() && bench.pool.groups.is_empty());
}
