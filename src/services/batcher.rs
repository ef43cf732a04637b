//! Group commit.
//!
//! While one batch commits, the next one gathers; whoever is alone pays one commit, whoever comes with
//! hundreds shares one. Under load a batch may linger for more. Queue and batch are bounded in number and in bytes.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::Histogram;
use tokio::sync::{Mutex, Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::error::ServiceError;

/// Bytes that one permit stands for.
const UNIT: usize = 1024;

/// Fewer items in a batch show that there is no load.
const BUSY: usize = 16;

/// Under load a batch begins once nothing has come for so many turns of the runtime: those whose answers the
/// latest batch has brought come again together, and one whole costs less than two halves.
const TURNS: u32 = 32;

/// Bounds of a batcher.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Most items that wait.
    pub queued: usize,
    /// Most bytes that wait.
    pub queued_bytes: usize,
    /// Most items of one batch.
    pub batch: usize,
    /// A batch takes nothing more once it has so many bytes.
    pub batch_bytes: usize,
    /// A batch begins beside another one only with so many items. Fewer wait for the end of that one: two
    /// halves cost more than one whole.
    pub beside: usize,
    /// How long a batch gathers at the most after one of [`BUSY`] items or more: where nobody waits for the single
    /// answer, rarer and larger batches cost less. Once nothing has come for a fifth of this time, it gathers
    /// no longer.
    pub linger: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queued: 8_192,
            queued_bytes: 64 << 20,
            batch: 500,
            batch_bytes: 4 << 20,
            beside: 48,
            linger: Duration::ZERO,
        }
    }
}

/// Where committers run, and when they stop.
#[derive(Clone, Default)]
pub struct Stage {
    /// Tracks the committers, so that stopping can wait for batches in flight.
    pub tasks: TaskTracker,
    /// Once cancelled, nothing new is taken; what waits is still committed.
    pub stop: CancellationToken,
    tail: TaskTracker,
    tail_stop: CancellationToken,
}

impl Stage {
    /// The stage of those who pass on what the others have committed: it stops when all of them have ended.
    pub fn tail(&self) -> Self {
        Self { tasks: self.tail.clone(), stop: self.tail_stop.clone(), ..Self::default() }
    }

    /// Stops at once, and answers what to wait for until all have ended, the tail last. The tail stops anyway if nobody waits
    /// for so long.
    pub fn end(&self) -> impl Future<Output = ()> + Send + use<> {
        self.stop.cancel();
        self.tasks.close();
        self.tail.close();
        let (tasks, tail, stop) =
            (self.tasks.clone(), self.tail.clone(), self.tail_stop.clone().drop_guard());
        async move {
            tasks.wait().await;
            drop(stop);
            tail.wait().await;
        }
    }
}

/// The entrance to a batch.
pub struct Batcher<T> {
    queue: mpsc::Sender<Item<T>>,
    room: Arc<Semaphore>,
    largest: u32,
}

struct Item<T> {
    value: T,
    room: OwnedSemaphorePermit,
}

/// What the committers of a batcher share.
struct Shared<T> {
    receiver: Mutex<mpsc::Receiver<Item<T>>>,
    /// Batches that are being committed.
    under_way: AtomicUsize,
    /// Items of the latest batch.
    latest: AtomicUsize,
    /// One of them has ended.
    ended: Notify,
}

impl<T: Send + 'static> Batcher<T> {
    /// Starts one committer for each of `slots`; `commit` is handed the slot and a batch. The histogram
    /// gets the size of each batch.
    pub fn start<F, Fut>(stage: &Stage, limits: Limits, slots: &[i16], sizes: &Histogram, commit: F) -> Self
    where
        F: Fn(i16, Vec<T>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = ()> + Send,
    {
        let (queue, receiver) = mpsc::channel(limits.queued);
        let shared = Arc::new(Shared {
            receiver: Mutex::new(receiver),
            under_way: AtomicUsize::new(0),
            latest: AtomicUsize::new(0),
            ended: Notify::new(),
        });
        let largest = u32::try_from(limits.queued_bytes / UNIT).unwrap_or(u32::MAX);
        for &slot in slots {
            let (shared, stop) = (Arc::clone(&shared), stage.stop.clone());
            let (sizes, commit) = (sizes.clone(), commit.clone());
            stage.tasks.spawn(async move {
                while let Some(batch) = shared.gather(&stop, limits).await {
                    #[expect(clippy::cast_precision_loss, reason = "a batch is small")]
                    sizes.observe(batch.len() as f64);
                    commit(slot, batch).await;
                    shared.under_way.fetch_sub(1, Ordering::AcqRel);
                    shared.ended.notify_one();
                }
            });
        }
        Self { queue, room: Arc::new(Semaphore::new(largest as usize)), largest }
    }

    /// Queues an item of about `bytes` bytes. Refuses with `Overloaded` when there is no room and with
    /// `NoLeader` after the stop; in both cases nothing was done.
    pub fn push(&self, value: T, bytes: usize) -> Result<(), ServiceError> {
        let units = u32::try_from(bytes / UNIT + 1).unwrap_or(u32::MAX).min(self.largest);
        let Ok(room) = Arc::clone(&self.room).try_acquire_many_owned(units) else {
            return Err(ServiceError::Overloaded);
        };
        self.queue.try_send(Item { value, room }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ServiceError::Overloaded,
            mpsc::error::TrySendError::Closed(_) => ServiceError::NoLeader,
        })
    }
}

impl<T> Shared<T> {
    /// The next batch, or `None` after the stop when all is drained.
    async fn gather(&self, stop: &CancellationToken, limits: Limits) -> Option<Vec<T>> {
        let mut receiver = self.receiver.lock().await;
        let first = tokio::select! {
            biased;
            item = receiver.recv() => item,
            () = stop.cancelled() => {
                receiver.close();
                receiver.recv().await
            }
        }?;
        let mut busy = self.latest.load(Ordering::Relaxed) >= BUSY && !stop.is_cancelled();
        // Whoever is ready to run may still join; alone, this costs nothing.
        let (mut waiting, mut turns) = (receiver.len(), if busy { TURNS } else { 1 });
        while turns > 0 && waiting < limits.batch {
            tokio::task::yield_now().await;
            turns = if busy && receiver.len() > waiting { TURNS } else { turns - 1 };
            waiting = receiver.len();
        }
        let until = Instant::now() + limits.linger;
        let mut bytes = 0;
        let mut batch = Vec::new();
        let mut next = Some(first);
        loop {
            while let Some(item) = next.take() {
                bytes += item.room.num_permits() * UNIT;
                batch.push(item.value);
                if batch.len() < limits.batch && bytes < limits.batch_bytes {
                    next = receiver.try_recv().ok();
                }
            }
            let full = batch.len() >= limits.batch || bytes >= limits.batch_bytes;
            let beside = batch.len() >= limits.beside || self.under_way.load(Ordering::Acquire) == 0;
            let now = Instant::now();
            let lingers = busy && now < until;
            if full || (beside && !lingers) {
                break;
            }
            tokio::select! {
                item = receiver.recv() => match item {
                    Some(item) => next = Some(item),
                    None => break,
                },
                () = self.ended.notified() => {}
                () = sleep_until(until.min(now + limits.linger / 5)), if lingers => busy = false,
            }
        }
        self.under_way.fetch_add(1, Ordering::AcqRel);
        self.latest.store(batch.len(), Ordering::Relaxed);
        Some(batch)
    }
}

#[cfg(test)]
mod tests {
    use prometheus::HistogramOpts;
    use tokio::sync::mpsc;

    use super::*;

    fn sizes() -> Histogram {
        Histogram::with_opts(HistogramOpts::new("sizes", "sizes")).unwrap()
    }

    #[tokio::test]
    async fn the_tail_takes_what_the_others_commit_last() {
        let (stage, gate) = (Stage::default(), Arc::new(Notify::new()));
        let (told, mut heard) = mpsc::unbounded_channel();
        let tail =
            Batcher::start(&stage.tail(), Limits::default(), &[0], &sizes(), move |_, batch: Vec<u32>| {
                told.send(batch).unwrap();
                async {}
            });
        let wait = Arc::clone(&gate);
        stage.tasks.spawn(async move {
            wait.notified().await;
            tail.push(7, 0).unwrap();
            // A round that a loop begins last.
            tokio::task::yield_now().await;
            tail.push(8, 0).unwrap();
        });
        let ended = tokio::spawn(stage.end());
        tokio::task::yield_now().await;
        gate.notify_one();
        ended.await.unwrap();
        let mut all = Vec::new();
        while let Ok(batch) = heard.try_recv() {
            all.extend(batch);
        }
        assert_eq!(all, [7, 8]);

        // Who waits no longer leaves nobody behind.
        let stage = Stage::default();
        drop(stage.end());
        assert!(stage.tail().stop.is_cancelled());
    }

    #[tokio::test]
    async fn what_arrives_during_a_commit_shares_the_next_one() {
        let (stage, gate) = (Stage::default(), Arc::new(Notify::new()));
        let (seen, mut batches) = mpsc::unbounded_channel();
        let wait = Arc::clone(&gate);
        let batcher = Batcher::start(&stage, Limits::default(), &[0], &sizes(), move |_, batch: Vec<u32>| {
            let (seen, wait) = (seen.clone(), Arc::clone(&wait));
            async move {
                seen.send(batch.len()).unwrap();
                wait.notified().await;
            }
        });
        batcher.push(0, 0).unwrap();
        assert_eq!(batches.recv().await, Some(1));
        for n in 0..600 {
            batcher.push(n, 0).unwrap();
        }
        gate.notify_one();
        assert_eq!(batches.recv().await, Some(500), "a batch is bounded");
        gate.notify_one();
        assert_eq!(batches.recv().await, Some(100));
    }

    #[tokio::test]
    async fn under_load_a_batch_lingers_until_it_is_full() {
        let limits = Limits { batch: 20, linger: Duration::from_secs(3600), ..Limits::default() };
        let (stage, (seen, mut batches)) = (Stage::default(), mpsc::unbounded_channel());
        let batcher = Batcher::start(&stage, limits, &[0], &sizes(), move |_, batch: Vec<u32>| {
            let sent = seen.send(batch.len());
            async move { sent.unwrap() }
        });
        let push = |items: u32| (0..items).for_each(|n| batcher.push(n, 0).unwrap());
        push(15);
        assert_eq!(batches.recv().await, Some(15), "before it there was no load");
        push(16);
        assert_eq!(batches.recv().await, Some(16), "15 are none");
        push(1);
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        push(19);
        assert_eq!(batches.recv().await, Some(20), "16 are a load");
    }

    #[tokio::test]
    async fn under_load_those_who_come_one_after_the_other_share_a_batch() {
        let (stage, (seen, mut batches)) = (Stage::default(), mpsc::unbounded_channel());
        let batcher = Batcher::start(&stage, Limits::default(), &[0], &sizes(), move |_, batch: Vec<u32>| {
            let sent = seen.send(batch.len());
            async move { sent.unwrap() }
        });
        let come = async |items: u32| {
            for n in 0..items {
                batcher.push(n, 0).unwrap();
                for _ in 0..TURNS / 2 {
                    tokio::task::yield_now().await;
                }
            }
        };
        come(2).await;
        assert_eq!([batches.recv().await, batches.recv().await], [Some(1); 2], "alone, nobody waits");
        (0..16).for_each(|n| batcher.push(n, 0).unwrap());
        assert_eq!(batches.recv().await, Some(16));
        come(10).await;
        assert_eq!(batches.recv().await, Some(10));
    }

    #[tokio::test]
    async fn a_batch_that_nothing_joins_lingers_no_longer_than_it_may() {
        let limits = Limits { linger: Duration::from_millis(1), ..Limits::default() };
        let (stage, (seen, mut batches)) = (Stage::default(), mpsc::unbounded_channel());
        let batcher = Batcher::start(&stage, limits, &[0], &sizes(), move |_, batch: Vec<u32>| {
            let sent = seen.send(batch.len());
            async move { sent.unwrap() }
        });
        (0..16).for_each(|n| batcher.push(n, 0).unwrap());
        assert_eq!(batches.recv().await, Some(16));
        batcher.push(16, 0).unwrap();
        assert_eq!(batches.recv().await, Some(1));
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_a_stopped_one_drains_what_it_has() {
        let (stage, gate) = (Stage::default(), Arc::new(Semaphore::new(0)));
        let limits = Limits {
            queued: 2,
            queued_bytes: 8 * UNIT,
            batch: 1,
            batch_bytes: UNIT,
            beside: 1,
            ..Limits::default()
        };
        let (seen, mut done) = mpsc::unbounded_channel();
        let (started, mut starts) = mpsc::unbounded_channel();
        let wait = Arc::clone(&gate);
        let batcher = Batcher::start(&stage, limits, &[0], &sizes(), move |_, batch: Vec<u32>| {
            let (seen, started, wait) = (seen.clone(), started.clone(), Arc::clone(&wait));
            async move {
                started.send(()).unwrap();
                wait.acquire().await.unwrap().forget();
                seen.send(batch[0]).unwrap();
            }
        });
        batcher.push(1, 0).unwrap();
        starts.recv().await.unwrap();
        batcher.push(2, 0).unwrap();
        assert_eq!(batcher.push(9, 9 * UNIT), Err(ServiceError::Overloaded), "no room for the bytes");
        batcher.push(3, 0).unwrap();
        assert_eq!(batcher.push(4, 0), Err(ServiceError::Overloaded), "no room for the item");
        stage.stop.cancel();
        stage.tasks.close();
        gate.add_permits(3);
        stage.tasks.wait().await;
        let drained: Vec<_> = std::iter::from_fn(|| done.try_recv().ok()).collect();
        assert_eq!(drained, [1, 2, 3]);
        assert_eq!(batcher.push(5, 0), Err(ServiceError::NoLeader));
    }
}
