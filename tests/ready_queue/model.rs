//! Random steps on the queue and on a model of it, compared after each.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use cortex::domain::ids::JobId;
use cortex::ready_queue::{Entry, Offer, ReadyQueue, Score};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::{E1, Redis, checked_total, entry, id, jobs, offer, shape, slots};

#[derive(Debug, Clone)]
enum Step {
    Enqueue(Vec<u32>),
    Claim { max: usize, free: [u32; 2], preferences: [Vec<u16>; 4] },
    Confirm(Vec<u32>),
    PutBack(Vec<u32>),
    Remove(Vec<u32>),
    Recount,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let some_jobs = || prop::collection::vec(0u32..48, 0..24);
    let groups = || prop::sample::select(vec![vec![], vec![0], vec![1], vec![0, 1], vec![1, 0]]);
    let claim = (0usize..20, [0u32..6, 0..6], [groups(), groups(), groups(), groups()])
        .prop_map(|(max, free, preferences)| Step::Claim { max, free, preferences });
    let step = prop_oneof![
        3 => some_jobs().prop_map(Step::Enqueue),
        4 => claim,
        1 => some_jobs().prop_map(Step::Confirm),
        1 => some_jobs().prop_map(Step::PutBack),
        1 => some_jobs().prop_map(Step::Remove),
        1 => Just(Step::Recount),
    ];
    prop::collection::vec(step, 1..30)
}

/// What the queue should hold: jobs with their score and number of shape.
#[derive(Default)]
struct Model {
    waiting: BTreeMap<(Score, JobId), u32>,
    claimed: BTreeMap<JobId, (Score, u32)>,
}

fn model_entry(n: u32) -> Entry {
    entry(n, n % 4, 1 + (n * 7 % 10) as u8, n / 6)
}

fn key(n: u32) -> (Score, JobId) {
    let entry = model_entry(n);
    (Score::pack(entry.priority, entry.submitted_at), entry.job_id)
}

impl Model {
    fn claim(&mut self, max: usize, mut free: [u32; 2], preferences: &[Vec<u16>; 4]) -> Vec<(JobId, u16)> {
        let mut taken = Vec::new();
        for ((score, id), shape) in self.waiting.clone() {
            let fitting = preferences[shape as usize].iter().find(|group| free[usize::from(**group)] > 0);
            if let Some(group) = fitting.filter(|_| taken.len() < max) {
                free[usize::from(*group)] -= 1;
                self.waiting.remove(&(score, id));
                self.claimed.insert(id, (score, shape));
                taken.push((id, *group));
            }
        }
        taken
    }

    async fn apply(&mut self, queue: &ReadyQueue, step: &Step) {
        match step {
            Step::Enqueue(numbers) => {
                let entries: Vec<Entry> = numbers.iter().map(|n| model_entry(*n)).collect();
                let mut added = 0;
                for n in numbers {
                    self.claimed.remove(&id(*n));
                    added += usize::from(self.waiting.insert(key(*n), n % 4).is_none());
                }
                assert_eq!(queue.enqueue(E1, &entries).await.unwrap(), added);
            }
            Step::Claim { max, free, preferences } => {
                let offers: Vec<Offer> = (0..4).map(|n| offer(n, &preferences[n])).collect();
                let claims = queue.claim(E1, *max, &slots(free), &offers).await.unwrap();
                let taken: Vec<_> = claims.iter().map(|claim| (claim.job_id, claim.group)).collect();
                assert_eq!(taken, self.claim(*max, *free, preferences));
            }
            Step::Confirm(numbers) => {
                let known = numbers.iter().filter(|n| self.claimed.remove(&id(**n)).is_some()).count();
                assert_eq!(queue.confirm(E1, &jobs(numbers.clone())).await.unwrap(), known);
            }
            Step::PutBack(numbers) => {
                let mut known = 0;
                for n in numbers {
                    if let Some((score, shape)) = self.claimed.remove(&id(*n)) {
                        self.waiting.insert((score, id(*n)), shape);
                        known += 1;
                    }
                }
                assert_eq!(queue.put_back(E1, &jobs(numbers.clone())).await.unwrap(), known);
            }
            Step::Remove(numbers) => {
                let named: Vec<_> = numbers.iter().map(|n| (id(*n), shape(n % 4))).collect();
                let mut known = 0;
                for n in numbers {
                    known += usize::from(self.claimed.remove(&id(*n)).is_some());
                    known += usize::from(self.waiting.remove(&key(*n)).is_some());
                }
                assert_eq!(queue.remove(E1, &named).await.unwrap(), known);
            }
            Step::Recount => {
                let total = self.waiting.len() + self.claimed.len();
                assert_eq!(queue.recount(E1).await.unwrap(), total as u64);
            }
        }
    }

    async fn compare(&self, queue: &ReadyQueue) {
        let order: Vec<JobId> = self.waiting.keys().map(|(_, id)| *id).collect();
        assert_eq!(queue.peek(1000, None).await.unwrap(), order);
        assert_eq!(queue.all_claims().await.unwrap(), self.claimed.keys().copied().collect::<Vec<_>>());
        let mut depth = [0; 10];
        for score in self.waiting.keys().map(|key| key.0).chain(self.claimed.values().map(|claim| claim.0)) {
            depth[usize::from(score.priority()) - 1] += 1;
        }
        assert_eq!(queue.depth().await.unwrap(), depth);
        checked_total(queue).await;
    }
}

#[test]
fn the_queue_does_what_its_model_does() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let redis = runtime.block_on(Redis::start());
    let cases = AtomicU32::new(0);
    let config = Config { cases: 96, failure_persistence: None, ..Config::default() };
    let outcome = TestRunner::new(config).run(&steps(), |steps| {
        runtime.block_on(async {
            let queue = redis.queue(&format!("model{}", cases.fetch_add(1, Ordering::Relaxed)));
            let mut model = Model::default();
            for step in &steps {
                model.apply(&queue, step).await;
                model.compare(&queue).await;
            }
        });
        Ok(())
    });
    outcome.unwrap();
}
