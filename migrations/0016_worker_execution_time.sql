-- What a worker's average is of: from an average in whole milliseconds alone, the next one cannot be told. Beside
-- `total_jobs_completed`, which a leader of an older version raises without these.
ALTER TABLE workers
    ADD COLUMN execution_ms BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN executions BIGINT NOT NULL DEFAULT 0;

UPDATE workers SET executions = total_jobs_completed,
    execution_ms = coalesce(average_execution_time_ms, 0) * total_jobs_completed;
