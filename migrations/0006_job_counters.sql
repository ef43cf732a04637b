-- Jobs by state, kept by the transactions that change them, so that statistics do not scan. Writers
-- that run side by side use different slots and never wait for each other; a reader sums them up.

CREATE TABLE job_counters (
    slot SMALLINT PRIMARY KEY,
    pending BIGINT NOT NULL DEFAULT 0,
    queued BIGINT NOT NULL DEFAULT 0,
    assigned BIGINT NOT NULL DEFAULT 0,
    running BIGINT NOT NULL DEFAULT 0,
    completed BIGINT NOT NULL DEFAULT 0,
    failed BIGINT NOT NULL DEFAULT 0,
    cancelled BIGINT NOT NULL DEFAULT 0,
    timeout BIGINT NOT NULL DEFAULT 0,
    -- Sums and counts behind the averages, in milliseconds.
    execution_ms BIGINT NOT NULL DEFAULT 0,
    executions BIGINT NOT NULL DEFAULT 0,
    wait_ms BIGINT NOT NULL DEFAULT 0,
    waits BIGINT NOT NULL DEFAULT 0
) WITH (fillfactor = 10);

INSERT INTO job_counters (slot) SELECT generate_series(0, 31);
