//! The workloads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::cluster::Cluster;
use super::crew::{Crew, Tally};
use super::load::{Sent, Submitter, Target, Template, took};
use super::report::{Cpu, Line, percentile_ms, times};
use super::{BenchError, Clock, Options, Workload, limit};

const SINGLE: &str = "/api/v1/jobs";
const BATCH: &str = "/api/v1/jobs/batch";
/// How long jobs may take to be run once all are stored.
const RUN_WITHIN: Duration = Duration::from_secs(600);
/// How long submissions may be refused one after the other.
const REFUSED_WITHIN: Duration = Duration::from_secs(60);
const REFUSED: &str = "a submission was refused all the time: nobody leads, a store is down, or too many jobs wait (queue.max_queue_size)";
/// More memory than any machine has.
const RESERVED_GB: u32 = 1_000_000;
/// How often a soak says how it goes.
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Microseconds of a second.
const SECOND: u64 = 1_000_000;

/// What all parts of a run share.
struct Run {
    options: Options,
    cluster: Cluster,
    worker_endpoints: Vec<String>,
    target: Target,
    model: String,
    /// What the jobs ask for and the run's own workers have, where others would take any job.
    memory_gb: Option<u32>,
    template: Arc<Template>,
    clock: Clock,
    bar: ProgressBar,
}

/// What submitters have done.
struct Submitted {
    times: Histogram<u64>,
    stored: u64,
    refused: u64,
}

/// How much is left to submit.
struct Budget {
    jobs: Option<AtomicU64>,
    until: Option<u64>,
    /// Nothing more is submitted then.
    stop: CancellationToken,
}

/// Makes one run; each line that it has to say is handed to `say`. `id` makes its model name its own.
///
/// Once `options.stop` is cancelled it submits nothing more, and runs what it has stored.
///
/// # Errors
/// A usage that makes no sense, a call that failed, counts that differ from what PostgreSQL holds, or `BrokenOff`.
pub async fn run(options: Options, id: Uuid, mut say: impl FnMut(&Line)) -> Result<(), BenchError> {
    if options.workload == Workload::Limit {
        return limit::run(&options, say).await;
    }
    let cluster = Cluster::new(&options)?;
    let target = cluster.target()?;
    let worker_endpoints = if options.worker_endpoints.is_empty() {
        cluster.worker_endpoints().await?
    } else {
        options.worker_endpoints.clone()
    };
    let model = format!("bench-{id}");
    let memory_gb = cluster.has_takers().await?.then_some(RESERVED_GB);
    let run = Run {
        target,
        template: Arc::new(Template::new(&model, options.payload_bytes, memory_gb)),
        memory_gb,
        clock: Clock::start(),
        bar: bar(options.progress),
        cluster,
        worker_endpoints,
        model,
        options,
    };
    let line = run.measure(&mut say).await;
    run.bar.finish_and_clear();
    let line = line?;
    if run.options.stop.is_cancelled() {
        return Err(BenchError::BrokenOff);
    }
    say(&line);
    Ok(())
}

impl Run {
    async fn measure(&self, say: &mut impl FnMut(&Line)) -> Result<Line, BenchError> {
        match self.options.workload {
            Workload::Submit => self.submit().await,
            Workload::SubmitBatch => self.submit_batch().await,
            Workload::Drain => self.drain().await,
            Workload::Latency => self.paced("latency", 10, &mut |_| {}).await,
            Workload::Soak => self.paced("soak", 600, say).await,
            Workload::Pipeline => self.pipeline().await,
            Workload::Limit => unreachable!("it has no cluster"),
        }
    }

    async fn submit(&self) -> Result<Line, BenchError> {
        let jobs = self.options.jobs.unwrap_or(20_000);
        let budget = self.budget(Some(jobs), self.options.seconds.filter(|_| self.options.jobs.is_none()));
        let (cpu, began) = (Cpu::now(), self.clock.micros());
        let done = self.fill(budget, self.options.in_flight, 1).await?;
        let line = self.line("submit", &done, done.stored, began, cpu, &done.times);
        self.clear(done.stored).await?;
        self.verified(line, None).await
    }

    async fn submit_batch(&self) -> Result<Line, BenchError> {
        let jobs = self.options.jobs.unwrap_or(50_000);
        let budget = self.budget(Some(jobs), self.options.seconds.filter(|_| self.options.jobs.is_none()));
        let (cpu, began) = (Cpu::now(), self.clock.micros());
        let done = self.fill(budget, 1, self.options.batch).await?;
        let line = self.line("submit-batch", &done, done.stored, began, cpu, &done.times);
        self.clear(done.stored).await?;
        self.verified(line, None).await
    }

    /// From the start of the first job until PostgreSQL holds all as completed.
    async fn drain(&self) -> Result<Line, BenchError> {
        let jobs = self.options.jobs.unwrap_or(50_000);
        let done = self.fill(self.budget(Some(jobs), None), 1, self.options.batch).await?;
        let cpu = Cpu::now();
        let crew = self.crew()?;
        let first = self.options.first.filter(|first| *first < done.stored);
        if let Some(first) = first {
            self.handled(&crew.tally, first).await?;
        } else {
            self.handled(&crew.tally, done.stored).await?;
            self.cluster.completed(&self.model, done.stored).await?;
        }
        let counted = first.unwrap_or(done.stored);
        let line = self.line("drain", &done, counted, crew.tally.first(), cpu, &crew.tally.times());
        self.handled(&crew.tally, done.stored).await?;
        let stored = self.cluster.completed(&self.model, done.stored).await?;
        crew.dismiss().await?;
        self.check(done.stored, stored)?;
        Ok(Line { verified: stored, ..line })
    }

    async fn pipeline(&self) -> Result<Line, BenchError> {
        let crew = self.ready_crew().await?;
        let before = crew.tally.handled();
        let seconds = self.options.seconds.unwrap_or(20);
        let window = self.options.jobs.is_none().then_some(seconds);
        let budget = self.budget(self.options.jobs, window);
        let (cpu, began) = (Cpu::now(), self.clock.micros());
        let driven = self.drive(budget, self.options.in_flight, 1);
        let done = self.shown(&crew.tally, driven).await?;
        if window.is_none() {
            self.handled(&crew.tally, before + done.stored).await?;
        }
        // What was handled inside the window counts, no more.
        let handled = crew.tally.handled() - before;
        let line = self.line("pipeline", &done, handled, began, cpu, &crew.tally.times());
        self.handled(&crew.tally, before + done.stored).await?;
        let stored = self.cluster.completed(&self.model, before + done.stored).await?;
        crew.dismiss().await?;
        self.check(before + done.stored, stored)?;
        Ok(Line { verified: stored - before, ..line })
    }

    /// Submissions at a steady rate against running workers.
    async fn paced(
        &self,
        workload: &'static str,
        seconds: u64,
        say: &mut impl FnMut(&Line),
    ) -> Result<Line, BenchError> {
        let crew = self.ready_crew().await?;
        let before = crew.tally.handled();
        let rate = self.options.rate.max(1);
        let jobs = self.options.jobs.unwrap_or_else(|| rate * self.options.seconds.unwrap_or(seconds));
        let (ticks, turns) = tokio::sync::mpsc::channel(self.options.in_flight);
        let turns = Arc::new(tokio::sync::Mutex::new(turns));
        let mut submitters = JoinSet::new();
        for _ in 0..self.options.in_flight {
            let (mut submitter, template) = (Submitter::new(self.target.clone()), Arc::clone(&self.template));
            let (turns, clock, stop) = (Arc::clone(&turns), self.clock, self.options.stop.clone());
            submitters.spawn(async move {
                let mut done = Submitted::new();
                while !stop.is_cancelled() && turns.lock().await.recv().await.is_some() {
                    let body = |at| template.single(at);
                    submit(&mut submitter, SINGLE, 1, body, clock, &stop, &mut done).await?;
                }
                Ok::<_, BenchError>(done)
            });
        }
        let (cpu, began) = (Cpu::now(), self.clock.micros());
        let mut clock = interval(Duration::from_micros(SECOND / rate));
        clock.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut said = interval(SAY_EVERY);
        said.tick().await;
        for sent in 0..jobs {
            tokio::select! {
                biased;
                () = self.options.stop.cancelled() => break,
                _ = said.tick() => {
                    let counts = Submitted { stored: sent, ..Submitted::new() };
                    let handled = crew.tally.handled() - before;
                    say(&self.line(workload, &counts, handled, began, cpu, &crew.tally.times()));
                }
                _ = clock.tick() => {}
            }
            self.bar.set_position(sent);
            if ticks.send(()).await.is_err() {
                break;
            }
        }
        drop(ticks);
        let mut done = Submitted::new();
        while let Some(some) = submitters.join_next().await {
            done.add(some.map_err(|error| BenchError::call("submitting")(&error))??);
        }
        self.handled(&crew.tally, before + done.stored).await?;
        let line = self.line(workload, &done, done.stored, began, cpu, &crew.tally.times());
        let stored = self.cluster.completed(&self.model, before + done.stored).await?;
        crew.dismiss().await?;
        self.check(before + done.stored, stored)?;
        Ok(Line { verified: stored - before, ..line })
    }

    fn crew(&self) -> Result<Crew, BenchError> {
        Crew::start(&self.options, &self.worker_endpoints, &self.model, self.memory_gb, self.clock)
    }

    /// A crew that has run a job on each of its slots' worth: connections are open, statements prepared. These
    /// jobs count nowhere.
    async fn ready_crew(&self) -> Result<Crew, BenchError> {
        let crew = self.crew()?;
        let jobs = (self.options.workers * self.options.slots).clamp(1, 200) as u64;
        let done = self.drive(self.budget(Some(jobs), None), self.options.in_flight, 1).await?;
        self.handled(&crew.tally, done.stored).await?;
        self.cluster.completed(&self.model, done.stored).await?;
        crew.tally.forget_times();
        Ok(crew)
    }

    /// Submits while nobody works. If too few find room, those go again: nobody else would run them.
    async fn fill(&self, budget: Budget, callers: usize, batch: usize) -> Result<Submitted, BenchError> {
        let done = self.drive(budget, callers, batch).await;
        if let Err(BenchError::Late(..)) = &done {
            self.clear(self.cluster.count(&self.model, None).await?).await?;
        }
        done
    }

    /// Submits with so many callers at a time, each call so many jobs.
    async fn drive(&self, budget: Budget, callers: usize, batch: usize) -> Result<Submitted, BenchError> {
        let budget = Arc::new(budget);
        let mut submitters = JoinSet::new();
        for _ in 0..callers {
            let (mut submitter, template) = (Submitter::new(self.target.clone()), Arc::clone(&self.template));
            let (budget, clock, bar) = (Arc::clone(&budget), self.clock, self.bar.clone());
            submitters.spawn(async move {
                let mut done = Submitted::new();
                while let Some(jobs) = budget.take(batch as u64, clock) {
                    let (submitter, stop) = (&mut submitter, &budget.stop);
                    if batch == 1 {
                        let body = |at| template.single(at);
                        submit(submitter, SINGLE, 1, body, clock, stop, &mut done).await?;
                    } else {
                        let body = |at| template.batch(jobs, at);
                        submit(submitter, BATCH, jobs, body, clock, stop, &mut done).await?;
                        bar.inc(jobs);
                    }
                }
                Ok::<_, BenchError>(done)
            });
        }
        let mut done = Submitted::new();
        while let Some(some) = submitters.join_next().await {
            done.add(some.map_err(|error| BenchError::call("submitting")(&error))??);
        }
        Ok(done)
    }

    /// Shows how many jobs were handled while `work` goes on.
    async fn shown<T>(&self, tally: &Tally, work: impl Future<Output = T>) -> T {
        tokio::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                () = sleep(Duration::from_millis(200)) => self.bar.set_position(tally.handled()),
            }
        }
    }

    async fn handled(&self, tally: &Tally, jobs: u64) -> Result<(), BenchError> {
        let reached = timeout(RUN_WITHIN, self.shown(tally, tally.reached(jobs))).await;
        reached.map_err(|_| BenchError::Late(RUN_WITHIN, "not all stored jobs were run"))
    }

    /// Runs what was stored and not run, so that the queue is as it was.
    async fn clear(&self, jobs: u64) -> Result<(), BenchError> {
        let crew = self.crew()?;
        self.handled(&crew.tally, jobs).await?;
        self.cluster.completed(&self.model, jobs).await?;
        crew.dismiss().await
    }

    fn budget(&self, jobs: Option<u64>, seconds: Option<u64>) -> Budget {
        self.bar.set_length(jobs.unwrap_or(0));
        self.bar.set_position(0);
        let until = seconds.map(|seconds| self.clock.micros() + seconds * SECOND);
        // Time goes before number where both could be meant.
        let jobs = jobs.filter(|_| until.is_none()).map(AtomicU64::new);
        Budget { jobs, until, stop: self.options.stop.clone() }
    }

    fn line(
        &self,
        workload: &'static str,
        done: &Submitted,
        jobs: u64,
        began: u64,
        cpu: Cpu,
        times: &Histogram<u64>,
    ) -> Line {
        let cpu = cpu.since();
        #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
        let (seconds, count) = (self.clock.micros().saturating_sub(began) as f64 / 1e6, jobs as f64);
        Line {
            workload,
            jobs,
            seconds,
            jobs_per_s: count / seconds.max(1e-6),
            p50_ms: percentile_ms(times, 50.0),
            p99_ms: percentile_ms(times, 99.0),
            max_ms: percentile_ms(times, 100.0),
            cpu_s: cpu.machine,
            cpu_client_s: cpu.process,
            cpu_stolen_s: cpu.stolen,
            refused: done.refused,
            verified: 0,
            in_flight: self.options.in_flight,
            workers: self.options.workers,
            slots: self.options.slots,
            payload_bytes: self.options.payload_bytes,
        }
    }

    /// Compares what was counted with what PostgreSQL holds of this run's jobs.
    async fn verified(&self, line: Line, status: Option<&str>) -> Result<Line, BenchError> {
        let stored = self.cluster.count(&self.model, status).await?;
        self.check(line.jobs, stored)?;
        Ok(Line { verified: stored, ..line })
    }

    fn check(&self, counted: u64, stored: u64) -> Result<(), BenchError> {
        if counted == stored { Ok(()) } else { Err(BenchError::Mismatch { counted, stored }) }
    }
}

impl Budget {
    /// The size of the next call, as long as there is one.
    fn take(&self, most: u64, clock: Clock) -> Option<u64> {
        if self.stop.is_cancelled() {
            return None;
        }
        if let Some(until) = self.until {
            return (clock.micros() < until).then_some(most);
        }
        let jobs = self.jobs.as_ref()?;
        let before = jobs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            (left > 0).then(|| left.saturating_sub(most))
        });
        before.ok().map(|left| left.min(most))
    }
}

impl Submitted {
    fn new() -> Self {
        Self { times: times(), stored: 0, refused: 0 }
    }

    fn add(&mut self, other: Self) {
        // All have the same bounds.
        let _ = self.times.add(&other.times);
        self.stored += other.stored;
        self.refused += other.refused;
    }
}

/// Sends one submission of `jobs` jobs, again and again if it is told to come again, until `stop`. `body` is handed the time at
/// which it is sent.
async fn submit(
    submitter: &mut Submitter,
    path: &str,
    jobs: u64,
    body: impl Fn(u64) -> Bytes,
    clock: Clock,
    stop: &CancellationToken,
    done: &mut Submitted,
) -> Result<(), BenchError> {
    let came = clock.micros();
    loop {
        let began = clock.micros();
        match submitter.post(path, body(began)).await? {
            Sent::Stored => {
                done.times.saturating_record(took(clock, began));
                done.stored += jobs;
                return Ok(());
            }
            Sent::ComeAgain(_) if u128::from(began - came) > REFUSED_WITHIN.as_micros() => {
                return Err(BenchError::Late(REFUSED_WITHIN, REFUSED));
            }
            Sent::ComeAgain(after) => {
                done.refused += 1;
                if stop.run_until_cancelled(sleep(after)).await.is_none() {
                    return Ok(());
                }
            }
        }
    }
}

/// On a terminal only.
fn bar(shown: bool) -> ProgressBar {
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(0), target);
    if let Ok(style) = ProgressStyle::with_template("{elapsed} {bar:30} {pos}/{len} {per_sec}") {
        bar.set_style(style);
    }
    bar
}
