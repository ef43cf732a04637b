-- Indexes that queries use, and no other: a job's way from submission to completion then costs one insert
-- and one or two updates in place (HOT), because none of the columns that change on the way is indexed.
-- ARCHITECTURE.md says which query each index serves.

-- Derived, so that nobody can forget to keep them. Both change only off the direct way.
ALTER TABLE jobs
    ADD COLUMN ready BOOLEAN GENERATED ALWAYS AS (status = 'queued') STORED,
    -- The deadline of a job that is driven from outside; leases are watched by the leader.
    ADD COLUMN driven_until TIMESTAMPTZ GENERATED ALWAYS AS (
        CASE WHEN lease_id IS NULL THEN lease_expires_at END) STORED;

DROP INDEX idx_jobs_status, idx_jobs_priority, idx_jobs_worker, idx_jobs_model, idx_jobs_submitted,
    idx_jobs_tags, idx_jobs_active, idx_jobs_deadline;

-- Lists, newest first: all jobs, and those of a model. Ascending, and read backwards: new entries then come at
-- the right end, where inserting is cheapest.
CREATE INDEX idx_jobs_submitted ON jobs (submitted_at, id);
CREATE INDEX idx_jobs_model ON jobs (model_name, submitted_at);
-- Untagged jobs cost nothing here; a filter by tags excludes them.
CREATE INDEX idx_jobs_tags ON jobs USING gin (tags) WHERE tags <> '{}';
-- What the ready queue is rebuilt from, in dispatch order, page by page.
CREATE INDEX idx_jobs_ready ON jobs ((-priority), submitted_at, id) WHERE ready;
CREATE INDEX idx_jobs_driven ON jobs (driven_until) WHERE driven_until IS NOT NULL;

DROP INDEX idx_executions_job, idx_executions_worker, idx_executions_status, idx_executions_started;
CREATE INDEX idx_executions_job ON executions (job_id);

-- A table of at most thousands of rows that are updated every second.
DROP INDEX idx_workers_status, idx_workers_heartbeat, idx_workers_capabilities, idx_workers_available;

-- Every writer is a fenced transaction that has the row in its hands: checking the reference again for each
-- row costs a third of the throughput, and locks on the few rows of workers that all of them share.
ALTER TABLE jobs DROP CONSTRAINT jobs_assigned_worker_id_fkey;
ALTER TABLE executions
    DROP CONSTRAINT executions_job_id_fkey,
    DROP CONSTRAINT executions_worker_id_fkey;

-- Room in each page for the next version of its rows. Executions are updated once and change an indexed
-- column when they do, so room would not help them.
ALTER TABLE jobs SET (
    fillfactor = 50,
    -- In tables that grow all day a share of all rows comes too late, and one of few rows too often.
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 20000,
    autovacuum_analyze_scale_factor = 0.1, autovacuum_analyze_threshold = 20000,
    autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_vacuum_insert_threshold = 100000);
ALTER TABLE executions SET (
    autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 20000,
    autovacuum_analyze_scale_factor = 0.1, autovacuum_analyze_threshold = 20000,
    autovacuum_vacuum_insert_scale_factor = 0.2, autovacuum_vacuum_insert_threshold = 100000);
ALTER TABLE workers SET (fillfactor = 50);

-- Nothing is chosen by their content.
ALTER TABLE jobs
    ALTER COLUMN input_data SET STATISTICS 0, ALTER COLUMN output_data SET STATISTICS 0,
    ALTER COLUMN metadata SET STATISTICS 0, ALTER COLUMN error_message SET STATISTICS 0,
    ALTER COLUMN error_stack SET STATISTICS 0;
ALTER TABLE executions
    ALTER COLUMN output_data SET STATISTICS 0, ALTER COLUMN metadata SET STATISTICS 0,
    ALTER COLUMN error_message SET STATISTICS 0, ALTER COLUMN error_stack SET STATISTICS 0;

-- The fence in one statement: a statement that calls it before it writes needs no transaction around it, and
-- no round trip beside its own. The lock is held until the statement has committed. Answers true, so that a
-- statement can make everything else in it depend on the answer; it raises if there is none.
CREATE FUNCTION cortex_pass(of_cluster UUID, of_epoch BIGINT) RETURNS BOOLEAN LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(cortex_fence_key());
    IF NOT EXISTS (SELECT FROM leadership WHERE cluster_id = of_cluster AND epoch = of_epoch) THEN
        RAISE EXCEPTION 'epoch % is fenced off: another leader has taken over', of_epoch USING ERRCODE = 'CX001';
    END IF;
    RETURN TRUE;
END
$$;

-- First call of every leader transaction of several statements: also sets its limits, in the same round trip
-- and for this transaction only.
CREATE OR REPLACE FUNCTION cortex_fence(of_cluster UUID, of_epoch BIGINT) RETURNS VOID LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('statement_timeout', '2s', TRUE), set_config('lock_timeout', '500ms', TRUE),
        set_config('idle_in_transaction_session_timeout', '400ms', TRUE);
    PERFORM cortex_pass(of_cluster, of_epoch);
END
$$;
