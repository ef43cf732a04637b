-- An execution's id is its lease token. The job carries the current one and its deadline, so that one
-- row decides every dispute; the execution keeps both for the record and says whether its worker has
-- fetched the job. The constraints repeat the job state machine.

ALTER TABLE executions
    ADD COLUMN lease_expires_at TIMESTAMPTZ NOT NULL DEFAULT 'infinity',
    -- The PollJob call that fetched the job, so that the same call sent again gets the same job.
    ADD COLUMN delivery_id UUID,
    ADD COLUMN delivered_at TIMESTAMPTZ,
    ADD CONSTRAINT executions_status_known
        CHECK (status IN ('started', 'running', 'completed', 'failed', 'timeout', 'cancelled')),
    ADD CONSTRAINT executions_attempt_from_one CHECK (attempt_number >= 1),
    ADD CONSTRAINT executions_end_is_dated
        CHECK ((status IN ('started', 'running')) = (completed_at IS NULL));

-- A job never has two live leases.
CREATE UNIQUE INDEX idx_executions_live ON executions (job_id) WHERE status IN ('started', 'running');

ALTER TABLE jobs
    ADD COLUMN lease_id UUID,
    -- Also set for a job that is driven from outside, which runs without a lease.
    ADD COLUMN lease_expires_at TIMESTAMPTZ,
    ALTER COLUMN execution_duration_ms TYPE BIGINT,
    ALTER COLUMN queue_wait_time_ms TYPE BIGINT,
    ADD CONSTRAINT jobs_status_known CHECK (
        status IN ('pending', 'queued', 'assigned', 'running', 'completed', 'failed', 'cancelled', 'timeout')),
    ADD CONSTRAINT jobs_priority_in_range CHECK (priority BETWEEN 1 AND 10),
    ADD CONSTRAINT jobs_counts_in_range CHECK (retry_count >= 0 AND max_retries BETWEEN 0 AND 10),
    ADD CONSTRAINT jobs_timeout_in_range CHECK (timeout_seconds BETWEEN 1 AND 86400),
    ADD CONSTRAINT jobs_pending_has_a_time CHECK ((status = 'pending') = (next_retry_at IS NOT NULL)),
    ADD CONSTRAINT jobs_queued_is_dated CHECK (status <> 'queued' OR queued_at IS NOT NULL),
    ADD CONSTRAINT jobs_assigned_has_a_lease CHECK (status <> 'assigned' OR lease_id IS NOT NULL),
    ADD CONSTRAINT jobs_lease_is_held CHECK (
        lease_id IS NULL OR (status IN ('assigned', 'running') AND assigned_worker_id IS NOT NULL)),
    ADD CONSTRAINT jobs_work_has_a_deadline CHECK (
        (status IN ('assigned', 'running')) = (lease_expires_at IS NOT NULL)),
    ADD CONSTRAINT jobs_end_is_dated CHECK (
        (status IN ('completed', 'failed', 'cancelled', 'timeout')) = (completed_at IS NOT NULL));

ALTER TABLE executions ALTER COLUMN duration_ms TYPE BIGINT;

CREATE INDEX idx_jobs_deadline ON jobs (lease_expires_at) WHERE lease_expires_at IS NOT NULL;

ALTER TABLE workers
    ADD CONSTRAINT workers_status_known CHECK (status IN ('idle', 'busy', 'offline', 'unhealthy')),
    ADD CONSTRAINT workers_slots_in_range CHECK (max_concurrent_jobs BETWEEN 1 AND 100),
    ALTER COLUMN average_execution_time_ms TYPE BIGINT;
