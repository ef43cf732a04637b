-- The specification's third step: how workers have fared.

ALTER TABLE workers
    ADD COLUMN total_jobs_completed INTEGER NOT NULL DEFAULT 0,
    ADD COLUMN total_jobs_failed INTEGER NOT NULL DEFAULT 0,
    ADD COLUMN average_execution_time_ms INTEGER,
    ADD COLUMN consecutive_failures INTEGER NOT NULL DEFAULT 0;
