//! The checks: what each looks for, how bad it is, and what repairs it. `docs/VERIFY.md` is made from this.

use serde::{Deserialize, Serialize};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Work was lost or done twice, or will be.
    Harm,
    /// Work waits, or numbers are wrong; a loop of the leader or the step that is named sets it right.
    Drift,
    /// The stores alone cannot tell whether anything is wrong. Does not count for the verdict.
    Notice,
}

impl Severity {
    /// As in reports.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Harm => "harm",
            Self::Drift => "drift",
            Self::Notice => "notice",
        }
    }
}

/// Checks that are made together, in one snapshot or one walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    Schema,
    Constraints,
    Leadership,
    Counters,
    Times,
    Histories,
    Leases,
    Keys,
    Waits,
    QueueState,
    QueueClaims,
    QueueEntries,
    QueuedJobs,
}

impl Group {
    pub(super) const ALL: [Self; 13] = [
        Self::Schema,
        Self::Constraints,
        Self::Leadership,
        Self::Counters,
        Self::Times,
        Self::Histories,
        Self::Leases,
        Self::Keys,
        Self::Waits,
        Self::QueueState,
        Self::QueueClaims,
        Self::QueueEntries,
        Self::QueuedJobs,
    ];

    /// Whether a healthy cluster may have for a moment what these checks find.
    pub(super) const fn settles(self) -> bool {
        match self {
            Self::Schema
            | Self::Constraints
            | Self::Leadership
            | Self::Counters
            | Self::Times
            | Self::Histories
            | Self::Leases
            | Self::Keys => false,
            Self::Waits | Self::QueueState | Self::QueueClaims | Self::QueueEntries | Self::QueuedJobs => {
                true
            }
        }
    }
}

/// One check.
#[derive(Debug, Clone, Copy)]
pub struct Check {
    /// Its name, which stays.
    pub name: &'static str,
    /// How bad a finding is.
    pub severity: Severity,
    /// What is off where it finds something.
    pub means: &'static str,
    /// What sets it right.
    pub repair: &'static str,
    pub(super) group: Group,
}

impl Check {
    /// Whether a finding counts only if it is there at a second look.
    pub const fn settles(&self) -> bool {
        self.group.settles()
    }
}

/// The check of this name.
pub fn check(name: &str) -> Option<&'static Check> {
    CHECKS.iter().find(|check| check.name == name)
}

const fn harm(name: &'static str, group: Group, means: &'static str, repair: &'static str) -> Check {
    Check { name, severity: Severity::Harm, means, repair, group }
}

const fn drift(name: &'static str, group: Group, means: &'static str, repair: &'static str) -> Check {
    Check { name, severity: Severity::Drift, means, repair, group }
}

const fn notice(name: &'static str, group: Group, means: &'static str, repair: &'static str) -> Check {
    Check { name, severity: Severity::Notice, means, repair, group }
}

const REAPED: &str = "the leader's `reap_leases` ends such leases every second; if they stay, nobody leads \
     (`cortex cluster status`) or the leader does not know them: `cortex cluster transfer`, or restart the leader";
const RECONCILED: &str = "the leader's `reconcile_queue` looks every second; if it stays, nobody leads \
     (`cortex cluster status`) or the leader cannot write to Redis: see its log, and `cortex cluster transfer`";
const COMPARED: &str = "the leader's `reconcile_queue` compares every 10 s and sets it right; if it stays, delete the \
     queue's keys in Redis, all that begin with `queue.queue_prefix`, and the queue is rebuilt from PostgreSQL";
const REGISTERED: &str = "the leader's `reconcile_queue` compares every 10 s and sets a place that is wrong right; a name \
     that stands for no requirements stays: delete the queue's keys in Redis, all that begin with `queue.queue_prefix`, \
     and the queue is rebuilt from PostgreSQL";
const REBUILT: &str = "delete the queue's keys in Redis, all that begin with `queue.queue_prefix`: the leader's \
     `reconcile_queue` notices within a second and rebuilds the queue from PostgreSQL";
const BY_HAND: &str = "`cortex jobs cancel ID`, and `cortex jobs retry ID` if it is to run; find out who has written \
     to the tables beside CORTEX";

/// All checks, in the order of reports.
pub static CHECKS: [Check; 29] = [
    harm(
        "schema_current",
        Group::Schema,
        "migrations were not applied, were applied in another form, or are of a newer version. Where the tables may \
         be others than this program supposes, nothing else of PostgreSQL is looked at",
        "`cortex migrate --config FILE` applies what is missing; for a newer schema use the newer version's `cortex verify`",
    ),
    harm(
        "constraints_in_force",
        Group::Constraints,
        "constraints or indexes of the tables are missing or do not hold, so that nothing stops impossible rows",
        "add the constraint anew as the file in `migrations` has it, `ALTER TABLE … VALIDATE CONSTRAINT`, or `REINDEX`",
    ),
    drift(
        "leadership_known",
        Group::Leadership,
        "the row that says which epoch may write is missing: no replica has ever led on this database, or it was deleted",
        "the next leader writes it when it takes over: start the replicas, or `cortex cluster transfer`",
    ),
    drift(
        "counters_match_rows",
        Group::Counters,
        "the counters of jobs by state differ from the rows, so that statistics, the limit of the queue and direct \
         dispatch are wrong",
        "nothing repairs it by itself: the statement in `docs/VERIFY.md` counts anew while no leader writes",
    ),
    harm(
        "attempts_in_sequence",
        Group::Histories,
        "attempts of a job do not count up, or beyond the retries that it has spent: two leaders have written, or a \
         retry was counted wrongly",
        "nothing undoes it; the job's attempts are in `GET /api/v1/jobs/{id}/executions`: check what they did outside",
    ),
    harm(
        "one_lease_at_a_time",
        Group::Histories,
        "a lease was granted before the one before it had ended, so that two workers may have run the job at once; a \
         clock of the database that was set back looks the same",
        "nothing undoes it; the job's attempts are in `GET /api/v1/jobs/{id}/executions`: check what they did outside",
    ),
    harm(
        "completed_once",
        Group::Histories,
        "a job was granted again after it had been completed, was completed twice, or is not completed although an \
         attempt is",
        "nothing undoes it; the job's attempts are in `GET /api/v1/jobs/{id}/executions`: check what they did outside",
    ),
    harm(
        "jobs_end_as_their_attempts",
        Group::Histories,
        "a job has ended in another way than its last attempt, or was assigned and has no execution",
        "nothing undoes it; a job that failed, was cancelled or timed out runs again with `cortex jobs retry ID`",
    ),
    harm(
        "executions_have_jobs",
        Group::Histories,
        "executions belong to no job: jobs were deleted by hand, or lost",
        "restore the jobs from a backup, or delete the executions; `prune_jobs` deletes both together",
    ),
    harm(
        "leases_match_executions",
        Group::Leases,
        "a job holds a lease whose execution has ended, is missing or belongs to others, or an execution is live and \
         its job does not know: such a job does not move",
        BY_HAND,
    ),
    drift(
        "leases_match_jobs",
        Group::Leases,
        "the table of leases differs from the jobs, as after a replica of an older version has led; a new leader \
         could miss a lease",
        "a new leader sets the table right when it takes over: `cortex cluster transfer`, or restart the only replica",
    ),
    harm(
        "lease_holders_known",
        Group::Leases,
        "a lease is held by a worker that is not registered, so that nobody notices its silence before the lease \
         runs out",
        BY_HAND,
    ),
    drift(
        "leases_of_lost_workers",
        Group::Waits,
        "a lease is held by a worker that is offline, removed, or silent beyond its limit",
        REAPED,
    ),
    drift(
        "leases_expired",
        Group::Waits,
        "a lease, or the time of a job that is driven from outside, has run out and was not ended",
        REAPED,
    ),
    drift(
        "retries_promoted",
        Group::Waits,
        "jobs wait for a time that has come: retries, and jobs with a `run_at`",
        "the leader's `promote_retries` assigns or queues them when they are due; if they stay, nobody leads \
         (`cortex cluster status`), or `cortex cluster transfer`",
    ),
    drift(
        "worker_load_matches_leases",
        Group::Waits,
        "the row of a worker says another number of jobs than it holds leases",
        "the leader's `record_vitals` writes it with the next change, and a worker that registers again begins anew; \
         only what is shown is wrong",
    ),
    drift(
        "queue_whole",
        Group::QueueState,
        "the generation is missing: Redis was emptied and the queue was not rebuilt",
        RECONCILED,
    ),
    drift(
        "queue_epoch_current",
        Group::QueueState,
        "Redis knows another epoch than PostgreSQL. With a lower one the leader does not write to it, with a higher one \
         it cannot",
        "a leader that takes over sets the epoch right: `cortex cluster transfer`, or restart the only replica",
    ),
    drift(
        "queue_depth_matches_entries",
        Group::QueueState,
        "the depth of a priority differs from the jobs in the sets and the claims, as after an eviction",
        COMPARED,
    ),
    drift(
        "queue_shapes_found_in_order",
        Group::QueueState,
        "a set of jobs stands behind its best job in the registry of sets, so that the job is found too late, or has \
         a name that stands for no requirements",
        REGISTERED,
    ),
    drift(
        "claims_settled",
        Group::QueueClaims,
        "jobs were claimed for a worker and never assigned or put back, and wait for nobody",
        RECONCILED,
    ),
    drift(
        "queue_entries_wait",
        Group::QueueEntries,
        "entries of the ready queue name jobs that are not queued, that are not there, or that are no job's id. They \
         do no harm: PostgreSQL decides",
        "each goes when it is claimed; `reconcile_queue` drops them once there are more than 1,000 and a tenth",
    ),
    drift(
        "queue_entries_in_place",
        Group::QueueEntries,
        "entries stand in the set of other requirements than their job's, or at another place than its priority and \
         time ask for",
        "PostgreSQL decides who gets a job, only the order suffers, and what its worker can do; each goes when it is \
         claimed, or at once: delete the queue's keys in Redis, and the leader rebuilds it from PostgreSQL",
    ),
    drift(
        "queue_entries_unclaimed",
        Group::QueueEntries,
        "jobs wait in the queue and are claimed at the same time, so that they count twice in its depth",
        RECONCILED,
    ),
    harm(
        "queued_jobs_in_queue",
        Group::QueuedJobs,
        "jobs are queued in PostgreSQL and the ready queue does not have them: nobody will run them",
        "the leader's `reconcile_queue` compares every 10 s and rebuilds the queue, sooner or later with the number of \
         jobs that wait, 5,000 a look; if they stay, `cortex cluster transfer`, or delete the queue's keys in Redis",
    ),
    harm(
        "queued_jobs_found",
        Group::QueuedJobs,
        "jobs wait in a set of the ready queue that is not registered: nobody finds them until another job of the \
         same requirements comes",
        REBUILT,
    ),
    notice(
        "attempts_without_gaps",
        Group::Histories,
        "numbers of attempts are left out: a job was retried by hand before it ran, or was driven from outside in \
         between, or executions are lost",
        "nothing, if one of the former is the case",
    ),
    notice(
        "keys_have_jobs",
        Group::Keys,
        "idempotency keys stand for jobs that are not stored: a submission failed half-way, and was not sent again yet",
        "whoever sends the key again has the jobs stored; after 24 h `forget_keys` deletes the key",
    ),
    notice(
        "times_in_order",
        Group::Times,
        "a job's times contradict each other by more than 5 s: the database's clock was set back, or it moved to a \
         server whose clock is behind",
        "nothing; keep the clocks of the database servers together",
    ),
];
