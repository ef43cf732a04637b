//! Workers with a session, as the client library makes them.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use cortex_client::{AssignedJob, Handler, JobFailure, ReportOutcome, Settled, Worker};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Plan, Shared};
use crate::history::{Act, Ending, Says};

/// First port that identifies them.
const PORTS: u16 = 1000;
/// How often they give a sign of life.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Error code of a failure that is planned.
const PLANNED: &str = "planned";

/// All of them, by number.
pub struct Sessions {
    shared: Arc<Shared>,
    running: Mutex<BTreeMap<u16, Running>>,
    slots: usize,
}

struct Running {
    crash: CancellationToken,
    leave: CancellationToken,
    /// Jobs that it runs at this moment.
    hands: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Sessions {
    /// Starts this many.
    pub(super) fn start(shared: &Arc<Shared>, count: usize, slots: usize) -> Self {
        let sessions = Self { shared: Arc::clone(shared), running: Mutex::default(), slots };
        for number in 1..=u16::try_from(count).unwrap_or(u16::MAX) {
            sessions.start_one(number);
        }
        sessions
    }

    /// Numbers of those that run.
    pub fn numbers(&self) -> Vec<u16> {
        self.lock().keys().copied().collect()
    }

    /// How many jobs the worker with this number runs.
    pub fn hands_of(&self, number: u16) -> usize {
        self.lock().get(&number).map_or(0, |running| running.hands.load(Ordering::Acquire))
    }

    /// Starts those again that have died; answers how many.
    pub fn revive(&self) -> usize {
        let dead: Vec<u16> = {
            let running = self.lock();
            let dead = running.iter().filter(|(_, running)| running.task.is_finished());
            dead.map(|(number, _)| *number).collect()
        };
        dead.iter().for_each(|number| self.start_one(*number));
        dead.len()
    }

    /// Starts the worker with this number.
    pub fn start_one(&self, number: u16) {
        let name = format!("session-{number}");
        let (crash, leave) = (CancellationToken::new(), CancellationToken::new());
        let size = self.shared.cluster.size();
        // Each begins at another replica.
        let endpoints: Vec<_> =
            (0..size).map(|index| self.shared.cluster.grpc((index + usize::from(number)) % size)).collect();
        let worker = Worker::builder()
            .endpoints(endpoints.join(","))
            .name(&name)
            .hostname("chaos")
            .port(PORTS + number)
            .slots(self.slots)
            .heartbeat_period(HEARTBEAT)
            .token(Some(self.shared.cluster.tokens().worker.clone()))
            .build();
        let hands = Arc::new(AtomicUsize::new(0));
        let handler = Recording {
            worker: name.clone(),
            shared: Arc::clone(&self.shared),
            crash: crash.clone(),
            hands: Arc::clone(&hands),
            reported: Mutex::default(),
        };
        let (recorder, crashed, leaving) = (Arc::clone(&self.shared.recorder), crash.clone(), leave.clone());
        let task = tokio::spawn(async move {
            let run = async {
                match worker {
                    Ok(worker) => worker.run(handler, leaving).await.err().map(|error| error.to_string()),
                    Err(error) => Some(error.to_string()),
                }
            };
            // Dropped where it stands, a worker says nothing to anybody: that is a crash.
            let why = tokio::select! {
                ended = run => ended.unwrap_or_else(|| "it has left".to_owned()),
                () = crashed.cancelled() => "crash".to_owned(),
            };
            recorder.act(&name, Act::Gone { why });
        });
        self.lock().insert(number, Running { crash, leave, hands, task });
    }

    /// Kills the worker with this number in the middle of what it does; answers how many jobs it had then.
    pub async fn crash(&self, number: u16) -> usize {
        let running = self.lock().remove(&number);
        let Some(running) = running else { return 0 };
        let hands = running.hands.load(Ordering::Acquire);
        running.crash.cancel();
        let _ = running.task.await;
        hands
    }

    /// Lets all of them finish what they have.
    pub(super) async fn stop(self) {
        let running = std::mem::take(&mut *self.lock());
        for worker in running.values() {
            worker.leave.cancel();
        }
        for worker in running.into_values() {
            let _ = worker.task.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u16, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Does what the job's plan says and writes it down.
struct Recording {
    worker: String,
    shared: Arc<Shared>,
    crash: CancellationToken,
    hands: Arc<AtomicUsize>,
    /// By lease, reports that are not answered, by their number.
    reported: Mutex<HashMap<Uuid, (u64, Says)>>,
}

/// Notes a crash if the run is dropped before its end.
struct Run<'a> {
    of: &'a Recording,
    job: Uuid,
    lease: Uuid,
    ended: bool,
}

impl Run<'_> {
    fn end(&mut self, end: Ending) {
        self.ended = true;
        self.of.shared.recorder.act(&self.of.worker, Act::End { job: self.job, lease: self.lease, end });
    }

    /// Ends it in a way that the library is about to report.
    fn end_and_say(&mut self, end: Ending, says: Says) {
        self.end(end);
        let (job, lease, recorder) = (self.job, self.lease, &self.of.shared.recorder);
        let report = recorder.number();
        self.of.reported().insert(lease, (report, says.clone()));
        let act = Act::Report { report, job, lease, says, replica: None, stale: false };
        recorder.act(&self.of.worker, act);
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Ending::Crashed);
        }
        self.of.hands.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Recording {
    fn reported(&self) -> MutexGuard<'_, HashMap<Uuid, (u64, Says)>> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handler for Recording {
    async fn run(
        &self,
        job: AssignedJob,
        cancel: cortex_client::CancellationToken,
    ) -> Result<Value, JobFailure> {
        let plan: Plan = serde_json::from_slice(&job.input_data)
            .map_err(|error| JobFailure::new(format!("not one of ours: {error}")).with_code("bad_input"))?;
        let (attempt, job, lease) = (job.attempt, id(&job.id), id(&job.execution_id));
        let start = Act::Start { job, lease, attempt, number: plan.number };
        self.shared.recorder.act(&self.worker, start);
        self.shared.start();
        self.hands.fetch_add(1, Ordering::AcqRel);
        let mut run = Run { of: self, job, lease, ended: false };
        if plan.poison {
            tokio::time::sleep(plan.work()).await;
            self.crash.cancel();
            std::future::pending::<()>().await;
        }
        tokio::select! {
            () = tokio::time::sleep(plan.work()) => {}
            () = cancel.cancelled() => {
                run.end(Ending::Cancelled);
                return Err(JobFailure::new("it was told to stop"));
            }
        }
        if attempt <= plan.fails {
            run.end_and_say(Ending::Failure, Says::Failure);
            return Err(JobFailure::new("as planned").with_code(PLANNED));
        }
        run.end_and_say(Ending::Success, Says::Success(plan.number));
        Ok(json!({"result": plan.number}))
    }

    fn settled(&self, end: Settled) {
        let (job, lease) = (id(&end.job_id), id(&end.execution_id));
        let reported = self.reported().remove(&lease);
        let Some((report, says)) = reported.filter(|(_, says)| is_of(&end, says)) else { return };
        let (acknowledged, why) = match end.outcome {
            ReportOutcome::Acknowledged => (Some(true), String::new()),
            ReportOutcome::Refused { reason } => (Some(false), reason),
            ReportOutcome::Unknown => (None, "the worker has given it up".to_owned()),
        };
        self.shared.recorder.act(&self.worker, Act::Answer { report, acknowledged, why });
        if acknowledged == Some(true)
            && let Says::Success(number) = says
        {
            self.shared.recorder.act(&self.worker, Act::Effect { job, lease, number });
        }
    }
}

/// Whether it is this that was said in the end: the library may have said otherwise, as of a job that was stopped.
fn is_of(end: &Settled, says: &Says) -> bool {
    match (says, &end.failure) {
        (Says::Success(_), None) => true,
        (Says::Failure, Some(failure)) => failure.code.as_deref() == Some(PLANNED),
        _ => false,
    }
}

fn id(text: &str) -> Uuid {
    Uuid::parse_str(text).unwrap_or_default()
}
