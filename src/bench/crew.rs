//! Workers in this process whose jobs do nothing but note when they start.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cortex_client::{AssignedJob, CancellationToken, Handler, Identity, JobFailure, Worker, WorkerError};
use hdrhistogram::Histogram;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::load::submitted_at;
use super::report::times;
use super::{BenchError, Clock, Options};

/// What the workers of a run have seen.
pub(super) struct Tally {
    clock: Clock,
    /// When the first job started, in microseconds; 0 before.
    first: AtomicU64,
    handled: AtomicU64,
    /// Tells now and then how many were handled.
    progress: watch::Sender<u64>,
    /// From the start of each submission to the start of its job, one for each worker.
    times: Vec<Mutex<Histogram<u64>>>,
}

/// The workers of a run.
pub(super) struct Crew {
    pub tally: Arc<Tally>,
    shutdown: CancellationToken,
    workers: Vec<JoinHandle<Result<(), WorkerError>>>,
}

struct Nothing {
    tally: Arc<Tally>,
    worker: usize,
}

impl Handler for Nothing {
    async fn run(&self, job: AssignedJob, _: CancellationToken) -> Result<Value, JobFailure> {
        self.tally.note(self.worker, &job.input_data);
        Ok(json!({"ok": true, "n": 1}))
    }
}

impl Tally {
    fn note(&self, worker: usize, input: &[u8]) {
        let now = self.clock.micros();
        if self.first.load(Ordering::Relaxed) == 0 {
            let _ = self.first.compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        }
        if let Some(submitted) = submitted_at(input) {
            let mut times = self.times[worker].lock().unwrap_or_else(PoisonError::into_inner);
            times.saturating_record(now.saturating_sub(submitted).max(1));
        }
        let handled = self.handled.fetch_add(1, Ordering::Relaxed) + 1;
        self.progress.send_replace(handled);
    }

    /// Jobs whose handler has started.
    pub(super) fn handled(&self) -> u64 {
        self.handled.load(Ordering::Relaxed)
    }

    /// When the first job started.
    pub(super) fn first(&self) -> u64 {
        self.first.load(Ordering::Relaxed)
    }

    /// Forgets the times so far.
    pub(super) fn forget_times(&self) {
        for some in &self.times {
            some.lock().unwrap_or_else(PoisonError::into_inner).reset();
        }
    }

    /// Resolves once so many were handled.
    pub(super) async fn reached(&self, jobs: u64) {
        // The sender lives as long as the tally.
        let _ = self.progress.subscribe().wait_for(|handled| *handled >= jobs).await;
    }

    /// The times of all workers so far.
    pub(super) fn times(&self) -> Histogram<u64> {
        let mut all = times();
        for some in &self.times {
            let some = some.lock().unwrap_or_else(PoisonError::into_inner);
            // All have the same bounds.
            let _ = all.add(&*some);
        }
        all
    }
}

impl Crew {
    /// Starts the workers; they register as soon as a replica takes them.
    pub(super) fn start(
        options: &Options,
        endpoints: &[String],
        model: &str,
        memory_gb: Option<u32>,
        clock: Clock,
    ) -> Result<Self, BenchError> {
        let tally = Arc::new(Tally {
            clock,
            first: AtomicU64::new(0),
            handled: AtomicU64::new(0),
            progress: watch::Sender::new(0),
            times: (0..options.workers).map(|_| Mutex::new(times())).collect(),
        });
        let shutdown = CancellationToken::new();
        let mut workers = Vec::with_capacity(options.workers);
        for index in 0..options.workers {
            let failed = |error: &dyn std::fmt::Display| BenchError::call("starting a worker")(error);
            let name = format!("{model}-{}", index + 1);
            let mut worker = Worker::builder()
                .endpoints(endpoints.join(","))
                .identity(Identity::reserve(&name).map_err(|error| failed(&error))?)
                .models([model])
                .slots(options.slots)
                .token(options.token.clone());
            if let Some(gb) = memory_gb {
                worker = worker.memory_gb(gb.into());
            }
            let worker = worker.build().map_err(|error| failed(&error))?;
            let nothing = Nothing { tally: Arc::clone(&tally), worker: index };
            workers.push(tokio::spawn(worker.run(nothing, shutdown.clone())));
        }
        Ok(Self { tally, shutdown, workers })
    }

    /// Lets the workers drain and waits for them.
    pub(super) async fn dismiss(self) -> Result<(), BenchError> {
        self.shutdown.cancel();
        for worker in self.workers {
            let ended = worker.await.map_err(|error| BenchError::call("running a worker")(&error))?;
            ended.map_err(|error| BenchError::call("running a worker")(&error))?;
        }
        Ok(())
    }
}
