//! The ready queue against a real Redis, which each test starts for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use cortex::domain::ids::{Epoch, JobId};
use cortex::domain::matching::Shape;
use cortex::ready_queue::{Claim, Entry, Group, MAX_CLAIM, Offer, QueueError, ReadyQueue, Score};
use uuid::Uuid;

#[path = "ready_queue/model.rs"]
mod model;
#[path = "ready_queue/spoilt.rs"]
mod spoilt;

const E1: Epoch = Epoch(1);

/// A private Redis on a unix socket, ended with the test.
struct Redis {
    child: Option<Child>,
    dir: PathBuf,
}

impl Redis {
    fn absent() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("cortex-queue-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        Self { child: None, dir }
    }

    async fn start() -> Self {
        let mut redis = Self::absent();
        redis.resume().await;
        redis
    }

    async fn resume(&mut self) {
        let mut command = Command::new("redis-server");
        command.args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"]);
        let child = command.arg(self.dir.join("s")).stdout(Stdio::null()).spawn();
        self.child = Some(child.expect("redis-server is installed"));
        let queue = self.queue("wait");
        let mut tries = 0;
        while let Err(error) = queue.ping().await {
            tries += 1;
            assert!(tries < 400, "Redis does not start: {error:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_file(self.dir.join("s"));
    }

    fn url(&self) -> String {
        format!("redis+unix://{}", self.dir.join("s").display())
    }

    fn queue(&self, prefix: &str) -> ReadyQueue {
        ReadyQueue::connect(&self.url(), prefix).unwrap()
    }

    /// A command beside the queue; words are separated by blanks, `~` is a blank within a word.
    async fn raw<T: redis::FromRedisValue>(&self, words: &str) -> T {
        let client = redis::Client::open(self.url()).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.unwrap();
        let mut command = redis::Cmd::new();
        for word in words.split(' ') {
            command.arg(word.replace('~', " "));
        }
        command.query_async(&mut connection).await.unwrap()
    }

    /// Every key with its content.
    async fn contents(&self) -> BTreeMap<String, Vec<u8>> {
        let keys: Vec<String> = self.raw("KEYS *").await;
        let mut contents = BTreeMap::new();
        for key in keys {
            contents.insert(key.clone(), self.raw(&format!("DUMP {key}")).await);
        }
        contents
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn shape(model: impl ToString) -> Shape {
    Shape { model_name: model.to_string(), requires_gpu: false, required_memory_mib: 0 }
}

fn id(n: u32) -> JobId {
    JobId(Uuid::from_u128(u128::from(n)))
}

fn at(ms: u32) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(1_790_000_000_000 + i64::from(ms)).unwrap()
}

fn entry(n: u32, model: impl ToString, priority: u8, ms: u32) -> Entry {
    Entry { job_id: id(n), shape: shape(model), priority, submitted_at: at(ms) }
}

fn offer(model: impl ToString, groups: &[u16]) -> Offer {
    Offer { shape: shape(model), groups: groups.to_vec() }
}

fn slots(free: &[u32]) -> Vec<Group> {
    free.iter().map(|&free_slots| Group { free_slots }).collect()
}

fn ids(claims: &[Claim]) -> Vec<JobId> {
    claims.iter().map(|claim| claim.job_id).collect()
}

fn jobs(numbers: impl IntoIterator<Item = u32>) -> Vec<JobId> {
    numbers.into_iter().map(id).collect()
}

/// Claims with one group that can run all the models and has more slots than needed.
async fn claim_any(queue: &ReadyQueue, max: usize, models: &[&str]) -> Vec<Claim> {
    let offers: Vec<Offer> = models.iter().map(|model| offer(model, &[0])).collect();
    queue.claim(E1, max, &slots(&[10_000]), &offers).await.unwrap()
}

/// Depth and real sizes agree; answers the total.
async fn checked_total(queue: &ReadyQueue) -> u64 {
    let total = queue.total().await.unwrap();
    assert_eq!(queue.depth().await.unwrap().iter().sum::<u64>(), total, "depth and total");
    total
}

#[tokio::test]
async fn jobs_come_by_priority_then_time_then_id_across_shapes() {
    let redis = Redis::start().await;
    let queue = redis.queue("order");
    let entries = [
        entry(1, "a", 1, 0),
        entry(2, "b", 10, 9),
        entry(3, "a", 10, 8),
        entry(5, "c", 5, 5),
        entry(4, "b", 5, 5),
        entry(6, "a", 5, 5),
        entry(7, "c", 10, 7),
    ];
    assert_eq!(queue.enqueue(E1, &entries).await.unwrap(), 7);
    assert_eq!(queue.peek(100, None).await.unwrap(), jobs([7, 3, 2, 4, 5, 6, 1]));
    assert_eq!(queue.peek(2, Some(5)).await.unwrap(), jobs([4, 5]));
    assert_eq!(queue.peek(9, Some(1)).await.unwrap(), jobs([1]));
    assert_eq!(queue.peek(9, Some(10)).await.unwrap(), jobs([7, 3, 2]));
    assert_eq!(queue.depth().await.unwrap(), [1, 0, 0, 0, 3, 0, 0, 0, 0, 3]);
    let first = claim_any(&queue, 2, &["a", "b", "c"]).await;
    let expected = Claim { job_id: id(7), offer: 2, group: 0, priority: 10, submitted_at: at(7) };
    assert_eq!(first[0], expected);
    assert_eq!(ids(&first), jobs([7, 3]));
    // A claim leaves each shape registered under its best job, so that the next one finds it in order.
    let best: Vec<String> = redis.raw("ZRANGE order:{order}:shape:0:0:a 0 0 WITHSCORES").await;
    assert_eq!(redis.raw::<String>("ZSCORE order:{order}:shapes 0:0:a").await, best[1]);
    assert_eq!(ids(&claim_any(&queue, 100, &["a", "b", "c"]).await), jobs([2, 4, 5, 6, 1]));
    assert_eq!(checked_total(&queue).await, 7, "claimed jobs count until they are settled");
}

#[tokio::test]
async fn a_shape_that_nobody_can_take_holds_up_no_other() {
    let redis = Redis::start().await;
    let queue = redis.queue("blocking");
    let mut entries: Vec<Entry> = (0..300).map(|n| entry(n, "stuck", 10, n)).collect();
    entries.extend((300..310).map(|n| entry(n, "full", 9, n)));
    entries.extend((310..320).map(|n| entry(n, "free", 1, n)));
    queue.enqueue(E1, &entries).await.unwrap();
    let offers = [offer("stuck", &[1, 9]), offer("full", &[0]), offer("free", &[1, 2])];
    let claims = queue.claim(E1, 100, &slots(&[3, 0, 5]), &offers).await.unwrap();
    assert_eq!(ids(&claims), jobs((300..303).chain(310..315)));
    assert_eq!(queue.shapes().await.unwrap().iter().map(|(_, count)| count).sum::<u64>(), 312);
}

#[tokio::test]
async fn slots_are_filled_in_order_of_preference_and_never_exceeded() {
    let redis = Redis::start().await;
    let queue = redis.queue("slots");
    let entries: Vec<Entry> = (0..40).map(|n| entry(n, ["a", "b"][n as usize % 2], 5, n)).collect();
    queue.enqueue(E1, &entries).await.unwrap();
    let mut free = vec![0; 300];
    (free[2], free[7], free[299]) = (3, 4, 5);
    let offers = [offer("a", &[299, 2]), offer("b", &[7, 0, 299])];
    let claims = queue.claim(E1, 100, &slots(&free), &offers).await.unwrap();
    let groups: Vec<u16> = claims.iter().map(|claim| claim.group).collect();
    assert_eq!(groups, [299, 7, 299, 7, 299, 7, 299, 7, 299, 2, 2, 2]);
    // From job 9 on, b has no slot left in 7 and 299: only a goes on.
    assert_eq!(ids(&claims), jobs((0..9).chain([10, 12, 14])));
    assert_eq!(checked_total(&queue).await, 40);
}

#[tokio::test]
async fn a_job_that_is_queued_twice_counts_once() {
    let redis = Redis::start().await;
    let queue = redis.queue("twice");
    let entries: Vec<Entry> = (0..2500).map(|n| entry(n, n % 3, 4, n)).collect();
    assert_eq!(queue.enqueue(E1, &entries).await.unwrap(), 2500);
    assert_eq!(queue.enqueue(E1, &entries).await.unwrap(), 0);
    assert_eq!(queue.enqueue(E1, &[entry(0, 0, 4, 0), entry(9000, 0, 4, 0)]).await.unwrap(), 1);
    // Also with another priority it keeps its place.
    assert_eq!(queue.enqueue(E1, &[entry(0, 0, 9, 0), entry(3, 0, 1, 0)]).await.unwrap(), 0);
    assert_eq!(queue.depth().await.unwrap(), [0, 0, 0, 2501, 0, 0, 0, 0, 0, 0]);
    // A claimed job that is queued again waits once and is claimed no more.
    assert_eq!(ids(&claim_any(&queue, 1, &["0"]).await), jobs([0]));
    assert_eq!(queue.enqueue(E1, &[entry(0, 0, 4, 0), entry(0, 0, 4, 0)]).await.unwrap(), 1);
    assert_eq!(queue.all_claims().await.unwrap(), []);
    assert_eq!(checked_total(&queue).await, 2501);
}

#[tokio::test]
async fn claims_of_a_dead_leader_are_found_and_return_to_their_place() {
    let redis = Redis::start().await;
    let queue = redis.queue("crash");
    let entries: Vec<Entry> = (0..20).map(|n| entry(n, n % 2, 1 + (n % 10) as u8, n)).collect();
    queue.enqueue(E1, &entries).await.unwrap();
    let order = queue.peek(100, None).await.unwrap();
    let lost = ids(&claim_any(&queue, 20, &["0", "1"]).await);
    assert_eq!(lost, order);
    assert_eq!(queue.claims_older_than(Duration::from_secs(60)).await.unwrap(), []);
    let found = queue.claims_older_than(Duration::ZERO).await.unwrap();
    assert_eq!(BTreeSet::from_iter(found.clone()), BTreeSet::from_iter(order.clone()));
    let leader = Epoch(2);
    assert_eq!(queue.put_back(leader, &found).await.unwrap(), 20);
    assert_eq!(queue.put_back(leader, &found).await.unwrap(), 0);
    assert_eq!(queue.peek(100, None).await.unwrap(), order);
    assert_eq!(queue.all_claims().await.unwrap(), []);
    assert_eq!(checked_total(&queue).await, 20);
}

#[tokio::test]
async fn settled_and_removed_jobs_leave_nothing_behind() {
    let redis = Redis::start().await;
    let queue = redis.queue("gone");
    let entries: Vec<Entry> = (0..2000).map(|n| entry(n, n, 3, n)).collect();
    queue.enqueue(E1, &entries).await.unwrap();
    let offers: Vec<Offer> = (0..500).map(|n| offer(n, &[0])).collect();
    let claims = ids(&queue.claim(E1, 1000, &slots(&[1000]), &offers).await.unwrap());
    assert_eq!(claims, jobs(0..500));
    assert_eq!(queue.confirm(E1, &claims[..400]).await.unwrap(), 400);
    assert_eq!(queue.confirm(E1, &claims[..400]).await.unwrap(), 0);
    assert_eq!(checked_total(&queue).await, 1600);
    let rest: Vec<(JobId, Shape)> = (400..2000).map(|n| (id(n), shape(n))).collect();
    assert_eq!(queue.remove(E1, &rest).await.unwrap(), 1600);
    assert_eq!(queue.remove(E1, &rest).await.unwrap(), 0);
    assert_eq!(checked_total(&queue).await, 0);
    let keys: BTreeSet<String> = redis.raw("KEYS *").await;
    let left = ["depth", "epoch"].map(|name| format!("gone:{{gone}}:{name}"));
    assert_eq!(keys, BTreeSet::from(left), "empty shapes leave the registry");
}

#[tokio::test]
async fn an_older_epoch_is_refused_everywhere_and_changes_nothing() {
    let redis = Redis::start().await;
    let queue = redis.queue("fence");
    let (old, new) = (Epoch(7), Epoch(9_007_199_254));
    queue.enqueue(old, &[entry(1, "a", 5, 1), entry(2, "a", 5, 2)]).await.unwrap();
    queue.claim(old, 1, &slots(&[1]), &[offer("a", &[0])]).await.unwrap();
    queue.begin_rebuild(old, "g").await.unwrap();
    queue.mark_whole(old, "g").await.unwrap();
    // The new leader's first call, although it only reads, shuts the old one out.
    assert_eq!(queue.generation(new).await.unwrap().as_deref(), Some("g"));
    let before = redis.contents().await;
    let refused = [
        queue.enqueue(old, &[entry(3, "b", 5, 3)]).await.err(),
        queue.claim(old, 5, &slots(&[5]), &[offer("a", &[0])]).await.err(),
        queue.confirm(old, &[id(1)]).await.err(),
        queue.put_back(old, &[id(1)]).await.err(),
        queue.remove(old, &[(id(2), shape("a"))]).await.err(),
        queue.generation(old).await.err(),
        queue.begin_rebuild(old, "h").await.err(),
        queue.mark_whole(old, "h").await.err(),
        queue.recount(old).await.err(),
    ];
    for (n, error) in refused.iter().enumerate() {
        assert!(matches!(error, Some(QueueError::Fenced { stored }) if *stored == new.0), "{n}: {error:?}");
    }
    assert_eq!(redis.contents().await, before);
    queue.confirm(new, &[id(1)]).await.unwrap();
    queue.confirm(Epoch(new.0 + 1), &[]).await.unwrap();
    queue.put_back(Epoch(new.0 + 1), &[id(1)]).await.unwrap();
    assert!(queue.put_back(new, &[id(1)]).await.is_err());
}

#[tokio::test]
async fn a_flush_is_noticed_and_a_rebuild_makes_the_queue_whole() {
    let redis = Redis::start().await;
    let queue = redis.queue("flush");
    let entries: Vec<Entry> = (0..100).map(|n| entry(n, n % 4, 1 + (n % 10) as u8, n)).collect();
    assert_eq!(queue.generation(E1).await.unwrap(), None);
    queue.enqueue(E1, &entries).await.unwrap();
    queue.begin_rebuild(E1, "one").await.unwrap();
    assert_eq!(queue.mark_whole(E1, "one").await.unwrap(), Some(100));
    assert_eq!(queue.generation(E1).await.unwrap().as_deref(), Some("one"));
    let order = queue.peek(100, None).await.unwrap();
    let () = redis.raw("FLUSHALL").await;
    assert_eq!(queue.generation(E1).await.unwrap(), None);
    queue.begin_rebuild(E1, "two").await.unwrap();
    queue.enqueue(E1, &entries[..50]).await.unwrap();
    assert_eq!(queue.generation(E1).await.unwrap(), None, "half a rebuild is none");
    queue.enqueue(E1, &entries).await.unwrap();
    assert_eq!(queue.mark_whole(E1, "two").await.unwrap(), Some(100));
    assert_eq!(queue.generation(E1).await.unwrap().as_deref(), Some("two"));
    assert_eq!(queue.peek(100, None).await.unwrap(), order);
    assert_eq!(checked_total(&queue).await, 100);
    queue.begin_rebuild(E1, "three").await.unwrap();
    queue.enqueue(E1, &entries).await.unwrap();
    let () = redis.raw("FLUSHALL").await;
    assert_eq!(queue.mark_whole(E1, "three").await.unwrap(), None, "what was put in is gone");
    assert_eq!(queue.generation(E1).await.unwrap(), None);
    assert!(matches!(queue.mark_whole(E1, "").await, Err(QueueError::Config(_))));
}

#[tokio::test]
async fn a_recount_sets_the_depth_right_after_an_eviction() {
    let redis = Redis::start().await;
    let queue = redis.queue("evict");
    let entries: Vec<Entry> = (0..100).map(|n| entry(n, n % 3, 1 + (n % 10) as u8, n)).collect();
    queue.enqueue(E1, &entries).await.unwrap();
    claim_any(&queue, 10, &["1"]).await;
    let depth = queue.depth().await.unwrap();
    for key in ["depth", "shape:0:0:0", "claims"] {
        let _: u8 = redis.raw(&format!("DEL evict:{{evict}}:{key}")).await;
        queue.recount(E1).await.unwrap();
        checked_total(&queue).await;
        if key == "depth" {
            assert_eq!(queue.depth().await.unwrap(), depth);
        }
    }
    assert_eq!(queue.shapes().await.unwrap().len(), 2);
    queue.enqueue(E1, &entries).await.unwrap();
    assert_eq!(queue.depth().await.unwrap(), depth);
}

#[tokio::test]
async fn scripts_that_redis_forgot_are_sent_again() {
    let redis = Redis::start().await;
    let queue = redis.queue("noscript");
    let () = redis.raw("CONFIG RESETSTAT").await;
    for n in 0..3 {
        let () = redis.raw("SCRIPT FLUSH").await;
        assert_eq!(queue.enqueue(E1, &[entry(n, "a", 5, n)]).await.unwrap(), 1);
        let () = redis.raw("SCRIPT FLUSH").await;
        assert_eq!(ids(&claim_any(&queue, 9, &["a"]).await), jobs([n]));
    }
    let errors: String = redis.raw("INFO errorstats").await;
    assert!(errors.contains("errorstat_NOSCRIPT:count=6"), "they were missing: {errors}");
}

#[tokio::test]
async fn ten_thousand_jobs_come_in_exact_order() {
    let redis = Redis::start().await;
    let queue = redis.queue("many");
    // A fixed scramble: 7919 is prime to 10,000.
    let entries: Vec<Entry> = (0..10_000u32)
        .map(|n| n * 7919 % 10_000)
        .map(|n| entry(n, n % 7, 1 + (n % 10) as u8, n / 50 % 100))
        .collect();
    assert_eq!(queue.enqueue(E1, &entries).await.unwrap(), 10_000);
    let mut expected: Vec<(Score, JobId)> =
        entries.iter().map(|e| (Score::pack(e.priority, e.submitted_at), e.job_id)).collect();
    expected.sort();
    let mut taken = Vec::new();
    for _ in 0..100 {
        let claims = ids(&claim_any(&queue, 100, &["0", "1", "2", "3", "4", "5", "6"]).await);
        assert_eq!(queue.confirm(E1, &claims).await.unwrap(), 100);
        taken.extend(claims);
    }
    assert_eq!(taken, expected.into_iter().map(|(_, id)| id).collect::<Vec<_>>());
    assert_eq!(checked_total(&queue).await, 0);
}

#[tokio::test]
async fn five_hundred_shapes_come_in_exact_order_and_those_not_offered_stay() {
    let redis = Redis::start().await;
    let queue = redis.queue("shapes");
    let entries: Vec<Entry> =
        (0..4000u32).map(|n| entry(n, n % 500, 1 + (n / 7 % 10) as u8, n * 7919 % 900)).collect();
    queue.enqueue(E1, &entries).await.unwrap();
    let offers: Vec<Offer> = (0..500).filter(|n| n % 5 != 0).rev().map(|n| offer(n, &[0])).collect();
    let (mut left, mut expected): (Vec<_>, Vec<_>) = entries
        .iter()
        .map(|e| (Score::pack(e.priority, e.submitted_at), e.job_id, e.shape.model_name.clone()))
        .partition(|(_, _, model)| model.ends_with(['0', '5']));
    expected.sort();
    for batch in expected.chunks(64) {
        let claims = queue.claim(E1, 100, &slots(&[64]), &offers).await.unwrap();
        assert_eq!(ids(&claims), batch.iter().map(|job| job.1).collect::<Vec<_>>());
    }
    left.sort();
    let waiting: Vec<JobId> = left.iter().map(|job| job.1).collect();
    assert_eq!(queue.peek(1000, None).await.unwrap(), waiting);
    assert_eq!(queue.shapes().await.unwrap().len(), 100);
    assert_eq!(checked_total(&queue).await, 4000);
}

#[tokio::test]
async fn waiting_jobs_can_be_paged_and_looked_up() {
    let redis = Redis::start().await;
    let queue = redis.queue("pages");
    let entries: Vec<Entry> = (0..5000).map(|n| entry(n, "a", 5, n)).collect();
    queue.enqueue(E1, &entries).await.unwrap();
    for _ in 0..2 {
        assert_eq!(claim_any(&queue, 5000, &["a"]).await.len(), MAX_CLAIM);
    }
    let (mut seen, mut cursor, mut pages) = (BTreeSet::new(), Some(0), 0);
    while let Some(at) = cursor {
        let (page, next) = queue.members_page(&shape("a"), at).await.unwrap();
        seen.extend(page);
        (cursor, pages) = (next, pages + 1);
    }
    assert_eq!(seen, BTreeSet::from_iter(jobs(2000..5000)));
    assert!(pages > 2, "{pages} pages");
    assert_eq!(queue.claims_older_than(Duration::ZERO).await.unwrap(), jobs(0..2000));
    let asked: Vec<(JobId, Shape)> =
        (4000..6000).chain(0..1).map(|n| (id(n), shape(if n == 4500 { "b" } else { "a" }))).collect();
    let expected: Vec<bool> = asked.iter().map(|(job, _)| *job < id(5000) && *job != id(4500)).collect();
    assert_eq!(queue.contains(&asked).await.unwrap(), expected);
}

#[tokio::test]
async fn a_redis_that_is_away_is_an_error_and_comes_back_by_itself() {
    let mut redis = Redis::absent();
    let queue = redis.queue("away");
    for round in 0..2 {
        let errors = [
            queue.ping().await.err(),
            queue.depth().await.err(),
            queue.total().await.err(),
            queue.peek(1, None).await.err(),
            queue.contains(&[(id(1), shape("a"))]).await.err(),
            queue.claim(E1, 1, &slots(&[1]), &[offer("a", &[0])]).await.err(),
        ];
        for error in errors {
            let error = error.expect("no answer is no zero");
            assert!(matches!(error, QueueError::Unavailable(_)) && error.retryable(), "{error:?}");
        }
        redis.resume().await;
        // The first request after the return is served, and so is one over a connection that broke meanwhile.
        assert_eq!(claim_any(&queue, 1, &["a"]).await, [], "round {round}");
        redis.stop();
        redis.resume().await;
        assert_eq!(queue.enqueue(E1, &[entry(1, "a", 5, 1)]).await.unwrap(), 1);
        redis.stop();
    }
}

#[tokio::test]
async fn a_password_that_is_set_right_later_is_enough() {
    let redis = Redis::start().await;
    let queue = ReadyQueue::connect(&format!("{}?pass=secret", redis.url()), "pass").unwrap();
    let error = queue.ping().await.unwrap_err();
    assert!(error.retryable() && !format!("{error:?} {error}").contains("secret"), "{error:?}");
    let () = redis.raw("CONFIG SET requirepass secret").await;
    queue.ping().await.unwrap();
}

#[tokio::test]
async fn a_redis_that_does_not_answer_is_given_up_in_time() {
    let redis = Redis::start().await;
    let queue = redis.queue("mute");
    queue.ping().await.unwrap();
    let () = redis.raw("CLIENT PAUSE 60000").await;
    let answer = tokio::time::timeout(Duration::from_secs(4), queue.claims_older_than(Duration::ZERO)).await;
    assert!(matches!(answer, Ok(Err(QueueError::Unavailable(_)))), "{answer:?}");
}
