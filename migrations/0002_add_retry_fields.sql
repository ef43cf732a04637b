-- The specification's second step: when a failed attempt is tried again.

ALTER TABLE jobs
    ADD COLUMN next_retry_at TIMESTAMPTZ,
    ADD COLUMN retry_backoff_seconds INTEGER;

CREATE INDEX idx_jobs_retry ON jobs (next_retry_at) WHERE next_retry_at IS NOT NULL;
