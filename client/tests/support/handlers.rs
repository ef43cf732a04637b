//! Handlers for the tests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use cortex_client::{AssignedJob, CancellationToken, Handler, JobFailure};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};

/// Answers a job's input.
pub struct Echo;

impl Handler for Echo {
    async fn run(&self, job: AssignedJob, _cancel: CancellationToken) -> Result<Value, JobFailure> {
        job.input()
    }
}

/// Runs until it is let go or cancelled, and counts.
#[derive(Clone)]
pub struct Gate {
    pub gate: Arc<Semaphore>,
    pub running: watch::Sender<usize>,
    pub most: Arc<AtomicUsize>,
    pub cancelled: watch::Sender<usize>,
    pub ended: watch::Sender<usize>,
}

impl Gate {
    pub fn new() -> Self {
        Self {
            gate: Arc::new(Semaphore::new(0)),
            running: watch::Sender::new(0),
            most: Arc::default(),
            cancelled: watch::Sender::new(0),
            ended: watch::Sender::new(0),
        }
    }

    pub fn open(&self, jobs: usize) {
        self.gate.add_permits(jobs);
    }

    pub async fn running(&self, jobs: usize) {
        reaches(&self.running, jobs).await;
    }
}

struct Ended<'a>(&'a Gate);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.running.send_modify(|n| *n -= 1);
        self.0.ended.send_modify(|n| *n += 1);
    }
}

impl Handler for Gate {
    async fn run(&self, _job: AssignedJob, cancel: CancellationToken) -> Result<Value, JobFailure> {
        self.running.send_modify(|n| *n += 1);
        let _ended = Ended(self);
        self.most.fetch_max(*self.running.borrow(), Ordering::SeqCst);
        tokio::select! {
            permit = self.gate.acquire() => permit.unwrap().forget(),
            () = cancel.cancelled() => self.cancelled.send_modify(|n| *n += 1),
        }
        // Success even when cancelled: the runtime must know better.
        Ok(json!({}))
    }
}

pub async fn reaches(count: &watch::Sender<usize>, at_least: usize) {
    let mut count = count.subscribe();
    let reached = count.wait_for(|n| *n >= at_least);
    tokio::time::timeout(Duration::from_secs(20), reached)
        .await
        .expect("the count was never reached")
        .unwrap();
}
