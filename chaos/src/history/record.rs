//! What a history consists of: one line of JSON each, in the order in which things happened.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A line of `history.jsonl`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Line {
    /// Microseconds since the run began, by the monotonic clock of the harness.
    pub at: u64,
    /// What happened.
    #[serde(flatten)]
    pub record: Record,
}

/// What happened.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// A client is about to send a request. Without an [`Record::End`] its outcome is unknown.
    Begin {
        /// Number of the call, unique within the run.
        call: u64,
        /// Who calls: `submitter-3`, `canceller-1`.
        client: String,
        /// Index of the replica that it sends to.
        replica: usize,
        /// What it asks for.
        request: Request,
    },
    /// The call of that number has come back.
    End {
        /// Number of the call.
        call: u64,
        /// What came of it.
        outcome: Outcome,
    },
    /// A worker did something, in its own words.
    Worker {
        /// Its name.
        worker: String,
        /// What.
        act: Act,
    },
    /// Something was done to the cluster.
    Fault {
        /// Number of the fault, unique within the run.
        fault: u64,
        /// Its name, as `--faults` takes it.
        name: String,
        /// How far it is.
        phase: Phase,
    },
    /// A replica's view of the group has changed since it was last asked.
    View {
        /// Index of the replica that answered.
        replica: usize,
        /// Its process id: a view never goes back within one data directory, whatever process serves it.
        pid: Option<u32>,
        /// What it said.
        view: View,
    },
    /// The process of a replica was seen to have ended.
    Exit {
        /// Index of the replica.
        replica: usize,
        /// How, such as `exit status: 1`.
        status: String,
    },
    /// A replica was not ready at the end of the quiet time.
    NotReady {
        /// Index of the replica.
        replica: usize,
    },
    /// How many jobs are in which state, by the counters.
    Depth {
        /// Waiting for their time.
        pending: i64,
        /// Waiting for a worker.
        queued: i64,
        /// Assigned or running.
        active: i64,
        /// At their end.
        finished: i64,
    },
    /// Something was seen in Redis' own stream of commands.
    Redis {
        /// What.
        act: RedisAct,
    },
    /// A stretch of the run begins.
    Stage {
        /// Which.
        stage: Stage,
    },
}

/// Stretches of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Load without faults.
    Calm,
    /// Load and faults.
    Faults,
    /// The last fault has healed, submissions have stopped; what is open must come to its end.
    Quiet,
    /// Every job is at its end, or the time for that is over.
    Over,
}

/// A request.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    /// One job or a batch.
    Submit {
        /// The idempotency key, if one is sent.
        key: Option<String>,
        /// Numbers that the jobs carry in `input_data.number`, by which a job is told from all others.
        numbers: Vec<u64>,
        /// Whether it is sent as a batch.
        batch: bool,
    },
    /// Reads a job.
    Get {
        /// Its id.
        job: Uuid,
    },
    /// Cancels a job.
    Cancel {
        /// Its id.
        job: Uuid,
    },
    /// Tries a job again that has failed.
    Retry {
        /// Its id.
        job: Uuid,
    },
    /// Something that must be refused, and by which status: no token, a forged one, a role that may not, a malformed
    /// body.
    Intrusion {
        /// What it tries.
        what: String,
        /// The HTTP status, or gRPC's code, that is expected; no number is both. Any other answer is a violation.
        expected: u16,
        /// The job it is aimed at, if any.
        job: Option<Uuid>,
    },
    /// Moves the leadership.
    Transfer {
        /// To this replica, by id; to any other if missing.
        to: Option<u64>,
    },
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub enum Outcome {
    /// Done.
    Ok {
        /// The HTTP status, or gRPC's code.
        status: u16,
        /// The jobs that it names: their ids, states and numbers of retries.
        jobs: Vec<Seen>,
    },
    /// Certainly not done.
    Refused {
        /// The HTTP status, or gRPC's code; 0 where nobody listened.
        status: u16,
        /// The problem's type or title.
        why: String,
    },
    /// Done or not.
    Unknown {
        /// What went wrong.
        why: String,
    },
}

/// A job as an answer showed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Its id.
    pub id: Uuid,
    /// Its state.
    pub status: String,
    /// Failed attempts that were tried again, and explicit retries.
    pub retries: i32,
}

/// What a worker did.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "snake_case")]
pub enum Act {
    /// It was given a job and begins to run it.
    Start {
        /// The job.
        job: Uuid,
        /// The lease.
        lease: Uuid,
        /// Which attempt, from 1.
        attempt: i32,
        /// `input_data.number`.
        number: u64,
    },
    /// It has come to the end of it.
    End {
        /// The job.
        job: Uuid,
        /// The lease.
        lease: Uuid,
        /// How.
        end: Ending,
    },
    /// It reports under a lease: by a call of its own, or on its session.
    Report {
        /// Number of the report, unique within the run; the answer carries it too.
        report: u64,
        /// The job.
        job: Uuid,
        /// The lease.
        lease: Uuid,
        /// What it says.
        says: Says,
        /// Index of the replica it is sent to; `None` on a session, which may change over meanwhile.
        #[serde(default)]
        replica: Option<usize>,
        /// Whether the worker knows that the lease is no longer its own.
        stale: bool,
    },
    /// The report was answered.
    Answer {
        /// Number of the report.
        report: u64,
        /// Whether it was acknowledged; `None` if no answer came.
        acknowledged: Option<bool>,
        /// What was said.
        why: String,
    },
    /// It has done outside of the cluster what the job is for, because its completion was acknowledged. This is the
    /// ledger of effects: no store has a part in it.
    Effect {
        /// The job.
        job: Uuid,
        /// The lease.
        lease: Uuid,
        /// `input_data.number`.
        number: u64,
    },
    /// It is attached to a replica.
    Attached {
        /// Its id at the cluster.
        id: String,
        /// Index of the replica, where that is known.
        replica: Option<usize>,
    },
    /// It ends, or is killed.
    Gone {
        /// Why.
        why: String,
    },
}

/// What was seen in Redis' own stream of commands, in the order in which Redis carried it out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "act", rename_all = "snake_case")]
pub enum RedisAct {
    /// From here on every command is seen.
    Watched {
        /// What tells one run of Redis from the next.
        run_id: String,
    },
    /// From here on none is.
    Unwatched {
        /// Why.
        why: String,
    },
    /// A script writes: the first one after another epoch's, or after anything else that is noted here. Of an epoch
    /// below the highest one, each.
    Writes {
        /// The epoch that it was given; `None` if none.
        epoch: Option<i64>,
        /// The beginning of the script's hash.
        script: String,
        /// Its first command that changes anything.
        command: String,
        /// Whether it began by setting the stored epoch, without a look at it.
        resets: bool,
    },
    /// Something else has come; until then so many scripts of this epoch wrote.
    Wrote {
        /// The epoch.
        epoch: Option<i64>,
        /// How many.
        scripts: u64,
    },
    /// Somebody who is no script took the stored epoch away, alone or with all the rest.
    EpochGone {
        /// By which command.
        how: String,
    },
    /// Somebody who is no script has set the stored epoch.
    EpochForged {
        /// To what.
        value: String,
    },
    /// Redis may throw keys away without a word, or does so no longer.
    Evicts {
        /// Which of the two.
        begins: bool,
    },
}

/// How a run of a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// With a result.
    Success,
    /// With an error, as planned.
    Failure,
    /// It was told to stop.
    Cancelled,
    /// The worker died in the middle.
    Crashed,
}

/// What a report says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Says {
    /// It runs.
    Running,
    /// It succeeded, with this result's number.
    Success(u64),
    /// It failed.
    Failure,
}

/// What is said of a cut-off leader in whose place nobody came to lead.
pub const NO_SUCCESSOR: &str = "nobody else has come to lead meanwhile";

/// How far a fault is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "snake_case")]
pub enum Phase {
    /// It is being brought about.
    Begins {
        /// Replicas that it strikes, by index.
        replicas: Vec<usize>,
        /// Whether the leader is among them: then the time to the next submission and dispatch counts.
        leader: bool,
        /// What exactly is done.
        detail: String,
    },
    /// What it was meant to break is whole again.
    Heals,
    /// It is over.
    Over {
        /// What shows that it bit; `None` if nothing does.
        proof: Option<String>,
        /// What the product did that it must not do when it is struck in this way, if anything.
        #[serde(default)]
        broke: Option<String>,
        /// Whether that is [`NO_SUCCESSOR`]; older histories say it in those words alone.
        #[serde(default)]
        no_successor: bool,
    },
}

/// A replica's view of the group.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// Its own id.
    pub id: u64,
    /// leader, follower, learner or candidate.
    pub role: String,
    /// Whom it takes for the leader.
    pub leader: Option<u64>,
    /// Raft's term.
    pub term: u64,
    /// The leader's fencing token, where it knows one.
    pub epoch: Option<u64>,
    /// Last log entry that it has applied, where it says so.
    pub applied: Option<u64>,
}
