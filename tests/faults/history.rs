//! What must be true of every history, whatever was done to the cluster.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgPool;
use uuid::Uuid;

use crate::load::Tally;
use crate::scene::Scene;

/// Puts a witness into the database: for each statement that changes scheduling state, whose epoch the
/// writer has shown to the fence, and which epoch was the current one.
pub async fn watch_writers(pool: &PgPool) {
    let witness = "
        BEGIN;
        CREATE TABLE witness (
            id BIGINT GENERATED ALWAYS AS IDENTITY, relation TEXT, writer BIGINT, current BIGINT,
            at TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp());
        -- In place: prepared statements know the function by its identity, not by its name.
        DO $copy$ BEGIN
            EXECUTE format('CREATE FUNCTION cortex_pass_of_the_product(of_cluster UUID, of_epoch BIGINT)
                RETURNS BOOLEAN LANGUAGE plpgsql AS %L', (SELECT prosrc FROM pg_proc WHERE proname = 'cortex_pass'));
        END $copy$;
        CREATE OR REPLACE FUNCTION cortex_pass(of_cluster UUID, of_epoch BIGINT) RETURNS BOOLEAN
        LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM set_config('test.epoch', of_epoch::text, true);
            RETURN cortex_pass_of_the_product(of_cluster, of_epoch);
        END $$;
        CREATE FUNCTION note_write() RETURNS TRIGGER LANGUAGE plpgsql AS $$
        BEGIN
            INSERT INTO witness (relation, writer, current)
            SELECT TG_TABLE_NAME, nullif(current_setting('test.epoch', true), '')::bigint,
                (SELECT epoch FROM leadership);
            RETURN NULL;
        END $$;
        CREATE TRIGGER noted AFTER INSERT OR UPDATE OR DELETE ON jobs EXECUTE FUNCTION note_write();
        CREATE TRIGGER noted AFTER INSERT OR UPDATE OR DELETE ON executions EXECUTE FUNCTION note_write();
        CREATE TRIGGER noted AFTER INSERT OR UPDATE OR DELETE ON workers EXECUTE FUNCTION note_write();
        CREATE TRIGGER noted AFTER INSERT OR UPDATE OR DELETE ON job_counters EXECUTE FUNCTION note_write();
        COMMIT;";
    sqlx::raw_sql(witness).execute(pool).await.unwrap();
}

/// One lease, as the database has it.
#[derive(Debug, sqlx::FromRow)]
struct Lease {
    id: Uuid,
    job_id: Uuid,
    attempt_number: i32,
    status: String,
    overlaps: bool,
}

impl Scene {
    /// Waits for quiet and checks the history. Each job must have been run by one worker, once.
    pub async fn check(&self, tally: &Tally) {
        self.check_all(tally, true).await;
    }

    /// The same where jobs may have been run again, under another lease: workers were lost.
    pub async fn check_with_losses(&self, tally: &Tally) {
        self.check_all(tally, false).await;
    }

    async fn check_all(&self, tally: &Tally, once: bool) {
        assert_eq!(tally.wrong, Vec::<String>::new(), "only 201 and 503 may be answered");
        self.quiet().await;
        self.check_jobs(tally).await;
        let leases = self.check_leases().await;
        self.check_ledger(&leases, once);
        self.check_writers().await;
        self.check_counters().await;
    }

    /// S1, S3: what was accepted is there and completed; what is there was submitted.
    async fn check_jobs(&self, tally: &Tally) {
        let jobs: Vec<(Uuid, String)> =
            sqlx::query_as("SELECT id, status FROM jobs").fetch_all(&self.pool).await.unwrap();
        let jobs: BTreeMap<_, _> = jobs.into_iter().collect();
        let accepted: BTreeSet<_> = tally.accepted.iter().copied().collect();
        assert_eq!(accepted.len(), tally.accepted.len(), "two submissions were answered with one job");
        let lost: Vec<_> = accepted.iter().filter(|id| !jobs.contains_key(id)).collect();
        assert!(lost.is_empty(), "accepted and not there: {lost:?}");
        let bad: Vec<_> = jobs.iter().filter(|(_, status)| *status != "completed").collect();
        assert!(bad.is_empty(), "not completed: {bad:?}");
        let most = accepted.len() + tally.unknown;
        assert!(jobs.len() <= most, "{} jobs of {most} submissions", jobs.len());
    }

    /// S4, S5, S7: one lease at a time, attempts in sequence, one completion.
    async fn check_leases(&self) -> BTreeMap<Uuid, Lease> {
        let leases: Vec<Lease> = sqlx::query_as(
            "SELECT id, job_id, attempt_number, status, coalesce(created_at < max(coalesce(completed_at, 'infinity'))
                 OVER (PARTITION BY job_id ORDER BY created_at, id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING),
                 false) AS overlaps
             FROM executions ORDER BY job_id, created_at, id",
        )
        .fetch_all(&self.pool)
        .await
        .unwrap();
        let mut before: Option<&Lease> = None;
        for lease in &leases {
            assert!(!lease.overlaps, "two leases at a time: {lease:?}");
            let former = before.filter(|former| former.job_id == lease.job_id);
            let expected = match former {
                None => 1,
                // Given back before it ran: that spends no attempt.
                Some(former) if former.status == "cancelled" => former.attempt_number,
                Some(former) => former.attempt_number + 1,
            };
            assert_eq!(lease.attempt_number, expected, "{lease:?} after {former:?}");
            let over = former.is_some_and(|former| former.status == "completed");
            assert!(!over, "a lease after the completion: {lease:?}");
            before = Some(lease);
        }
        leases.into_iter().map(|lease| (lease.id, lease)).collect()
    }

    /// What the workers say fits to what the database says.
    fn check_ledger(&self, leases: &BTreeMap<Uuid, Lease>, once: bool) {
        let runs = self.ledger.runs();
        let (mut tokens, mut jobs) = (BTreeSet::new(), BTreeSet::new());
        for run in &runs {
            assert!(tokens.insert(run.token), "a lease was run twice: {run:?}");
            assert!(jobs.insert(run.job) || !once, "a job was run twice: {run:?}");
            let lease = leases.get(&run.token).unwrap_or_else(|| panic!("no such lease: {run:?}"));
            assert_eq!((lease.job_id, lease.attempt_number), (run.job, run.attempt));
            if lease.status == "completed" {
                assert!(run.ended, "completed, and its worker does not know: {run:?}");
            }
        }
    }

    /// S11: nobody writes without the fence, and nobody after his successor.
    async fn check_writers(&self) {
        let wrong =
            "SELECT to_jsonb(w)::text FROM witness w WHERE writer IS DISTINCT FROM current ORDER BY id";
        let wrong: Vec<String> = sqlx::query_scalar(wrong).fetch_all(&self.pool).await.unwrap();
        assert!(wrong.is_empty(), "writes of somebody who did not lead, or without the fence: {wrong:#?}");
        let late =
            "SELECT count(*) FROM (SELECT writer < max(writer) OVER (ORDER BY id) AS late FROM witness) w
                    WHERE late";
        assert_eq!(self.count(late).await, 0, "writes of a former leader after his successor's first");
    }

    /// The counters say what the rows say.
    async fn check_counters(&self) {
        let differ = "
            SELECT count(*) FROM (
                SELECT sum(pending) AS pending, sum(queued) AS queued, sum(assigned) AS assigned,
                    sum(running) AS running, sum(completed) AS completed FROM job_counters) c,
                (SELECT count(*) FILTER (WHERE status = 'pending') AS pending,
                    count(*) FILTER (WHERE status = 'queued') AS queued,
                    count(*) FILTER (WHERE status = 'assigned') AS assigned,
                    count(*) FILTER (WHERE status = 'running') AS running,
                    count(*) FILTER (WHERE status = 'completed') AS completed FROM jobs) j
            WHERE (c.pending, c.queued, c.assigned, c.running, c.completed)
                <> (j.pending, j.queued, j.assigned, j.running, j.completed)";
        assert_eq!(self.count(differ).await, 0, "the counters differ from the rows");
    }
}
